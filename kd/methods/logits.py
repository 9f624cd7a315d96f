"""Distillation of softened logits: Hinton et al. 2015, arXiv 1503.02531."""

from torch import Tensor

from kd.losses import soft_loss
from kd.methods.base import Pair, SoftTargets, compared, require_z_scores
from kd.models.output import Output
from kd.ranges import require


class Logits(SoftTargets):
    r"""alpha * hard + (1 - alpha) * soft.

    The student learns from the teacher's probabilities of all classes, softened so that the small ones count:

    $$
    \mathrm{soft} = \frac{T^2}{B} \sum_i \sum_c p^t_{ic} \log \frac{p^t_{ic}}{p^s_{ic}}, \qquad
    p = \mathrm{softmax}(z / T)
    $$

    of logits $z$ (B, C). With `standardize`, soft is of the z-scores of the logits, see `kd.losses.standardized`: the
    student is free in the size of its logits. It is what lskd does with its published weights.

    Scaling:
        Constant in B; summed over classes. With $T^2$ the gradient, $T (p^s - p^t)$ of each image, depends little on T
        from about 10 on; below, alpha is to be tuned with T.

    Use:
        First: it is cheap, with stored logits nearly free, and hard to beat once T and alpha are tuned. With few
        classes there is little to learn from it beside the labels.

    Deviations:
        * Popular code averages over classes, too, which is C times weaker, or leaves out $T^2$.
        * T = 2 is this project's choice for CIFAR-10; tables of CIFAR-100 have 4.
        * With `standardize` a teacher is never surer than its z-scores allow: of 10 classes p = 0.351 at T = 2 and
          0.724 at T = 1, so that T = 1 suits few classes.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6].
        alpha: weight of the labels, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1].
        standardize: whether the soft loss reads z-scores.

    Raises:
        ValueError: for a value outside its range; in `setup`, for z-scores of two classes.
    """

    def __init__(
        self, T: float = 2.0, alpha: float = 0.1, label_smoothing: float = 0.0, standardize: bool = False
    ) -> None:
        super().__init__(T, alpha, label_smoothing=label_smoothing)
        require("method.standardize", standardize)
        self.standardize = standardize

    def setup(self, pair: Pair) -> None:
        require_z_scores(pair.num_classes, self.standardize)

    def soft(self, student: Output, teacher: Output) -> Tensor:
        return soft_loss(*compared(student, teacher, self.standardize), self.T)
