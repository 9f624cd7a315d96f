"""Probabilistic knowledge transfer: Passalis and Tefas 2018, arXiv 1803.10837."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.methods.base import SoftTargets
from kd.models.output import Output
from kd.ranges import require

EPS = 1e-7
"""Added to probabilities within the logarithm."""


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the conditional probabilities of all pairs, averaged over B * B entries; in fp32.

    Row i of a network's probabilities (B, B) is (cos(f_i, f_j) + 1) / 2, divided by the row's sum. The loss falls as
    1 / B. An embedding of zeros has cosine 0 with all.

    Args:
        student: embeddings (B, D_s).
        teacher: embeddings (B, D_t).

    Source: Passalis and Tefas 2018, arXiv 1803.10837.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = _probabilities(student.float()), _probabilities(teacher.float())
        return (theirs * ((theirs + EPS) / (ours + EPS)).log()).mean()


def _probabilities(x: Tensor) -> Tensor:
    directions = F.normalize(x, dim=1, eps=1e-6)
    # Rounding may bring a cosine beyond -1, where a probability would be negative.
    similarities = ((directions @ directions.T + 1) / 2).clamp(min=0)
    return similarities / similarities.sum(dim=1, keepdim=True)


class PKT(SoftTargets):
    r"""alpha * hard + beta * pkt + (1 - alpha) * soft.

    An image's neighbours are to be as probable in the student's feature space as in the teacher's. For embeddings
    $f^s, f^t$ (B, D) with cosines $\cos(f_i, f_j)$:

    $$ \mathrm{pkt} = \frac{1}{B^2} \sum_{i, j} p^t_{j|i} \log \frac{p^t_{j|i}}{p^s_{j|i}}, \qquad
    p_{j|i} = \frac{\cos(f_i, f_j) + 1}{\sum_k (\cos(f_i, f_k) + 1)} $$

    D may differ between the networks; nothing is learned beside the student.

    Scaling:
        The term falls as 1 / B, and does not depend on D. With `rescale` it is multiplied by B / 64, so that a weight
        for B = 64 holds for any batch.

    Use:
        Between networks of different width, without adapters. Of the relations between images (sp, cc, rkd, pkt) it has
        the best published results on CIFAR-100 for six of seven pairs of one architecture. A batch of 1 has a term of
        0.

    Deviations:
        * Paper: the sum over pairs, of images with themselves left out. Authors' code, RepDistiller and here: the mean
          over all entries, as the published weight belongs to it.
        * Authors' code and RepDistiller have no factor B / 64; `rescale=false` gives their form.
        * Popular code writes zeros over NaN in place; here no NaN arises, and nothing is changed in place.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0; published 30000 for B = 64.
        rescale: whether to multiply the term by B / 64.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset({"logits", "embedding"})
    term_name = "pkt"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 30000.0,
        rescale: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("method.rescale", rescale)
        self.rescale = rescale

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = pkt_loss(student.embedding, teacher.embedding)
        return loss * (len(student.logits) / 64) if self.rescale else loss
