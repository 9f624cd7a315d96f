"""Distillation by the alpha-beta divergence: Wang et al. 2025, arXiv 2505.04560."""

import torch
from torch import Tensor

from kd.data.batch import Batch
from kd.losses import softened
from kd.methods.base import SoftTargets
from kd.models.output import Output
from kd.ranges import require

ZERO = 1e-4
"""Exponents, and sums of them, that are smaller count as 0: the general formula divides by their product."""


def abkd_loss(student: Tensor, teacher: Tensor, T: float, a: float, b: float) -> Tensor:
    """The alpha-beta divergence of softmax(z / T) of logits (B, C), summed over classes, averaged over the batch.

    With p of the teacher, q of the student, exponents a and b, and their limits where a, b or a + b is 0:

        1 / (a b) * sum of a / (a + b) * p^(a + b) + b / (a + b) * q^(a + b) - p^a q^b
        b = 0:      1 / a^2 * sum of p^a ln(p^a / q^a) - p^a + q^a, for a = 1 KL(p || q)
        a = 0:      1 / b^2 * sum of q^b ln(q^b / p^b) - q^b + p^b, for b = 1 KL(q || p)
        a = -b:     1 / a^2 * sum of ln(q^a / p^a) + p^a / q^a - 1
        a = b = 0:  1 / 2 * sum of (ln p - ln q)^2

    In log space and fp64, as the general formula is a small difference divided by a small product. The result is fp32,
    finite for any logits while a and b are not negative.

    Source: Wang et al. 2025, arXiv 2505.04560; Cichocki et al. 2011, Entropy 13, 134-170.
    """
    p = softened(teacher, T, exact=True).log_softmax(dim=1)
    q = softened(student, T, exact=True).log_softmax(dim=1)
    a, b = (0.0 if abs(exponent) < ZERO else exponent for exponent in (a, b))
    if a == b == 0:
        terms = (p - q).square() / 2
    elif b == 0:
        terms = _bregman(p, q, a)
    elif a == 0:
        terms = _bregman(q, p, b)
    elif abs(a + b) < ZERO:
        terms = (a * (q - p) + (a * (p - q)).expm1()) / a**2
    else:
        u = a + b
        terms = (a / u * (u * p).exp() + b / u * (u * q).exp() - (a * p + b * q).exp()) / (a * b)
    return terms.sum(dim=1).mean().to(student.device, torch.float32)


def _bregman(p: Tensor, q: Tensor, a: float) -> Tensor:
    """(p^a ln(p^a / q^a) - p^a + q^a) / a^2 of log probabilities."""
    return ((a * p).exp() * (a * (p - q) - 1) + (a * q).exp()) / a**2


class ABKD(SoftTargets):
    r"""alpha * hard + beta * abkd + (1 - alpha) * soft.

    Between KL of the teacher from the student, which spreads the student over all that the teacher finds possible, and
    the reverse, which lets it settle on one answer, lies a family of divergences with two exponents. With
    $p, q = \mathrm{softmax}(z / T)$ of the logits $z$ (B, C) of teacher and student:

    $$
    \mathrm{abkd} = \frac{1}{B} \sum_i \frac{1}{a b} \sum_c \Bigl(
        \frac{a}{a + b} p_{ic}^{a + b} + \frac{b}{a + b} q_{ic}^{a + b} - p_{ic}^a q_{ic}^b \Bigr)
    $$

    a = 1, b = 0 is KL(p || q), the soft loss less its $T^2$; a = 0, b = 1 is KL(q || p). A smaller a gives more weight
    to classes where the two differ much, a larger b to those that the student is sure of.

    Scaling:
        Averaged over the batch, independent of B. There is no $T^2$, so that the term falls as $1 / T^2$. Where a + b
        is not 1, sums of powers enter and the size depends on C: it grows as $C^{1 - a - b}$.

    Use:
        To trade the student's spread against its certainty, once the soft loss is tuned: two more numbers to tune.
        Near a = 1, b = 0, as published for CIFAR-100, it is close to the soft loss.

    Deviations:
        * Paper's code: divides by a or b where the other or a + b is 0, not by its square, which does not continue
          the general formula unless it is 1. Here: the limits.
        * Paper's code: powers of probabilities. Here: log space and fp64.
        * Paper: alpha and beta are the exponents. Here these are a and b, as alpha weighs the labels in all methods.

    Args:
        T: temperature of all softmaxes, in [0.001, 1e6]; the default of the published code.
        alpha: weight of the labels, in [0, 1]; published 1.
        beta: weight of abkd, at least 0; published 32 for ResNet-56 and ResNet-20 on CIFAR-100.
        a: exponent alpha of the paper, in [0, 2]; published 0.8.
        b: exponent beta of the paper, in [0, 2]; published 0.3.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    term_name = "abkd"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 32.0,
        a: float = 0.8,
        b: float = 0.3,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("a", a, "[0, 2]")
        require("b", b, "[0, 2]")
        self.a, self.b = a, b

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return abkd_loss(student.logits, teacher.logits, self.T, self.a, self.b)
