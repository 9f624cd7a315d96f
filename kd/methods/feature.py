"""Distillation of softened logits and intermediate feature maps: after FitNets, Romero et al. 2014, arXiv 1412.6550.

FitNets trains in two phases and matches one map; here all terms are trained together, on any choice of stages.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import check_stages, of_one_size, size
from kd.models.output import Output
from kd.ranges import require, require_sum


class Feature(SoftTargets):
    r"""alpha * hard + beta * feature + (1 - alpha - beta) * soft.

    Beside softened logits, the student's maps are to be the teacher's, through a learned 1x1 convolution $r_l$:

    $$
    \mathrm{feature} = \frac{1}{L} \sum_l \mathrm{mean} \big( r_l(F^s_l) - F^t_l \big)^2
    $$

    with maps $F_l$ (B, C_l, H_l, W_l) of L pairs of stages. The convolution gives the student's map as many channels as
    the teacher's; it is trained and not kept. With `pool`, the larger of two maps is averaged to the smaller one's
    height and width, which is refused otherwise.

    Scaling:
        A mean over batch, channels and places: constant in B, C, H and W.

    Use:
        Where logits alone carry little: few classes, or networks of one family whose stages correspond.

    Deviations:
        * FitNets: two phases, half the squared norm, one map. Here: one phase, the mean, any choice of stages; fitnet
          is the published form.
        * Peers add BatchNorm and ReLU to the convolution. Here: neither.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6].
        alpha: weight of the labels, in [0, 1].
        beta: weight of the features, in [0, 1], with alpha + beta <= 1.
        stages: which of `Output.features` to match, counted from 0; negative numbers count from the deepest.
        label_smoothing: of the hard loss, in [0, 1].
        teacher_stages: the teacher's stages that these are matched with, one for each; None for the same.
        pool: whether maps of different height and width may be matched.

    Raises:
        ValueError: for a value outside its range; in `setup`, for stages that the networks do not have, or whose maps
            differ in height and width.
    """

    reads = frozenset({"logits", "features"})
    term_name = "feature"

    def __init__(
        self,
        T: float = 2.0,
        alpha: float = 0.1,
        beta: float = 0.3,
        stages: Sequence[int] = (-1,),
        label_smoothing: float = 0.0,
        teacher_stages: Sequence[int] | None = None,
        pool: bool = False,
    ) -> None:
        require("beta", beta, "[0, 1]")
        super().__init__(T, alpha, beta, label_smoothing)
        require_sum("[0, 1]", alpha=alpha, beta=beta)
        teacher_stages = stages if teacher_stages is None else teacher_stages
        require("method.stages", list(stages))
        require("method.teacher_stages", list(teacher_stages))
        require("method.pool", pool)
        if not stages or len(stages) != len(teacher_stages):
            raise ValueError(
                "method.stages must name at least one stage, and method.teacher_stages one for each, "
                f"got {list(stages)} and {list(teacher_stages)}"
            )
        self.stages, self.teacher_stages, self.pool = tuple(stages), tuple(teacher_stages), pool
        self.adapters = nn.ModuleList()

    @property
    def soft_weight(self) -> float:
        return max(0.0, 1 - self.alpha - self.beta)

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student.features, pair.teacher_output.features
        check_stages("method.stages", self.stages, len(student))
        check_stages("method.teacher_stages", self.teacher_stages, len(teacher))
        for ours, theirs in zip(self.stages, self.teacher_stages, strict=True):
            if student[ours].shape[2:] != teacher[theirs].shape[2:] and not self.pool:
                raise ValueError(
                    f"stages: the student's map {ours} is {size(student[ours])} and the teacher's map {theirs} is "
                    f"{size(teacher[theirs])}. The student's stages are {', '.join(map(size, student))}, the "
                    f"teacher's {', '.join(map(size, teacher))}. Choose equal ones by method.stages=[..] and "
                    "method.teacher_stages=[..], or write method.pool=true"
                )
            self.adapters.append(nn.Conv2d(student[ours].shape[1], teacher[theirs].shape[1], kernel_size=1))

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        distances = [
            F.mse_loss(*of_one_size(adapter(student.features[ours]).float(), teacher.features[theirs].float()))
            for adapter, ours, theirs in zip(self.adapters, self.stages, self.teacher_stages, strict=True)
        ]
        return torch.stack(distances).mean()
