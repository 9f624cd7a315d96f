"""Contrastive representation distillation: Tian et al. 2019, arXiv 1910.10699."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import nce_loss
from kd.methods.base import Pair, SoftTargets
from kd.models.output import Output
from kd.ranges import require


class CRD(SoftTargets):
    r"""alpha * hard + beta * crd + (1 - alpha) * soft.

    Embeddings of the same image attract, of images of other classes repel. Both embeddings, (B, D_s) and (B, D_t), go
    through a learned linear layer to `dim` numbers of length 1: v and w. Two banks (N, dim) keep what v and w were
    for every training image. A score is an inner product divided by tau. With the positive +, an image's own row, and
    K negatives drawn with replacement from the rows of other classes:

    $$
    \mathrm{crd} = \mathrm{nce}(v \cdot \mathrm{bank}^t / \tau) + \mathrm{nce}(w \cdot \mathrm{bank}^s / \tau), \qquad
    \mathrm{nce}(s) = -\log \frac{h(s_+)}{h(s_+) + K / N} - \sum_k \log \frac{K / N}{h(s_k) + K / N}
    $$

    with $h(s) = e^s / Z$, see `kd.losses.nce_loss`; Z is fixed by the first batch. Afterwards, row i of a bank becomes
    m * row + (1 - m) * v_i, brought to length 1. Banks and constants are buffers, so that a resumed run goes on with
    them. Images that are kept for validation are no negatives, and nothing but training touches the banks.

    Scaling:
        Averaged over the batch, independent of B. While nothing is learnt it is about 2 (1 + ln K), 21 for K = 16384:
        in each direction ln K of the positive and 1 of the negatives. All N scores of an image are computed and K
        picked: for CIFAR-10 less work than fetching B * K rows, and 51 MB rather than 2 GB at
        B = 256. For a million images it is the other way round.

    Use:
        For networks of different families, or where embeddings matter as such. It needs the index of every image, and
        1 kB a training image.

    Deviations:
        * The published "CRD + KD", 1 * hard + 1 * soft + 0.8 * crd, is twice `alpha=0.5 beta=0.4`.
        * Popular code draws negatives per image in the loader, and has 1e-7 inside the logarithms. Here: on the device
          for a whole batch, in log space.
        * The authors' code starts the banks with uniform numbers. Here: rows of length 1 from the start.
        * Several devices: each adds what all have seen to the banks; each draws negatives of its own.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; published 1, for CRD alone.
        beta: weight of the contrast, at least 0.
        K: negatives of an image, at least 1; no more than there are images of other classes.
        tau: temperature of the scores, > 0.
        momentum: m of the banks, in [0, 1).
        dim: length of the embeddings, at least 1.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset({"logits", "embedding"})
    term_name = "crd"
    needs_labels = True

    student_bank: Tensor
    teacher_bank: Tensor
    student_log_mean: Tensor
    teacher_log_mean: Tensor
    pool: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 0.8,
        K: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
        dim: int = 128,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("K", K, "whole [1, inf)")
        require("tau", tau, "(0, inf)")
        require("method.momentum", momentum)
        require("method.dim", dim, "whole [1, inf)")
        self.K, self.tau, self.momentum, self.dim = K, tau, momentum, dim
        self._index_is_checked = False

    def setup(self, pair: Pair) -> None:
        labels, shown = pair.labels, pair.labels >= 0
        counts = labels[shown].bincount(minlength=pair.num_classes)
        self.negatives = min(self.K, int(counts.sum() - counts.max()))
        """K, or as many images as there are of other classes."""
        if self.negatives < 1:
            raise ValueError(
                "crd needs training images of at least two classes; in a loop of your own, kd.distill(..., labels=...)"
            )
        self.student_layer = nn.Linear(pair.student.embedding.shape[1], self.dim)
        self.teacher_layer = nn.Linear(pair.teacher_output.embedding.shape[1], self.dim)
        for role in ("student", "teacher"):
            self.register_buffer(f"{role}_bank", F.normalize(torch.randn(len(labels), self.dim), dim=1))
            self.register_buffer(f"{role}_log_mean", torch.tensor(math.nan))
        # The training images, class by class, and where each class begins.
        self.register_buffer("pool", labels.argsort(stable=True)[(~shown).sum() :], persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        if not self._index_is_checked:  # once: to look at a value is to wait for the device
            if batch.index.min() < 0:
                raise ValueError("crd needs to know each image by Batch.index, and it is -1")
            self._index_is_checked = True
        ours = F.normalize(self.student_layer(student.embedding).float(), dim=1)
        theirs = F.normalize(self.teacher_layer(teacher.embedding.to(self.teacher_layer.weight.dtype)).float(), dim=1)
        images = torch.cat([batch.index[:, None], self._draw(batch.y)], dim=1)
        loss = self._contrast(ours, self.teacher_bank, images, self.student_log_mean)
        loss = loss + self._contrast(theirs, self.student_bank, images, self.teacher_log_mean)
        index = _of_all_ranks(batch.index)
        self._remember(self.student_bank, index, _of_all_ranks(ours.detach()))
        self._remember(self.teacher_bank, index, _of_all_ranks(theirs.detach()))
        return loss

    def _draw(self, y: Tensor) -> Tensor:
        """(B, K), int64: images of other classes than y (B,), each equally likely."""
        count, start = self.counts[y, None], self.starts[y, None]
        others = len(self.pool) - count
        place = torch.randint(2**62, (len(y), self.negatives), device=y.device) % others
        return self.pool[place + count * (place >= start)]

    def _contrast(self, embeddings: Tensor, bank: Tensor, images: Tensor, log_mean: Tensor) -> Tensor:
        """The loss of embeddings (B, dim), for images (B, 1 + K) of which the first is the positive."""
        with torch.autocast(embeddings.device.type, enabled=False):
            # Of a copy, as the bank changes before the backward pass needs it.
            scores = (embeddings @ bank.float().clone().T / self.tau).gather(1, images)
        first = scores.detach().logsumexp(dim=(0, 1)) - math.log(scores.numel())
        log_mean.copy_(torch.where(log_mean.isnan(), first, log_mean))
        return nce_loss(scores[:, 0], scores[:, 1:], log_mean)

    def _remember(self, bank: Tensor, index: Tensor, embeddings: Tensor) -> None:
        rows = self.momentum * bank[index].float() + (1 - self.momentum) * embeddings
        bank[index] = F.normalize(rows, dim=1).to(bank.dtype)


def _of_all_ranks(part: Tensor) -> Tensor:
    """Gather a tensor from all ranks, concatenated along dim 0, where several train together."""
    if not (dist.is_available() and dist.is_initialized()):
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)
