"""Curriculum temperature: Li et al. 2022, arXiv 2211.16231."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import hard_loss
from kd.methods.base import Method, Pair, compared, require_z_scores
from kd.models.output import Output
from kd.ranges import require


def tempered_loss(student: Tensor, teacher: Tensor, T: Tensor) -> Tensor:
    """T^2 * KL(teacher_T || student_T) as `kd.losses.soft_loss`, with a T that has a gradient: a scalar in [1, 30].

    In fp32, where its error is below 1e-4 up to T = 30.
    """
    student, teacher, T = student.float(), teacher.float(), T.float()
    log_student, log_teacher = (student / T).log_softmax(dim=1), (teacher / T).log_softmax(dim=1)
    return T**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class Reverse(torch.autograd.Function):
    """The same number forward; backward its gradient times -strength, in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


class CTKD(Method):
    r"""alpha * hard + (1 - alpha) * soft, with a temperature that is learned to make soft larger.

    One temperature for all images is trained along, against the student: its gradient is reversed, so that the
    optimiser moves it where the two networks differ most, and the reversal is turned on slowly. With logits $z$ (B, C),
    a learned number $\theta$, and the share of training that is done, $t$, with its warm-up $w$:

    $$
    T = T_0 + T_1 \sigma(\theta), \qquad
    \mathrm{soft} = \frac{T^2}{B} \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(z^t_i / T) \Vert
        \mathrm{softmax}(z^s_i / T)\bigr)
    $$

    $$
    \frac{\partial L}{\partial \theta} := -\lambda \frac{\partial L}{\partial \theta}, \qquad
    \lambda = \frac{1}{2} \Bigl(1 - \cos \bigl(\pi \min(t / w, 1)\bigr)\Bigr)
    $$

    $\theta$ starts at 1, T at 15.6. It is a parameter, with weight decay only with `recipe.decay_all=true`, lies in
    checkpoints and is logged as `train/T`.

    Scaling:
        Averaged over the batch, independent of B; $T^2$ is part of what is differentiated. At high T the term is
        nearly the mean of $|z^s - z^t|^2 / 2C$ of centred logits, and hardly depends on T any more.

    Use:
        Where T is not to be searched. By published figures on CIFAR-100 it is 0.1 to 0.5 points above the soft loss at
        T = 4 within a family of networks, and -0.3 to 1.3 between families. The temperature ends where the two networks
        differ most, which is not where students learn best.

    Deviations:
        * Paper: lambda rises from 0 to 1. Its code multiplies the gradient by a number that falls from 0 to -1, which
          is the same. Here likewise: theta moves to increase the loss.
        * Paper: a ramp of 10 of 240 epochs, in steps. Here: the share of training, step by step.
        * Paper's code breaks in half precision. Here: T, its gradient and the loss are fp32.
        * Paper: also a temperature for each image, by a small network. Here: the one for all.

    Args:
        alpha: weight of the labels, in [0, 1]; published 0.1.
        warmup: w, in [0, 1); published 10 of 240 epochs.
        lowest: T_0, in [1, 10]; published 1.
        span: T_1, in (0, 20]; published 20.
        label_smoothing: of the hard loss, in [0, 1].
        standardize: whether soft reads z-scores of the logits, see `kd.losses.standardized`.

    Raises:
        ValueError: for a value outside its range; in `setup`, for z-scores of two classes.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        warmup: float = 0.0417,
        lowest: float = 1.0,
        span: float = 20.0,
        label_smoothing: float = 0.0,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        require("alpha", alpha, "[0, 1]")
        require("warmup", warmup)
        require("method.lowest", lowest, "[1, 10]")
        require("method.span", span, "(0, 20]")
        require("label_smoothing", label_smoothing)
        require("method.standardize", standardize)
        self.alpha, self.warmup, self.label_smoothing = alpha, warmup, label_smoothing
        self.reads_labels = alpha > 0
        self.lowest, self.span, self.standardize = lowest, span, standardize
        self.theta = nn.Parameter(torch.tensor(1.0))

    @property
    def strength(self) -> float:
        """lambda, of the reversed gradient."""
        return 0.5 * (1 - math.cos(math.pi * self.ramp(self.warmup)))

    def temperature(self) -> Tensor:
        """T, a scalar whose gradient is reversed."""
        theta: Tensor = Reverse.apply(self.theta, self.strength)
        return self.lowest + self.span * theta.sigmoid()

    def setup(self, pair: Pair) -> None:
        require_z_scores(pair.num_classes, self.standardize)

    def monitors(self) -> dict[str, Tensor]:
        return {"T": self.temperature().detach()}

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = compared(student, teacher, self.standardize)
        soft = tempered_loss(ours, theirs, self.temperature())
        return {
            "hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing),
            "soft": (1 - self.alpha) * soft,
        }
