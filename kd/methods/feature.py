"""Distillation of softened logits and intermediate feature maps: after FitNets, Romero et al. 2014, arXiv 1412.6550.

FitNets trains in two phases and matches one map; here all terms are trained together, on any choice of stages.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.models.output import Output
from kd.ranges import require, require_sum


class Feature(SoftTargets):
    """alpha * hard + beta * feature + (1 - alpha - beta) * soft.

    feature is the mean squared error between the teacher's maps and the student's, averaged over the stages. The
    student's are seen through a learned 1x1 convolution per stage (the adapter) with as many channels as the teacher's.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6].
        alpha: weight of the labels, in [0, 1].
        beta: weight of the features, in [0, 1], with alpha + beta <= 1.
        stages: which of `Output.features` to match, counted from 0; negative numbers count from the deepest.
        label_smoothing: of the hard loss, in [0, 1].
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
    ) -> None:
        require("beta", beta, "[0, 1]")
        super().__init__(T, alpha, beta, label_smoothing)
        require_sum("[0, 1]", alpha=alpha, beta=beta)
        if not stages:
            raise ValueError("stages must name at least one stage, got none")
        self.stages = tuple(stages)
        self.adapters = nn.ModuleList()

    @property
    def soft_weight(self) -> float:
        return max(0.0, 1 - self.alpha - self.beta)

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student, pair.taught_output
        depth = min(len(student.features), len(teacher.features))
        for stage in self.stages:
            if not -depth <= stage < depth:
                raise ValueError(f"stages must be in [{-depth}, {depth - 1}] for these networks, got {stage}")
            ours, theirs = student.features[stage].shape[1:], teacher.features[stage].shape[1:]
            if ours[1:] != theirs[1:]:
                raise ValueError(
                    f"stages: the maps of stage {stage} differ in size, {tuple(ours)} in the student and "
                    f"{tuple(theirs)} in the teacher (channels, height, width); choose stages of equal height and width"
                )
            self.adapters.append(nn.Conv2d(ours[0], theirs[0], kernel_size=1))

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        distances = [
            F.mse_loss(adapter(student.features[stage]).float(), teacher.features[stage].float())
            for adapter, stage in zip(self.adapters, self.stages, strict=True)
        ]
        return sum(distances, start=distances[0].new_zeros(())) / len(distances)
