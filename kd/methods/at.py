"""Attention transfer: Zagoruyko and Komodakis 2016, arXiv 1612.03928."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import common_stages, of_one_size
from kd.models.output import Output
from kd.ranges import require

PLACES = 64
"""Places of the last maps that the published weight is for, 8x8."""


def at_loss(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """Mean squared difference of two networks' attention maps, in fp32.

    Of maps (B, C_s, H, W) and (B, C_t, H, W): channels may differ. An attention map is the mean over channels of
    |F|^p, its H * W numbers brought to length 1. Averaged over the batch and the places, so that it is at most
    2 / (H * W), as these are not negative.

    Source: Zagoruyko and Komodakis 2016, arXiv 1612.03928, as in their code.
    """
    return F.mse_loss(_attention(student, p), _attention(teacher, p))


def _attention(feature: Tensor, p: float) -> Tensor:
    size = feature.float().abs()
    # Of each image its largest is 1, or a high power would be 0 or infinite; the length is brought to 1 anyway.
    largest = size.detach().amax(dim=(1, 2, 3), keepdim=True)
    return F.normalize((size / largest.where(largest > 0, 1.0)).pow(p).mean(dim=1).flatten(1), dim=1)


class AT(SoftTargets):
    r"""alpha * hard + beta * at + (1 - alpha) * soft.

    The student looks where the teacher looks: at which places a stage responds, whatever its channels mean.

    $$
    \mathrm{at} = \sum_i \frac{1}{B H_i W_i} \sum_b \lVert Q^s_{ib} - Q^t_{ib} \rVert_2^2, \qquad
    Q_{ib} = \frac{q_{ib}}{\lVert q_{ib} \rVert_2}, \qquad q_{ib} = \frac{1}{C_i} \sum_c \lvert F_{ibc} \rvert^p
    $$

    $F_i$ are the maps of stage i, (B, C_i, H_i, W_i), and $Q_i$ the attention maps, (B, H_i W_i). All stages that both
    networks have are matched, from the deepest up. Channels may differ; the larger of two maps is first averaged to the
    height and width of the smaller. There is nothing to learn beside the student.

    Scaling:
        Constant in B and C. A stage's part falls as 1 / (H W): of maps of 32x32 and of 8x8, the second weigh 16 times
        as much, and larger images need a larger beta. With `rescale` a stage's part is multiplied by H W / 64, so that
        all stages count alike and beta, published for last maps of 8x8, holds for images of any size.

    Use:
        For networks of one family, where in published tables (CIFAR-100) it is 0.8 to 1.5 points above the student
        alone. Between families it is -6.0 to 2.8: 59.40 % from VGG13 to MobileNetV2, which alone has 64.60 %.

    Deviations:
        * Paper: beta / 2 times the norm of the difference, not squared. Here and in the authors' code: its square,
          averaged over places; the published weight 1000 belongs to this form.
        * KD_Lib takes each channel's map as it is and never averages over channels, which is not attention transfer.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; published 1, for the labels and attention alone.
        beta: weight of the attention, at least 0.
        p: power of the responses, in [1, 16]; the larger it is, the more the strongest channels count.
        label_smoothing: of the hard loss, in [0, 1].
        rescale: whether stages count alike, whatever their size; false is the published form.

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps, or with maps of one place.
    """

    reads = frozenset({"logits", "features"})
    term_name = "at"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 1000.0,
        p: float = 2.0,
        label_smoothing: float = 0.0,
        rescale: bool = False,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("p", p, "[1, 16]")
        require("method.rescale", rescale)
        self.p, self.rescale = p, rescale

    def setup(self, pair: Pair) -> None:
        ours, theirs = pair.student.features, pair.teacher_output.features
        self.stages = common_stages(ours, theirs)
        if all(1 in (ours[i][0, 0].numel(), theirs[i][0, 0].numel()) for i in self.stages):
            sizes = [", ".join(sorted({f"{f.shape[2]}x{f.shape[3]}" for f in maps})) for maps in (ours, theirs)]
            raise ValueError(
                f"maps of one place have no attention to transfer, and of the student's {sizes[0]} and the teacher's "
                f"{sizes[1]} no two are larger; choose a method that needs no maps, such as srd or pkt"
            )

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        losses = []
        for stage in self.stages:
            ours, theirs = of_one_size(student.features[stage], teacher.features[stage])
            places = ours.shape[2] * ours.shape[3]
            losses.append(at_loss(ours, theirs, self.p) * (places / PLACES if self.rescale else 1.0))
        return torch.stack(losses).sum()
