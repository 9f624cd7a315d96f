"""Normalised knowledge distillation: Yang et al. 2023, arXiv 2303.13005."""

from torch import Tensor

from kd.data.batch import Batch
from kd.losses import hard_loss, nckd_loss
from kd.methods.base import Method
from kd.models.output import Output
from kd.ranges import require


def target_loss(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) with labels (B,), each image weighted by the teacher's p_y, averaged over B.

    In log space and fp32. The mean is over all images, not over the weights, so that an unsure teacher makes it small.

    Source: Yang et al. 2023, arXiv 2303.13005.
    """
    column = y[:, None]
    weight = teacher.float().softmax(dim=1).gather(1, column)
    return -(weight * student.float().log_softmax(dim=1).gather(1, column)).mean()


class NKD(Method):
    r"""hard + target + gamma * nontarget.

    The teacher's probability of the label and the distribution among the other classes are taught apart, and the
    latter is first brought to the sum 1, in both networks. With logits $z$ (B, C), labels $y$ (B,),
    $p = \mathrm{softmax}(z)$, and $\hat p$ the softmax of $z / T$ over the $C - 1$ classes beside the label:

    $$
    \mathrm{target} = -\frac{1}{B} \sum_i p^t_{i y_i} \log p^s_{i y_i}, \qquad
    \mathrm{nontarget} = \frac{T^2}{B} \sum_i \sum_{c \neq y_i} \hat p^t_{ic} \log \frac{\hat p^t_{ic}}{\hat p^s_{ic}}
    $$

    Scaling:
        Means over the batch, independent of B. With $T^2$ the gradient of nontarget depends little on T where that is
        high. With two classes nontarget is 0.

    Use:
        Where the order among wrong classes is worth teaching: many classes, a teacher that is sure of its label. Of
        the family of dkd; published figures are for ImageNet, where it is 0.3 to 0.5 points above dkd. Needs labels,
        so that images are not to be mixed.

    Deviations:
        * Paper: nontarget is a cross-entropy. Here: a divergence, which is the same less the teacher's entropy. The
          gradient is the same, and 0 means that both agree; it is the nckd of dkd.
        * Paper's code: picks the other classes by a mask, whose shape depends on the data. Here: by their columns.

    Args:
        T: temperature of nontarget, in [0.001, 1e6]; published 3 for CIFAR-100, 1 for ImageNet.
        gamma: weight of nontarget, at least 0; published 3.5 for CIFAR-100, 1.5 for ImageNet.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    needs_labels = True

    def __init__(self, T: float = 3.0, gamma: float = 3.5, label_smoothing: float = 0.0) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        require("gamma", gamma, "[0, inf)")
        require("label_smoothing", label_smoothing)
        self.T, self.gamma, self.label_smoothing = T, gamma, label_smoothing

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "hard": hard_loss(student.logits, batch.y, self.label_smoothing),
            "target": target_loss(student.logits, teacher.logits, batch.y),
            "nontarget": self.gamma * nckd_loss(student.logits, teacher.logits, batch.y, self.T),
        }
