"""Distillation of singular vectors: Lee et al. 2018, arXiv 1807.06819."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import common_stages
from kd.models.output import Output
from kd.ranges import require

GAP = 1e-3
"""Gaps between squared singular values, as a share of their sum, below which the gradient falls instead of growing."""


def singular_vectors(maps: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k first right singular vectors of every image's map, and its singular values; in fp32.

    A map (C, H, W) is a matrix of H * W rows and C columns. Its right singular vectors are eigenvectors of the Gram
    matrix of its channels; each has its number of largest size positive, so that no sign depends on the library. The
    gradient of eigenvector i is sum over j of v_j * (v_j . dG v_i) / d with d = lambda_i - lambda_j; here 1 / d is
    d / (d^2 + `GAP`^2), for G divided by its trace, so that it is finite for equal values and for a map of zeros.

    Args:
        maps: (B, C, H, W).
        k: number of vectors, at most C.

    Returns:
        (B, C, k) and (B, k), largest first.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows = maps.float().flatten(2)
        gram = rows @ rows.transpose(1, 2)
        gram = gram / gram.detach().diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=1e-12)[:, None, None]
        with torch.no_grad():
            values, vectors = torch.linalg.eigh(gram.nan_to_num())  # else an error, before the loss is seen to be NaN
            first, top = vectors[..., -k:].flip(2), values[:, -k:].flip(1)
            largest = first.gather(1, first.abs().argmax(dim=1, keepdim=True))
            first = first * torch.where(largest < 0, -1.0, 1.0)
            gaps = top[:, None, :] - values[:, :, None]  # (B, C, k); 0 of a vector and itself
            inverse = gaps / (gaps.square() + GAP**2)
        # Its value is `first`, as v_j . G v_i is 0 for all others; its gradient is that of the eigenvectors.
        first = first + vectors @ (inverse * (vectors.transpose(1, 2) @ gram @ first))
        return first, top.clamp(min=0).sqrt()


def kdsvd_loss(student: list[Tensor], teacher: list[Tensor], k: int) -> Tensor:
    """Sum of squared differences between radial basis functions of consecutive stages, averaged over the batch.

    Of the k + 3 first vectors of the student, or as many as its map has, the one nearest to a teacher's is taken, with
    its sign. Vectors are multiplied by the teacher's singular values, of length 1 together. Then what is compared is
    exp(-(u_a - v_b)^2 / 8) of each number of one stage and each number of the stage before. It is summed over stages,
    pairs of channels and k, and does not grow with B, H or W. In fp32.

    Args:
        student: maps (B, C_l, H, W) of each stage.
        teacher: maps (B, C_l, H', W') of the same numbers of channels.
        k: number of vectors.

    Source: Lee et al. 2018, arXiv 1807.06819.
    """
    stages = []
    for ours, theirs in zip(student, teacher, strict=True):
        targets, values = singular_vectors(theirs, k)
        candidates, _ = singular_vectors(ours, min(k + 3, ours.shape[1], ours[0, 0].numel()))
        with torch.no_grad(), torch.autocast(ours.device.type, enabled=False):
            cosines = candidates.transpose(1, 2) @ targets  # (B, k + 3, k)
            nearest = cosines.abs().argmax(dim=1, keepdim=True)
            sign = torch.where(cosines.gather(1, nearest) < 0, -1.0, 1.0)
            scale = F.normalize(values, dim=1)[:, None]
        chosen = candidates.gather(2, nearest.expand(-1, ours.shape[1], -1)) * sign
        stages.append((chosen * scale, targets * scale))
    losses = [
        (_rbf(ours, ours_before) - _rbf(theirs, theirs_before)).square().sum(dim=(1, 2, 3)).mean()
        for (ours_before, theirs_before), (ours, theirs) in itertools.pairwise(stages)
    ]
    return torch.stack(losses).sum()


def _rbf(vectors: Tensor, before: Tensor) -> Tensor:
    return (-(vectors[:, :, None] - before[:, None]).square() / 8).exp()


class KDSVD(SoftTargets):
    r"""alpha * hard + beta * kdsvd + (1 - alpha) * soft.

    What a stage makes of the one before, in the main directions of their channels, is to be the teacher's. The map of
    an image at stage l is a matrix (HW, C_l) with right singular vectors $V_l$ (C_l, k), multiplied by its singular
    values; the student's are those nearest to the teacher's:

    $$ \mathrm{kdsvd} = \frac{1}{B} \sum_{\mathrm{images}} \sum_l \sum_{a, b, i}
    \left(R^s_{l, abi} - R^t_{l, abi}\right)^2, \qquad
    R_{l, abi} = \exp\left(-\frac{(V_{l, ai} - V_{l-1, bi})^2}{8}\right) $$

    Maps are those after the activation, stages are paired from the deepest up. Height and width may differ; where
    channels do, a learned 1x1 convolution gives the student's map as many as the teacher's has.

    Scaling:
        The term is a sum over k and the C_l * C_(l-1) pairs of channels of numbers that shrink with the channels; it
        does not depend on B, H or W. Time grows as B * C^3.

    Use:
        To compare with; no published table of the usual pairs on CIFAR-100 has it. Slow for wide networks: eigenvectors
        of every image's channels are computed at every step. Not for networks with one common stage.

    Deviations:
        * Paper: the gradient of the term is clipped by that of the labels, less and less. RepDistiller and here: a sum
          of losses.
        * RepDistiller's values depend on the signs that the library gives singular vectors; here a sign is fixed. Its
          backward pass is not finite for equal singular values; here it is damped. mdistiller flattens other axes.
        * RepDistiller refuses different channels; here an adapter is learned.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0; published 1.
        k: number of singular vectors, at least 1; published 1.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for networks with fewer than two common stages, or fewer
            channels than k.
    """

    reads = frozenset({"logits", "features"})
    term_name = "kdsvd"

    def __init__(
        self, T: float = 4.0, alpha: float = 1.0, beta: float = 1.0, k: int = 1, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("k", k, "whole [1, inf)")
        self.k = k
        self.adapters = nn.ModuleList()

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student.features, pair.teacher_output.features
        self.stages = common_stages(student, teacher)
        if len(self.stages) < 2:
            raise ValueError(
                f"kdsvd compares consecutive stages, and of {len(student)} stages of the student and {len(teacher)} of "
                "the teacher only one is common; name more, as in kd.wrap(net, stages=[...]), or choose a method on "
                "the last map, such as sp"
            )
        for stage in self.stages:
            channels = student[stage].shape[1], teacher[stage].shape[1]
            if self.k > channels[1]:
                raise ValueError(f"k must be at most {channels[1]}, the channels of the teacher's map, got {self.k}")
            same = channels[0] == channels[1]
            self.adapters.append(nn.Identity() if same else nn.Conv2d(*channels, kernel_size=1, bias=False))

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        ours = [adapter(student.features[stage]) for adapter, stage in zip(self.adapters, self.stages, strict=True)]
        return kdsvd_loss(ours, [teacher.features[stage] for stage in self.stages], self.k)
