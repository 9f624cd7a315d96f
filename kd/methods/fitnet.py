"""Hints for thin deep networks (FitNets): Romero et al. 2014, arXiv 1412.6550."""

import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, TwoStages
from kd.methods.maps import check_stages, common_stages, of_one_size
from kd.models.output import Output
from kd.ranges import require


def hint_loss(regressed: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two maps (B, C, H, W), over images, channels and places, in fp32.

    Source: Romero et al. 2014, arXiv 1412.6550, which has half of the squared norm.
    """
    return F.mse_loss(regressed.float(), teacher.float())


class FitNet(TwoStages):
    r"""beta * hint first, then alpha * hard + (1 - alpha) * soft.

    In a first stage the student's lower half learns to make the teacher's map in the middle, the hint; in a second
    one the whole network learns from the labels, or with alpha < 1 from softened logits, too.

    $$
    \mathrm{hint} = \frac{1}{B C_t H W} \lVert r(F^s) - F^t \rVert_2^2
    $$

    $F^s$ (B, C_s, H, W) and $F^t$ (B, C_t, H, W) are the maps of one stage, r is a learned 1x1 convolution from C_s to
    C_t channels. It is trained along and not kept. The larger of two maps is averaged to the height and width of the
    smaller. The first stage is the share `warmup` of training. With 0 there is none: all terms are trained together
    from the first step to the last, which is the form of most published tables. Terms that rest are multiplied by 0. A
    training loop of one's own has to give the progress.

    Scaling:
        Constant in B, C, H and W, for maps of equal spread.

    Use:
        As a baseline for methods on maps. In published tables, with all terms trained together, it is -0.1 to 1 point
        above the student alone within a family (CIFAR-100), where soft targets are 0.8 to 2.6 above it. The method
        `feature` adds soft targets and matches any choice of stages.

    Deviations:
        * Paper: the first stage trains the layers up to the hint alone, until validation images stop it. Here: for a
          share of training, so that all methods have equal budgets; the layers above get gradients of 0 (and weight
          decay).
        * Paper: half of the squared norm. Here and in popular code: the mean, to which the published weight 100
          belongs.
        * Paper: r has the activation of the teacher's layer, RepDistiller's has BatchNorm and ReLU. Here: neither,
          which is right for hints of any sign, too.
        * RepDistiller, mdistiller: one stage, as here with warmup=0.
        * Paper: the second stage is distillation of logits. Here: with alpha < 1; published tables have labels alone.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of the hint, at least 0.
        warmup: share of training in which the hint alone is learnt, in [0, 1); 0 for all terms together.
        stage: the hint, one of the stages that both networks have, counted from 0, the shallowest of these, or from
            -1, the deepest; None for the middle one, of an even number the lower.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a stage that the networks do not have.
    """

    reads = frozenset({"logits", "features"})
    matches = frozenset({"logits", "middle map"})
    term_name = "hint"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 100.0,
        warmup: float = 0.125,
        stage: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, warmup, label_smoothing)
        if stage is not None:
            require("method.stage", stage, "whole [-1000, 1000]")
        self.stage = stage

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student.features, pair.teacher_output.features
        stages = common_stages(student, teacher)
        stage = (len(stages) - 1) // 2 if self.stage is None else self.stage
        check_stages("method.stage", [stage], len(stages))
        self.hint = stages[stage]
        self.regressor = nn.Conv2d(student[self.hint].shape[1], teacher[self.hint].shape[1], kernel_size=1)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        regressed = self.regressor(student.features[self.hint])
        return hint_loss(*of_one_size(regressed, teacher.features[self.hint]))
