"""Relational knowledge distillation: Park et al. 2019, arXiv 1904.05068."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd.data.batch import Batch
from kd.methods.base import SoftTargets
from kd.models.output import Output
from kd.ranges import require

ENTRIES = 2**22
"""Numbers in a tensor of angles that is kept at once: 16 MB, all angles of 161 images."""

SAME = 1e-6
"""Distance below which two images count as one, without a direction between them."""


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 loss between the distances of all pairs, each network's divided by their mean; in fp32.

    The loss is averaged over B * B pairs, those of an image with itself included; the mean distance is that of pairs
    apart. It does not grow with B or D.

    Args:
        student: embeddings (B, D_s).
        teacher: embeddings (B, D_t).

    Source: Park et al. 2019, arXiv 1904.05068.
    """
    return _of_distances(_distances(student), _distances(teacher))


def _distances(x: Tensor) -> Tensor:
    """Return the distances (B, B) of embeddings (B, D), in fp32."""
    with torch.autocast(x.device.type, enabled=False):
        # By differences: as squares and products, distances of neighbours would be lost in rounding.
        return torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist")


def _of_distances(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(_by_their_mean(student), _by_their_mean(teacher))


def _by_their_mean(distances: Tensor) -> Tensor:
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=1e-12)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 loss between the cosines of the angles of all triples (i, j, k), at the vertex j; in fp32.

    It is averaged over B^3 triples, degenerate ones included, whose cosine is 0, and does not grow with B or D. The
    vertices are taken in parts so that no tensor has more than about `ENTRIES` numbers. With more than one part, each
    is computed again in the backward pass instead of being kept.

    Args:
        student: embeddings (B, D_s).
        teacher: embeddings (B, D_t).

    Source: Park et al. 2019, arXiv 1904.05068.
    """
    return _of_angles(_distances(student), _distances(teacher))


def _of_angles(student: Tensor, teacher: Tensor) -> Tensor:
    count = len(student)
    part = max(1, ENTRIES // count**2)
    if part >= count:
        return _angles_apart(student, teacher, 0, count) / count**3
    apart = partial(checkpoint, _angles_apart, student, teacher, use_reentrant=False, preserve_rng_state=False)
    sums = [apart(start, min(start + part, count)) for start in range(0, count, part)]
    return torch.stack(sums).sum() / count**3


def _angles_apart(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """Return the sum over the triples whose vertices are start to stop, of distances (B, B)."""
    return F.smooth_l1_loss(_cosines(student, start, stop), _cosines(teacher, start, stop), reduction="sum")


def _cosines(distances: Tensor, start: int, stop: int) -> Tensor:
    """Return the cosines (vertices, B, B) of the angles in triangles with sides of these lengths (B, B).

    By the law of cosines, for B^2 products of embeddings in place of B^3. Its rounding grows with the ratio of two
    sides of a triangle, not with the length of embeddings: 1e-5 for sides of 1 and 100.
    """
    squares, sides = distances.square(), distances[start:stop]
    apart = sides > SAME  # where there is no direction, there is no gradient, rather than an infinite one
    inverse = apart / torch.where(apart, sides, 1.0)
    halves = squares[start:stop] / 2
    return (halves[:, :, None] + halves[:, None, :] - squares / 2) * (inverse[:, :, None] * inverse[:, None, :])


class RKD(SoftTargets):
    r"""alpha * hard + beta * (distance_weight * distance + angle_weight * angle) + (1 - alpha) * soft.

    Distances and angles between the student's embeddings are to be the teacher's. For embeddings $f^s, f^t$ (B, D) and
    the smooth L1 (Huber) loss $h$:

    $$ \mathrm{distance} = \frac{1}{B^2} \sum_{i, j} h\left(\frac{d^s_{ij}}{\bar d^s}, \frac{d^t_{ij}}{\bar d^t}\right),
    \qquad d_{ij} = \lVert f_i - f_j \rVert_2 $$

    $$ \mathrm{angle} = \frac{1}{B^3} \sum_{i, j, k} h\left(c^s_{ijk}, c^t_{ijk}\right), \qquad
    c_{ijk} = \left\langle \frac{f_i - f_j}{\lVert f_i - f_j \rVert_2},
    \frac{f_k - f_j}{\lVert f_k - f_j \rVert_2} \right\rangle $$

    $\bar d$ is the mean of the distances above 0. D may differ between the networks; nothing is learned beside the
    student.

    Scaling:
        Neither term grows with B or D. The angles take O(B^3) time; their memory is bounded by parts, which are
        computed twice for batches of more than 161.

    Use:
        Where geometry between images matters more than classes, as in metric learning, for which it was proposed. On
        CIFAR-100 it stays behind soft targets for all published pairs.

    Deviations:
        * Paper: sums over distinct images. Authors' code, RepDistiller and here: degenerate pairs and triples are
          averaged in, as the published weights belong to it; they are 0.
        * Authors' code for CIFAR brings embeddings to length 1 first, and adds hard and soft at T = 4, both with weight
          1. Here and in RepDistiller: embeddings as they are, and the labels alone. `alpha=0.5 beta=0.5` is half of the
          authors' sum.
        * Angles are in fp32, in parts and by the law of cosines; popular code keeps (B, B, B) and (B, B, D) at once
          and takes B^3 products of D numbers.
        * KD_Lib takes logits, with weights 0.5 and 0.5.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of both terms, at least 0.
        distance_weight: of the distances, at least 0; published 25.
        angle_weight: of the angles, at least 0; published 50.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset({"logits", "embedding"})

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("distance_weight", distance_weight, "[0, inf)")
        require("angle_weight", angle_weight, "[0, inf)")
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def own_terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        distances = _distances(student.embedding), _distances(teacher.embedding)
        return {"distance": _of_distances(*distances), "angle": _of_angles(*distances)}

    def term_weights(self) -> dict[str, float]:
        own = {"distance": self.beta * self.distance_weight, "angle": self.beta * self.angle_weight}
        return {**super().term_weights(), **own}
