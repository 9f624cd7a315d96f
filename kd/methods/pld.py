"""Plackett-Luce distillation: Bassam et al. 2025, arXiv 2506.12542."""

import torch
from torch import Tensor

from kd.data.batch import Batch
from kd.losses import require_same_classes
from kd.methods.base import Method
from kd.models.output import Output
from kd.ranges import require


def ranking(teacher: Tensor, y: Tensor) -> Tensor:
    """(B, C), int64: the label, then the other classes from the teacher's largest logit down; ties by their number."""
    return teacher.scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)


def pld_loss(student: Tensor, teacher: Tensor, y: Tensor, T: float) -> Tensor:
    """Negative log-likelihood of the teacher's ranking under the student's logits (B, C), weighted, averaged over B.

    The class of rank k is drawn among those of rank k and below in proportion to e^z of the student, and its log
    probability is weighted by the teacher's softmax at T. In log space and fp32.

    Raises:
        ValueError: for logits of different numbers of classes.

    Source: Bassam et al. 2025, arXiv 2506.12542.
    """
    require_same_classes(student, teacher)
    order = ranking(teacher.float(), y)
    scores = student.float().gather(1, order)
    weights = (teacher.float() / T).softmax(dim=1).gather(1, order)
    rest = scores.flip(1).logcumsumexp(dim=1).flip(1)
    return (weights * (rest - scores)).sum(dim=1).mean()


class PLD(Method):
    r"""pld alone: the label first, then the other classes in the teacher's order.

    A softmax is the first of a chain of choices, each among what is left. The student's choices are to be the label and
    then the teacher's ranking, and each counts as much as the teacher is sure of it. With logits $z$ (B, C), $\pi_i$
    the label $y_i$ followed by the other classes from the largest $z^t_i$ down, and $p^t = \mathrm{softmax}(z^t / T)$:

    $$
    \mathrm{pld} = \frac{1}{B} \sum_i \sum_{k=1}^{C} p^t_{i \pi_{ik}}
        \Bigl( \log \sum_{l=k}^{C} e^{z^s_{i \pi_{il}}} - z^s_{i \pi_{ik}} \Bigr)
    $$

    The summand of k = 1 is the hard loss, weighted by the teacher's probability of the label, so that there is no hard
    term beside it and no weight to tune.

    Scaling:
        Averaged over the batch, independent of B. The weights of an image sum to 1. Without a factor $T^2$, as the
        student has T = 1; T only shares the weight out. With two classes it is the hard loss, weighted.

    Use:
        Where no weights are to be tuned, and where the order among many classes matters. It matches the teacher's
        order, and reads distances between logits for the weights alone. A label that is unlikely for the teacher counts
        little, so not with a weak one. Published figures on CIFAR-100, with AdamW, are 0.8 to 1.9
        points above the soft loss. Needs labels, so that images are not to be mixed.

    Deviations:
        * Paper: T = 4 for CIFAR-100 in the text, and no T in the formula of the student. Here: T softens the weights
          only.
        * Ties of the teacher's logits, as in half precision, are ranked by the number of the class.

    Args:
        T: temperature of the weights, in [0.001, 1e6]; published 4 for CIFAR-100.

    Raises:
        ValueError: for a value outside its range.
    """

    needs_labels = True

    def __init__(self, T: float = 4.0) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        self.T = T

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {"pld": pld_loss(student.logits, teacher.logits, batch.y, self.T)}
