"""Knowledge review: Chen et al. 2021, arXiv 2104.09044."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import averaged, common_stages, connector
from kd.models.output import Output
from kd.ranges import require


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss of maps (B, C, H, W): mean squared errors at several sizes, in fp32.

    Of the maps themselves with weight 1, and of their means over 4x4, 2x2 and 1x1 parts with half the weight of the one
    before, as far as these are fewer than the places of a side; divided by the sum of the weights. It does not grow
    with B, C, H or W.

    Source: Chen et al. 2021, arXiv 2104.09044.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        for size in (4, 2, 1):
            if size < min(student.shape[2:]):
                weight /= 2
                total += weight
                parts = averaged(student - teacher, (size, size))  # of means, as it is linear
                loss = loss + weight * parts.square().mean()
        return loss / total


class Fusion(nn.Module):
    """Attention based fusion of a student's map with what was made of the deeper ones.

    Args:
        channels: of the student's map.
        inner: of what is handed on.
        out: of the teacher's map.
        deeper: whether there are deeper maps.
    """

    def __init__(self, channels: int, inner: int, out: int, deeper: bool) -> None:
        super().__init__()
        self.enter = connector(channels, inner)
        self.attention = nn.Sequential(nn.Conv2d(2 * inner, 2, 1), nn.Sigmoid()) if deeper else None
        self.leave = nn.Sequential(nn.Conv2d(inner, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Fuse maps (B, C, H, W) and `deeper` (B, inner, H', W').

        Returns:
            (B, out, *size), for the teacher's map, and (B, inner, *size), for the next shallower one.
        """
        fused = self.enter(maps)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, deeper], dim=1))
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.leave(fused), fused


class ReviewKD(SoftTargets):
    r"""alpha * hard + beta * r * reviewkd + (1 - alpha) * soft, with r rising from 0 to 1 over the warm-up.

    Deep maps of the student help to learn the shallow ones of the teacher. From the deepest stage up, the student's map
    $F^s_l$ (B, C_l, H_l, W_l) is fused with $R_{l+1}$, what was made of the deeper ones, enlarged to its size:

    $$ R_l = a_1 \odot P_l(F^s_l) + a_2 \odot R_{l+1}, \qquad
    (a_1, a_2) = \sigma(A_l[P_l(F^s_l), R_{l+1}]) $$

    $$ \mathrm{reviewkd} = \sum_l \mathrm{HCL}(Q_l(R_l), F^t_l) $$

    $P_l$ is a 1x1 convolution to at most 512 channels with BatchNorm, $A_l$ a 1x1 convolution to the two maps $a$
    (B, 1, H, W), $Q_l$ a 3x3 convolution with BatchNorm to the teacher's channels; all are learned. HCL is the mean
    squared error of the maps and of their means over 4x4, 2x2 and 1x1 parts, weighted 1, 1/2, 1/4, 1/8 and divided by
    the sum. The deepest level is the embedding, as a map of one place.

    Scaling:
        Every HCL is a mean, and does not grow with B, C, H or W. The term grows with the number of levels.

    Use:
        Where the time of its layers, all at the teacher's resolution, is affordable: with the default networks a step
        takes four to six times that of logits. Published results on CIFAR-100 are above soft targets for all pairs,
        with a weight chosen for each.

    Deviations:
        * Published: 20 of 240 epochs of warm-up. Here: the share `warmup` of training.
        * Authors: channels and sizes of every pair in a table. Here: from the probe, stages paired from the deepest up;
          the inner channels are those of the student's deepest map, at most 512: fewer than theirs, which go by the
          embedding, for mobilenetv2 (160) and shufflenetv2 (464).
        * Authors: the teacher's maps before the activation, the student's after it. Here likewise; a teacher without
          preacts (`kd.wrap(net, preacts=True)` shows them) is matched after it.
        * Authors: kernels before BatchNorm begin sqrt(3) times as large. Here: as PyTorch has them. The output is the
          same, but early steps turn them three times as far.
        * Where an embedding is not the mean of the last map, as in the plain CNN, it is the deepest level all the same.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0; published 5 for WRN pairs, 0.6 to 8 for others.
        warmup: share of training over which r rises, in [0, 1); published 20 of 240 epochs.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps.
    """

    reads = frozenset({"logits", "features", "embedding", "preacts"})
    term_name = "reviewkd"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 5.0,
        warmup: float = 0.0833,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("warmup", warmup)
        self.warmup = warmup
        self.fusions = nn.ModuleList()

    def setup(self, pair: Pair) -> None:
        ours, theirs = self._levels(pair.student, pair.teacher_output)
        inner = min(512, pair.student.features[-1].shape[1])
        for level, (maps, target) in enumerate(zip(ours, theirs, strict=True)):
            self.fusions.append(Fusion(maps.shape[1], inner, target.shape[1], deeper=level > 0))

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        ours, theirs = self._levels(student, teacher)
        count, made = len(student.logits), None
        losses = []
        for fusion, maps, target in zip(self.fusions, ours, theirs, strict=True):
            if count == 1:  # twice, as BatchNorm refuses a single number
                maps = maps.expand(2, -1, -1, -1)
            matched, made = fusion(maps, made, (target.shape[2], target.shape[3]))
            losses.append(hcl_loss(matched[:count], target))
        return torch.stack(losses).sum()

    def term_weights(self) -> dict[str, float]:
        return {**super().term_weights(), self.term_name: self.ramp(self.warmup) * self.beta}

    def _levels(self, student: Output, teacher: Output) -> tuple[list[Tensor], list[Tensor]]:
        """Embeddings and maps of student and teacher, paired, deep to shallow."""
        theirs = teacher.preacts or teacher.features
        stages = common_stages(student.features, theirs)[::-1]
        ours = [student.embedding[:, :, None, None], *(student.features[stage] for stage in stages)]
        return ours, [teacher.embedding[:, :, None, None], *(theirs[stage] for stage in stages)]
