"""Distillation of softened logits: Hinton et al. 2015, arXiv 1503.02531."""

from torch import Tensor

from kd.data.batch import Batch
from kd.losses import hard_loss, soft_loss, standardized
from kd.methods.base import SoftTargets
from kd.models.output import Output
from kd.ranges import require


class Logits(SoftTargets):
    """alpha * hard + (1 - alpha) * soft.

    With `standardize`, soft is of the z-scores of the logits, see `kd.losses.standardized`: the student is free in the
    size of its logits. A teacher is then never surer than its z-scores allow, of 10 classes p = 0.351 at T = 2 and
    0.724 at T = 1, so that T = 1 suits few classes. Published with weights of 0.1 and 9 and known as lskd.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6].
        alpha: weight of the labels, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1].
        standardize: whether the soft loss reads z-scores.
    """

    def __init__(
        self, T: float = 2.0, alpha: float = 0.1, label_smoothing: float = 0.0, standardize: bool = False
    ) -> None:
        super().__init__(T, alpha, label_smoothing=label_smoothing)
        require("method.standardize", standardize)
        self.standardize = standardize

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student.logits, teacher.logits
        if self.standardize:
            ours, theirs = standardized(ours), standardized(theirs)
        return {
            "hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing),
            "soft": self.soft_weight * soft_loss(ours, theirs, self.T),
        }
