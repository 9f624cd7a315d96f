"""Distillation of softened logits: Hinton et al. 2015, arXiv 1503.02531."""

from torch import Tensor

from kd.data.batch import Batch
from kd.losses import hard_loss, soft_loss
from kd.methods.base import Method
from kd.models.output import Output
from kd.ranges import require


class Logits(Method):
    """alpha * hard + (1 - alpha) * soft.

    Args:
        T: temperature of both softmaxes, > 0.
        alpha: weight of the labels, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1].
    """

    logits_only = True

    def __init__(self, T: float, alpha: float, label_smoothing: float) -> None:
        super().__init__()
        require("T", T)
        require("alpha", alpha)
        self.T, self.alpha, self.label_smoothing = T, alpha, label_smoothing

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing),
            "soft": (1 - self.alpha) * soft_loss(student.logits, teacher.logits, self.T),
        }
