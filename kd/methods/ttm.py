"""Transformed teacher matching: Zheng and Yang 2024, arXiv 2402.11148."""

import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.losses import hard_loss
from kd.methods.base import Method
from kd.models.output import Output
from kd.ranges import require


def ttm_loss(student: Tensor, teacher: Tensor, gamma: float) -> Tensor:
    """KL(q || p) of logits (B, C), averaged over the batch; q is p^gamma of the teacher, brought to sum 1.

    That is the softmax of gamma * z. In log space and fp32, so that no power underflows.

    Source: Zheng and Yang 2024, arXiv 2402.11148.
    """
    target = (gamma * teacher.float()).log_softmax(dim=1)
    return F.kl_div(student.float().log_softmax(dim=1), target, reduction="batchmean", log_target=True)


class TTM(Method):
    r"""hard + beta * ttm.

    Only the teacher is softened: the student's own probabilities are to match a power of the teacher's, which is the
    soft loss with a penalty on a sure student. With logits $z$ (B, C), $p = \mathrm{softmax}(z)$:

    $$
    q_{ic} = \frac{(p^t_{ic})^\gamma}{\sum_k (p^t_{ik})^\gamma}, \qquad
    \mathrm{ttm} = \frac{1}{B} \sum_i \sum_c q_{ic} \log \frac{q_{ic}}{p^s_{ic}}
    $$

    $\gamma$ is the inverse temperature: q is the teacher at T = 1 / gamma.

    Scaling:
        Averaged over the batch, independent of B. There is no factor $T^2$: the student has T = 1, so that the
        gradient, p - q for each image, is of the size of the hard loss's whatever gamma is.

    Use:
        In place of the soft loss where the student must not become overconfident. By published figures 0.8 to 2.8
        points above it on CIFAR-100 within a family of networks, 0.1 to 2.1 between families. beta was tuned for each
        pair there, so tune it.

    Deviations:
        * Paper's code: powers of probabilities, divided by their sum, which underflow. Here: a softmax in log space.
        * Paper: beta depends on the pair of networks. Here: what its manual shows, with gamma, for vgg13 and vgg8.

    Args:
        gamma: exponent, in (0, 1]; published 0.1 to 0.2.
        beta: weight of ttm, at least 0; published 4 to 45.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, gamma: float = 0.1, beta: float = 45.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        require("gamma", gamma, "(0, 1]")
        require("beta", beta, "[0, inf)")
        require("label_smoothing", label_smoothing)
        self.gamma, self.beta, self.label_smoothing = gamma, beta, label_smoothing

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "hard": hard_loss(student.logits, batch.y, self.label_smoothing),
            "ttm": self.beta * ttm_loss(student.logits, teacher.logits, self.gamma),
        }
