"""Distillation of softened logits: Hinton et al. 2015, arXiv 1503.02531."""

from kd.methods.base import SoftTargets


class Logits(SoftTargets):
    """alpha * hard + (1 - alpha) * soft.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6].
        alpha: weight of the labels, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1].
    """

    def __init__(self, T: float = 2.0, alpha: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(T, alpha, label_smoothing=label_smoothing)
