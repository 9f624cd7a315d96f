"""Correlation congruence: Peng et al. 2019, arXiv 1904.01802."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.methods.base import SoftTargets
from kd.models.output import Output
from kd.ranges import require


def cc_loss(student: Tensor, teacher: Tensor, gamma: float, P: int) -> Tensor:
    """Mean square of the difference of two correlation matrices (B, B), in fp32.

    A correlation is the Gaussian kernel exp(-gamma * |f_i - f_j|^2) of embeddings of length 1, by its Taylor expansion
    in their product: exp(-2 gamma) * sum over p = 0..P of (2 gamma)^p / p! * <f_i, f_j>^p.

    Args:
        student: embeddings (B, D_s).
        teacher: embeddings (B, D_t).
        gamma: of the kernel.
        P: order of the expansion.

    Source: Peng et al. 2019, arXiv 1904.01802.
    """
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(_correlations(student.float(), gamma, P), _correlations(teacher.float(), gamma, P))


def _correlations(x: Tensor, gamma: float, P: int) -> Tensor:
    directions = F.normalize(x, dim=1, eps=1e-6)
    product = directions @ directions.T
    total = torch.zeros_like(product)
    for p in reversed(range(P + 1)):  # Horner's scheme
        total = total * product + (2 * gamma) ** p / math.factorial(p)
    return math.exp(-2 * gamma) * total


class CC(SoftTargets):
    r"""alpha * hard + beta * cc + (1 - alpha) * soft.

    The correlations between the images of a batch are to be the teacher's. For embeddings $f^s, f^t$ (B, D) of
    length 1:

    $$ \mathrm{cc} = \frac{1}{B^2} \lVert K^s - K^t \rVert_F^2, \qquad
    K_{ij} = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} \langle f_i, f_j \rangle^p
    \approx e^{-\gamma \lVert f_i - f_j \rVert^2} $$

    $K^s, K^t$ are (B, B), so that D may differ between the networks; nothing is learned beside the student.

    Scaling:
        The term does not depend on D, and hardly on B: it is a mean over all pairs, of which the share 1 / B, images
        with themselves, adds nothing.

    Use:
        To compare relations between images; on CIFAR-100 the published results of its order-dependent variant are
        below those of soft targets for all pairs. A batch of 1 has a term of 0.

    Deviations:
        * Paper: both embeddings go through a learned linear layer first. Here they are compared as they are: the kernel
          needs no equal widths, and a layer on the teacher's side would learn to make the task easy.
        * Paper: batches are drawn by classes or clusters. Here: the batches of all methods.
        * RepDistiller compares consecutive images by products of absolute differences, which depends on the order of
          the batch, with a weight of 0.02. Here: the paper's kernel, with the weight of Knowledge-Distillation-Zoo for
          CIFAR-10.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0.
        gamma: of the kernel, in (0, 1]; published 0.4.
        P: order of the expansion, in [1, 20]; published 2.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset({"logits", "embedding"})
    term_name = "cc"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 100.0,
        gamma: float = 0.4,
        P: int = 2,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("gamma", gamma, "(0, 1]")
        require("P", P, "whole [1, 20]")
        self.gamma, self.P = gamma, P

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return cc_loss(student.embedding, teacher.embedding, self.gamma, self.P)
