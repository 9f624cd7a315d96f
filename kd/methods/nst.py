"""Neuron selectivity transfer: Huang and Wang 2017, arXiv 1707.01219."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import common_stages, of_one_size
from kd.models.output import Output


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two sets of channels, with the kernel (a . b)^2, in fp32.

    Of maps (B, C_s, H, W) and (B, C_t, H, W), each channel brought to length 1 over its H * W places; averaged over
    the batch. With A (C_s, HW) and B (C_t, HW) it is |A^T A / C_s - B^T B / C_t|^2, the squared Frobenius norm, or
    |A A^T|^2 / C_s^2 - 2 |A B^T|^2 / (C_s C_t) + |B B^T|^2 / C_t^2: whichever has the smaller matrices is computed, so
    that memory is B * min(HW, C)^2 numbers, with C the larger of the two, and never C_s * C_t * HW.

    Source: Huang and Wang 2017, arXiv 1707.01219.
    """
    with torch.autocast(student.device.type, enabled=False):
        a, b = (F.normalize(feature.float().flatten(2), dim=2) for feature in (student, teacher))
        if a.shape[2] <= max(a.shape[1], b.shape[1]):
            difference = a.mT @ a / a.shape[1] - b.mT @ b / b.shape[1]
            return difference.square().sum(dim=(1, 2)).mean()
        return _kernel(a, a) - 2 * _kernel(a, b) + _kernel(b, b)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT).square().mean()


class NST(SoftTargets):
    r"""alpha * hard + beta * nst + (1 - alpha) * soft.

    The student's channels are to be selective for the same places as the teacher's, as a set: their distributions are
    matched, by the maximum mean discrepancy (MMD), and no channel has a counterpart.

    $$
    \mathrm{nst} = \sum_i \frac{1}{B} \sum_b \left[ \frac{1}{C_s^2} \sum_{c,d} k(a_c, a_d) -
    \frac{2}{C_s C_t} \sum_{c,d} k(a_c, b_d) + \frac{1}{C_t^2} \sum_{c,d} k(b_c, b_d) \right], \qquad
    k(x, y) = (x^\top y)^2
    $$

    For every image and stage i, $a_c$ and $b_d$ are the channels of the student's maps (B, C_s, H, W) and the teacher's
    (B, C_t, H, W), as vectors of H W numbers of length 1. All stages that both networks have are matched, from the
    deepest up. Channels may differ; the larger of two maps is first averaged to the height and width of the smaller.
    There is nothing to learn beside the student.

    Scaling:
        Constant in B, H and W, and in [0, 2]. Of unrelated maps with like statistics it is about 1 / C_s + 1 / C_t,
        so that narrow networks are pulled more strongly than wide ones.

    Use:
        For networks of one family. In published tables (CIFAR-100) it is 0.3 to 1.2 points above the student alone
        within a family, and -6.4 to 4.4 between families.

    Deviations:
        * Popular code holds all C_s * C_t * H * W products at once, which is out of memory for 512 channels. Here: Gram
          matrices of channels or of places, whichever are smaller; the value is the same.
        * Paper: also the linear and the Gaussian kernel. Here: the polynomial one, of degree 2 without a constant, to
          which the published weight 50 belongs.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.
        * Maps of one place (1x1) are all alike in this kernel: then the term is 0 with gradients of 0.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; published 1, for the labels and this term alone.
        beta: weight of the discrepancy, at least 0.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps.
    """

    reads = frozenset({"logits", "features"})
    term_name = "nst"

    def __init__(self, T: float = 4.0, alpha: float = 1.0, beta: float = 50.0, label_smoothing: float = 0.0) -> None:
        super().__init__(T, alpha, beta, label_smoothing)

    def setup(self, pair: Pair) -> None:
        self.stages = common_stages(pair.student.features, pair.teacher_output.features)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        losses = [nst_loss(*of_one_size(student.features[i], teacher.features[i])) for i in self.stages]
        return torch.stack(losses).sum()
