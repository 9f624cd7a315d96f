"""Teacher-free distillation by a virtual teacher: Yuan et al. 2019, arXiv 1909.11723."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.losses import hard_loss
from kd.methods.base import Method
from kd.models.output import Output
from kd.ranges import require


def virtual_loss(student: Tensor, y: Tensor, T: float, certainty: float) -> Tensor:
    """KL(q || p) of the student's logits (B, C) and labels (B,), averaged over the batch.

    q is a virtual teacher that gives each label the probability `certainty` and shares the rest equally, softened: the
    softmax of its log probabilities / T. p is the student at T = 1. In log space and fp32.

    Source: Yuan et al. 2019, arXiv 1909.11723.
    """
    z = student.float()
    rest = math.log1p(-certainty) - math.log(z.shape[1] - 1)
    teacher = torch.full_like(z, rest).scatter(1, y[:, None], math.log(certainty))
    return F.kl_div(z.log_softmax(dim=1), (teacher / T).log_softmax(dim=1), reduction="batchmean", log_target=True)


class TFKD(Method):
    r"""alpha * hard + (1 - alpha) * virtual.

    There is no teacher: in its place is a distribution that is sure of the label and uniform over the other classes,
    softened by a high temperature. With the student's logits $z$ (B, C), labels $y$ (B,), and $a$ the certainty:

    $$
    u_{i y_i} = a, \qquad u_{ic} = \frac{1 - a}{C - 1} \text{ for } c \neq y_i, \qquad
    q_i = \mathrm{softmax}(\log u_i / T)
    $$

    $$
    \mathrm{virtual} = \frac{1}{B} \sum_i \mathrm{KL}(q_i \Vert \mathrm{softmax}(z_i))
    $$

    Scaling:
        Averaged over the batch, independent of B. The student has T = 1 and there is no factor $T^2$: the gradient is
        of the hard loss's size.

    Use:
        Without a teacher, and as the baseline for what a teacher adds beyond smooth targets. q is the same for all
        wrong classes, so that the gradient is that of label smoothing; of 10 classes, the defaults are
        `recipe.label_smoothing=0.096`.

    Deviations:
        * Paper: the student is softened, too, without $T^2$, which makes the term T times weaker. Its code: the
          student at T = 1, a mean over B * C, times 100 for ResNet-18, which with the 100 classes of CIFAR-100 is a
          sum over classes; times 50 for GoogLeNet and 1 for MobileNetV2 and ShuffleNetV2, whose labels have weight
          0.05. Here: as for ResNet-18, so that C does not change the weight.
        * Paper's code: the softmax of u / T, of probabilities in place of logits; at T = 1 that is not u, and at
          T = 20 it is all but uniform (0.1045 for the label, of 10 classes). Here: of log u / T (0.1350).
        * The paper's other form, a student taught by an earlier one like it, is method=ban.

    Args:
        T: temperature of the virtual teacher, in [0.001, 1e6]; published 20 for ResNet-18, 10 to 40 for others.
        alpha: weight of the labels, in [0, 1]; published 0.9, or 0.05 for small networks.
        certainty: what the virtual teacher gives the label before it is softened, in (0, 1); published 0.99.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset()

    needs_labels = True

    def __init__(
        self, T: float = 20.0, alpha: float = 0.9, certainty: float = 0.99, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        require("alpha", alpha, "[0, 1]")
        require("method.certainty", certainty, "(0, 1)")
        require("label_smoothing", label_smoothing)
        self.T, self.alpha, self.certainty, self.label_smoothing = T, alpha, certainty, label_smoothing
        self.reads_labels = alpha > 0

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms of the student; `teacher` is not read."""
        return {
            "hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing),
            "virtual": (1 - self.alpha) * virtual_loss(student.logits, batch.y, self.T, self.certainty),
        }
