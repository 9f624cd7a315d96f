"""Distillation of relations by correlation: Huang et al. 2022, arXiv 2205.10536."""

import torch
from torch import Tensor

from kd.data.batch import Batch
from kd.losses import hard_loss, softened
from kd.methods.base import Method
from kd.models.output import Output
from kd.ranges import require


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of a (N, M) with that of b: (N,). 0, without gradient, where one is constant.

    For numbers that are not negative. Rows are divided by their largest number first, so that neither squares of small
    probabilities underflow nor an eps has to be chosen; constant means up to rounding.
    """
    a, b = (x / x.detach().amax(dim=1, keepdim=True).clamp(min=1e-30) for x in (a, b))
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
    squares = torch.stack([a.square().mean(dim=1), b.square().mean(dim=1)])
    varies = (squares > (8 * torch.finfo(a.dtype).eps) ** 2).all(dim=0)
    deviations = torch.where(varies, squares, 1.0).sqrt()
    return torch.where(varies, (a * b).mean(dim=1) / (deviations[0] * deviations[1]), 0.0)


def dist_losses(student: Tensor, teacher: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """T^2 * (1 - correlation) of softmax(z / T), of logits (B, C): along the classes, and along the batch.

    The first is averaged over B images, the second over C classes. In the precision of `kd.losses.softened`.

    Source: Huang et al. 2022, arXiv 2205.10536.
    """
    p, q = softened(student, T).softmax(dim=1), softened(teacher, T).softmax(dim=1)
    inter, intra = (T**2 * (1 - correlation(*pair).mean()) for pair in ((p, q), (p.T, q.T)))
    return inter.to(student.device, torch.float32), intra.to(student.device, torch.float32)


class DIST(Method):
    r"""alpha * hard + beta * inter + gamma * intra.

    A student that cannot match a strong teacher's probabilities may still keep their relations, and a correlation needs
    no more: it ignores shift and scale. With $P = \mathrm{softmax}(z / T)$ of logits $z$ (B, C), rows $P_{i:}$,
    columns $P_{:c}$, and $\rho$ Pearson's correlation:

    $$
    \mathrm{inter} = T^2 \Bigl(1 - \frac{1}{B} \sum_i \rho(P^s_{i:}, P^t_{i:})\Bigr), \qquad
    \mathrm{intra} = T^2 \Bigl(1 - \frac{1}{C} \sum_c \rho(P^s_{:c}, P^t_{:c})\Bigr)
    $$

    inter compares the classes of one image, intra the images of one class.

    Scaling:
        Both lie in $[0, 2 T^2]$ for any B and C. A correlation does not shrink as T grows, so that $T^2$ is a plain
        weight here: twice the T is four times the term. intra needs a batch in which classes occur, B well above C.
        With two classes a row's correlation is 1 or -1, without gradient, and only intra teaches; in a batch of one
        image it is intra that has no gradient.

    Use:
        With teachers much stronger than the student, or trained with much augmentation. On CIFAR-100 it is
        within 0.8 points of dkd among networks of one family, and 1.2 to 1.7 points below it for MobileNetV2.

    Deviations:
        * Paper: its formula has no $T^2$. Its code has, and its weights belong to it. Here: as the code.
        * Paper's code: 1e-8 beside the denominator. Here: a row that is constant up to rounding counts as
          uncorrelated, without gradient, and nothing is added.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6]; published 4 for CIFAR-100, 1 for ImageNet.
        alpha: weight of the labels, at least 0; published 1.
        beta: weight of inter, at least 0; published 2.
        gamma: weight of intra, at least 0; published 2.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 2.0,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        require("alpha", alpha, "[0, inf)")
        require("beta", beta, "[0, inf)")
        require("gamma", gamma, "[0, inf)")
        require("label_smoothing", label_smoothing)
        self.T, self.alpha, self.beta, self.gamma, self.label_smoothing = T, alpha, beta, gamma, label_smoothing
        self.reads_labels = alpha > 0

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        inter, intra = dist_losses(student.logits, teacher.logits, self.T)
        return {
            "hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing),
            "inter": self.beta * inter,
            "intra": self.gamma * intra,
        }
