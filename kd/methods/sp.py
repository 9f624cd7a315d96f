"""Similarity-preserving knowledge distillation: Tung and Mori 2019, arXiv 1907.09682."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import common_stages
from kd.models.output import Output
from kd.ranges import require


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference of two similarity matrices (B, B), in fp32.

    Each is the Gram matrix of one network's maps, flattened to (B, C * H * W), with rows brought to length 1. It falls
    as 1 / B. Channels, heights and widths may differ; a map of zeros is similar to nothing.

    Args:
        student: (B, ...).
        teacher: (B, ...).

    Source: Tung and Mori 2019, arXiv 1907.09682.
    """
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(_similarities(student), _similarities(teacher))


def _similarities(maps: Tensor) -> Tensor:
    rows = maps.float().flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


class SP(SoftTargets):
    r"""alpha * hard + beta * sp + (1 - alpha) * soft.

    Images that are similar for the teacher are to be similar for the student. The last maps
    $F^s, F^t$ (B, C, H, W) are flattened to $Q^s, Q^t$ (B, CHW), and similarities are inner products:

    $$ \mathrm{sp} = \frac{1}{B^2} \lVert G^s - G^t \rVert_F^2, \qquad
    G_{i \cdot} = \frac{(Q Q^\top)_{i \cdot}}{\lVert (Q Q^\top)_{i \cdot} \rVert_2} $$

    $G^s, G^t$ are (B, B), so that the networks may differ in channels and in the size of their maps. Nothing is learned
    beside the student.

    Scaling:
        The term falls as 1 / B, and does not depend on C, H or W. With `rescale` it is multiplied by B / 64, so that
        a weight for B = 64 holds for any batch.

    Use:
        Between networks of different shape, as nothing has to fit. Published results on CIFAR-100 are within 1.2 points
        of soft targets, below them for all pairs of one architecture. A batch of 1 has a term of 0.

    Deviations:
        * Paper and RepDistiller have no factor B / 64; `rescale=false` gives their form.
        * torchdistill divides rows by their L1 norm; here it is the L2 norm, as in the paper.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0; published 3000 for B = 64.
        rescale: whether to multiply the term by B / 64.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps.
    """

    reads = frozenset({"logits", "features"})
    matches = frozenset({"logits", "last map"})
    term_name = "sp"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 3000.0,
        rescale: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("method.rescale", rescale)
        self.rescale = rescale

    def setup(self, pair: Pair) -> None:
        common_stages(pair.student.features, pair.teacher_output.features)  # refuses a network without maps

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = sp_loss(student.features[-1], teacher.features[-1])
        return loss * (len(student.logits) / 64) if self.rescale else loss
