"""Projector, BatchNorm and soft maximum: Miles and Mikolajczyk 2023, arXiv 2303.11098."""

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.models.output import Output
from kd.ranges import require

EPS = 1e-4
"""Added to variances, as the authors' BatchNorm does."""

FLOOR = 1e-3
"""Differences of normalised numbers are compared with the largest, or with this: closer is close enough."""


def srd_loss(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """log of the sum over batch and width of |s - t|^exponent, of embeddings normalised over the batch; in fp32.

    Every column of either is brought to mean 0 and variance 1 over the batch, without learned scale. The loss grows
    with log(B * D), its gradient does not. For equal embeddings it is finite, with a gradient of 0, as in a batch of 1.

    Args:
        student: projected embeddings (B, D).
        teacher: embeddings (B, D).
        exponent: of the differences, at least 1.

    Source: Miles and Mikolajczyk 2023, arXiv 2303.11098.
    """
    with torch.autocast(student.device.type, enabled=False):
        apart = (_normalised(student.float()) - _normalised(teacher.float())).abs()
        # Relative to the largest, a constant factor: so no power overflows, and none is lost.
        largest = apart.detach().amax().clamp(min=FLOOR)
        return exponent * largest.log() + ((apart / largest).pow(exponent).sum() + EPS).log()


def _normalised(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) * (variance + EPS).rsqrt()


class SRD(SoftTargets):
    r"""alpha * hard + beta * srd + (1 - alpha) * soft.

    The student's embedding $f^s$ (B, D_s) goes through a learned linear projector W to the D numbers of the teacher's,
    $f^t$ (B, D); both are normalised over the batch (BN, without learned scale), and a soft maximum of the differences
    is minimised:

    $$ \mathrm{srd} = \log \sum_{i=1}^{B} \sum_{d=1}^{D} \left| \mathrm{BN}(W f^s)_{id} - \mathrm{BN}(f^t)_{id}
    \right|^{a} $$

    with $a$ the exponent. The projector keeps what past batches showed, and so makes the term one of relations between
    images, though it compares one at a time.

    Scaling:
        The value grows with log(B D), the gradient depends neither on B nor on D. It may be negative.

    Use:
        As the simplest match of embeddings, between any two networks, at the cost of one linear layer. Its published
        result on ImageNet has been reproduced independently. A batch of 1 teaches nothing by it.

    Deviations:
        * Authors' ImageNet code: hard + 2 * srd + soft at T = 1. That is alpha=0.5 beta=1 T=1, times 2; the default
          here, alpha=1 beta=2, leaves the soft loss out.
        * Authors' code has infinite values for equal embeddings; here a small number is added within the logarithm.
        * The paper's alpha is called `exponent`, as alpha is the weight of the labels. Statistics are those of the
          batch, and none are kept, as the term exists in training only.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0; published 2.
        exponent: of the differences, in [1, 100]; published 4.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset({"logits", "embedding"})
    term_name = "srd"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 2.0,
        exponent: float = 4.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("exponent", exponent, "[1, 100]")
        self.exponent = exponent

    def setup(self, pair: Pair) -> None:
        self.projector = nn.Linear(pair.student.embedding.shape[1], pair.teacher_output.embedding.shape[1])

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return srd_loss(self.projector(student.embedding), teacher.embedding, self.exponent)
