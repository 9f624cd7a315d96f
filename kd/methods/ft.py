"""Factor transfer: Kim et al. 2018, arXiv 1802.04977."""

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import common_stages, of_one_size
from kd.models.output import Output
from kd.ranges import require


def ft_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of two factors (B, C, H, W), each image's brought to length 1, in fp32.

    Source: Kim et al. 2018, arXiv 1802.04977, with p = 1 and the mean of their code.
    """
    return F.l1_loss(F.normalize(student.float().flatten(1), dim=1), F.normalize(teacher.float().flatten(1), dim=1))


class FT(SoftTargets):
    r"""alpha * hard + beta * ft + (1 - alpha) * soft, and paraphrase first.

    An autoencoder, the paraphraser, learns to put the teacher's deepest map into fewer channels, the factor. Then a
    translator makes the same factor of the student's map, whose own channels it need not imitate.

    $$
    \mathrm{ft} = \frac{1}{B K H W} \sum_b \left\lVert \frac{S(F^s)_b}{\lVert S(F^s)_b \rVert_2} -
    \frac{P(F^t)_b}{\lVert P(F^t)_b \rVert_2} \right\rVert_1, \qquad
    \mathrm{paraphrase} = \frac{1}{B C_t H W} \lVert D(P(F^t)) - F^t \rVert_2^2
    $$

    $F^s$ (B, C_s, H, W) and $F^t$ (B, C_t, H, W) are the deepest maps. P, D (of the paraphraser) and S (the translator)
    are three 3x3 convolutions each, with leaky ReLU; factors have K = rate * C_t channels, and the larger of two is
    averaged to the height and width of the smaller. During the share `warmup` of training P and D learn and ft rests;
    then P is kept as it is and paraphrase rests. Terms that rest are multiplied by 0. The student learns from the
    labels all the time. A training loop of one's own has to give the progress.

    Scaling:
        Constant in B. It falls as 1 / sqrt(K H W): wider teachers and larger images need a larger beta.

    Use:
        For networks of one family: in published tables (CIFAR-100) -0.4 to 1.2 points above the student alone. Between
        families it is -3.6 to 1.5.

    Deviations:
        * Paper: the paraphraser is trained before the student, for 30 epochs beside 240 in popular code. Here: for a
          share of training, so that all methods have equal budgets, by the student's optimiser.
        * That stage has 23,460 steps in RepDistiller and 39,100 in the Zoo; the authors' code has 2,346 of an L1 norm.
          Here it has about 660 by default, while the learning rate rises, and 88 in two epochs of batches of 128. In a
          short trial on maps of cnn32 the paraphraser was then hardly better than the mean of each channel, so that
          factors are little more than a random projection. A larger `warmup` or more epochs help; `train/paraphrase`
          shows how much was learned.
        * RepDistiller squares factors and averages them over channels, which makes them attention maps. Here, in the
          paper and in the Zoo: the whole factor is normalised.
        * Weights differ: 500 in the authors' code, on CIFAR-10, 200 in RepDistiller and the Zoo and here.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; published 1, for the labels and factors alone.
        beta: weight of the factors, at least 0.
        warmup: share of training in which the paraphraser learns, in (0, 1).
        rate: channels of a factor by those of the teacher's map, in (0, 16].
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps.
    """

    reads = frozenset({"logits", "features"})
    matches = frozenset({"logits", "last map"})
    term_name = "ft"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 200.0,
        warmup: float = 0.125,
        rate: float = 0.5,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("warmup", warmup, "(0, 1)")
        require("method.rate", rate, "(0, 16]")
        self.warmup, self.rate = warmup, rate

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student.features, pair.teacher_output.features
        common_stages(student, teacher)  # refuses a network without maps
        ours, theirs = student[-1].shape[1], teacher[-1].shape[1]
        factors = max(1, round(self.rate * theirs))
        self.encoder = _layers(theirs, theirs, factors, factors)
        self.decoder = _layers(factors, factors, theirs, theirs)
        self.translator = _layers(ours, ours, factors, factors)
        # What the factors are made by: the encoder's weights, out of reach of momentum and weight decay once it rests.
        self.kept = copy.deepcopy(self.encoder).requires_grad_(False)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.no_grad():
            factor = self.kept(self._teacher_map(teacher))
        return ft_loss(*of_one_size(self.translator(student.features[-1]), factor))

    def own_terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        if self.progress < self.warmup:
            self.kept.load_state_dict(self.encoder.state_dict())
        feature = self._teacher_map(teacher)
        paraphrase = F.mse_loss(self.decoder(self.encoder(feature)).float(), feature.float())
        return {**super().own_terms(student, teacher, batch), "paraphrase": paraphrase}

    def term_weights(self) -> dict[str, float]:
        weights, first = super().term_weights(), self.progress < self.warmup
        return {**weights, "ft": weights["ft"] * float(not first), "paraphrase": float(first)}

    def _teacher_map(self, teacher: Output) -> Tensor:
        return teacher.features[-1].to(next(self.kept.parameters()).dtype)


def _layers(*widths: int) -> nn.Sequential:
    """3x3 convolutions from each width to the next, each with leaky ReLU."""
    layers = [(nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.1)) for a, b in pairwise(widths)]
    return nn.Sequential(*(layer for both in layers for layer in both))
