"""Activation boundaries: Heo et al. 2018, arXiv 1811.03233."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, TwoStages
from kd.methods.maps import common_preacts, connector, of_one_size
from kd.models.output import Output
from kd.ranges import require


def ab_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinge of the student's maps before the activation, by the sign of the teacher's, in fp32.

    Of maps (B, C, H, W): where the teacher's is above 0 the student's is to be above the margin, elsewhere below minus
    the margin. Summed over C, H and W, averaged over the batch.

    Source: Heo et al. 2018, arXiv 1811.03233.
    """
    sign = (teacher > 0).float() * 2 - 1
    shortfall = F.relu(margin - sign * student.float())
    return shortfall.square().sum(dim=(1, 2, 3)).mean()


class AB(TwoStages):
    r"""beta * ab first, then alpha * hard + (1 - alpha) * soft.

    In a first stage the student learns which of the teacher's neurons are active, not how much; in a second one it
    learns from the labels, or with alpha < 1 from softened logits, too.

    $$
    \mathrm{ab} = \sum_{i=1}^n \frac{2^{i - n}}{B} \sum_{b,c,h,w}
    \max\big(0,\ m - \sigma(F^t_i)\, r_i(F^s_i)\big)^2_{bchw}, \qquad
    \sigma(x) = \begin{cases} 1 & x \gt 0 \\ -1 & x \le 0 \end{cases}
    $$

    $F_i$ are the maps of stage i before its last activation, those of the teacher (B, C_i, H_i, W_i). $r_i$ is a
    learned 1x1 convolution and BatchNorm, m the margin. All n stages that both networks have are matched, from the
    deepest up, whose weight is 1; the larger of two maps is averaged to the height and width of the smaller. The first
    stage is the share `warmup` of training; with 0 there is none, and all terms are trained together from the first
    step to the last. Terms that rest are multiplied by 0. A training loop of one's own has to give the progress.

    Scaling:
        Constant in B; a batch of one image needs maps larger than 1x1, for BatchNorm. A stage's part grows with
        C_t H W, so that beta belongs to a family of teachers and a size of images; published 0.003 for CIFAR.

    Use:
        Between families, where in published tables (CIFAR-100) it is 0.3 to 3.1 points above the student alone. Within
        a family it is -0.8 to 0.7. The networks have to show maps before their activation: all of this
        program do but resnet9, those of others by preacts=true or kd.wrap(net, preacts=True).

    Deviations:
        * Paper: a first stage without labels, then training from its result. Popular code: 30 epochs before 240. Here:
          a share of training, so that all methods have equal budgets, with one learning rate schedule; layers above the
          deepest map get gradients of 0 in it (and weight decay).
        * Popular code multiplies by 3 / 1000 inside the loss. Here: it is beta.
        * Authors' code for CIFAR-10: the second stage is KL(p_t || p_s) at T = 3 alone, without labels or T^2, and the
          teacher is in train mode in the first. Here: the labels, as in published tables, and eval mode. With
          `alpha=0 T=3` the second stage is 9 times the authors'.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; 1 in published tables, 0 in the authors' code.
        beta: weight of the boundaries, at least 0.
        warmup: share of training in which the boundaries alone are learnt, in [0, 1); 0 for all terms together.
        margin: m, above 0.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps before the activation.
    """

    reads = frozenset({"logits", "preacts"})
    term_name = "ab"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 0.003,
        warmup: float = 0.125,
        margin: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, warmup, label_smoothing)
        require("method.margin", margin, "(0, inf)")
        self.margin = margin
        self.connectors = nn.ModuleList()

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student, pair.teacher_output
        self.stages = common_preacts("ab", student, teacher)
        for stage in self.stages:
            self.connectors.append(connector(student.preacts[stage].shape[1], teacher.preacts[stage].shape[1]))

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        losses = []
        for connect, stage in zip(self.connectors, self.stages, strict=True):
            maps = of_one_size(connect(student.preacts[stage]), teacher.preacts[stage])
            losses.append(ab_loss(*maps, self.margin) / 2 ** (-1 - stage))
        return torch.stack(losses).sum()
