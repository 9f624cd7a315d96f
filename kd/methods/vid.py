"""Variational information distillation: Ahn et al. 2019, arXiv 1904.05835."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import common_stages, of_one_size
from kd.models.output import Output
from kd.ranges import require

EPS = 1e-5
"""Least variance, as published."""


def vid_loss(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's map under a normal distribution, without the constant, in fp32.

    Of maps (B, C, H, W) and one variance per channel (C,): (mean - teacher)^2 / variance + log variance, halved and
    averaged over images, channels and places. Least where each variance is its channel's mean squared error.

    Source: Ahn et al. 2019, arXiv 1904.05835.
    """
    variance = variance.float()[:, None, None]
    return 0.5 * ((mean.float() - teacher.float()) ** 2 / variance + variance.log()).mean()


class VID(SoftTargets):
    r"""alpha * hard + beta * vid + (1 - alpha) * soft.

    The student's maps are to carry as much information about the teacher's as possible: a bound on their mutual
    information is raised, in which every channel of the teacher's counts as much as it can be predicted.

    $$
    \mathrm{vid} = \sum_i \frac{1}{2 B C_i H_i W_i} \sum_{b,c,h,w} \left[
    \frac{(\mu_i(F^s_i) - F^t_i)_{bchw}^2}{\sigma_{ic}^2} + \log \sigma_{ic}^2 \right], \qquad
    \sigma_{ic}^2 = \log(1 + e^{a_{ic}}) + 10^{-5}
    $$

    $F_i$ are the maps of stage i, those of the teacher (B, C_i, H_i, W_i). $\mu_i$ is three 1x1 convolutions with ReLU
    between them, of C_i channels each; $\mu_i$ and $a_i$, (C_i,), are learnt. All stages that both networks have are
    matched, from the deepest up; the larger of two maps is averaged to the height and width of the smaller.

    Scaling:
        Constant in B, C, H and W, as maps are averaged over all of these. It can be negative: log variances are part
        of it.

    Use:
        For networks of one family and of two: in published tables (CIFAR-100) it is 0.6 to 1.5 points above the
        student alone within a family, like attention transfer, and -0.1 to 3.1 between families, where that loses up
        to 6.0.

    Deviations:
        * mdistiller's variances are in a Python list and no optimiser has them: they never learn, and what is left is
          a mean squared error divided by 10. Here: parameters, with weight decay only with `recipe.decay_all=true`.
        * Paper: also a version for the layer before the logits. Here and in RepDistiller: maps alone, with the same mu
          for every stage.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; published 1, for the labels and this term alone.
        beta: weight of the term, at least 0.
        init_variance: of every channel in the beginning, in [0.0001, 1e6].
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps.
    """

    reads = frozenset({"logits", "features"})
    term_name = "vid"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        init_variance: float = 5.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("method.init_variance", init_variance, "[0.0001, 1e6]")
        self.init_variance = init_variance
        self.means, self.scales = nn.ModuleList(), nn.ParameterList()

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student.features, pair.teacher_output.features
        self.stages = common_stages(student, teacher)
        # The inverse of softplus: log(e^v - 1), without overflow.
        scale = self.init_variance - EPS + math.log(-math.expm1(EPS - self.init_variance))
        for stage in self.stages:
            channels = teacher[stage].shape[1]
            first = nn.Conv2d(student[stage].shape[1], channels, 1, bias=False)
            second, third = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
            self.means.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third))
            self.scales.append(nn.Parameter(torch.full((channels,), scale)))

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        losses = []
        for mean, scale, stage in zip(self.means, self.scales, self.stages, strict=True):
            feature, target = of_one_size(student.features[stage], teacher.features[stage])
            losses.append(vid_loss(mean(feature), target, F.softplus(scale.float()) + EPS))
        return torch.stack(losses).sum()
