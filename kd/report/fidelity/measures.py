"""Measures of fidelity to a teacher and of calibration. Pure functions of logits.

After Stanton et al. 2021, "Does Knowledge Distillation Really Work?", https://arxiv.org/abs/2106.05945.
Shapes: M test images, C classes, n seeds. Logarithms are natural.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil, comb, log
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from kd.report.rows import Spread
from kd.runs.predictions import correct

BINS = 15
"""Bins of equal width, for the expected calibration error."""
FEWEST_IN_BIN, LEAST_SHARE = 10, 0.002
"""Images of a network, and share of them, below which a bin is not drawn."""
TEMPERATURES = (0.01, 100.0)
"""Bounds of the search for a temperature."""
FEWEST_ERRORS = 10
"""Number of errors that a figure must rest on.

Agreement where the teacher is wrong would rest on a handful of images with fewer. The best temperature of an almost
perfect network is near 0 if the images that it is fitted on are all right.
"""

Labels = NDArray[np.int64]
"""(M,)."""
Logits = NDArray[np.floating[Any]]
"""(M, C)."""
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


# One network


def accuracy(labels: Labels, logits: Logits) -> float:
    """Return the share of images that are classified right, in [0, 1]."""
    return float(correct(labels, logits).mean())


def averaged(logits: NDArray[np.float64], k: int) -> Iterator[Floats]:
    """Yield the logits (M, C) of the mean probabilities of k networks, for each choice of k.

    Args:
        logits: (n, M, C), of n >= k networks for the same M images.
    """
    log_p = scipy.special.log_softmax(logits, axis=2)
    for chosen in combinations(log_p, k):
        yield scipy.special.logsumexp(chosen, axis=0) - log(k)


def nll(labels: Labels, logits: Logits) -> float:
    """Return the mean negative log-likelihood of the labels, in nats."""
    return float(-_log_softmax(logits)[np.arange(len(labels)), labels].mean())


class Bins(NamedTuple):
    """Predictions sorted by their confidence, the probability of the predicted class; (B,) each, in [0, 1]."""

    share: Floats
    """Share of all images."""
    confidence: Floats
    """Mean over the bin; NaN in an empty one, like the accuracy."""
    accuracy: Floats

    def drawn(self, images: int) -> Mask:
        """Return which bins have enough of each network's images to be drawn; others would show those of a few."""
        return self.share >= max(LEAST_SHARE, FEWEST_IN_BIN / images)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance between confidence and accuracy."""
        return float(np.nansum(self.share * np.abs(self.accuracy - self.confidence)))


def reliability(labels: Labels, logits: Logits, bins: int = BINS) -> Bins:
    """Return confidence and accuracy in bins of equal width that include their lower ends.

    A confidence of exactly 1 counts as just below, and so belongs to the last bin.
    """
    confidence = np.exp(_log_softmax(logits).max(axis=1)).clip(max=1 - 1e-6)
    place = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right") - 1
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        mean = np.bincount(place, confidence, bins) / images
        right = np.bincount(place, correct(labels, logits), bins) / images
    return Bins(images / len(labels), mean, right)


def pooled(labels: Labels, logits: Sequence[Logits]) -> Bins:
    """Return the bins of n networks' predictions for the same images, taken together."""
    return reliability(np.tile(labels, len(logits)), np.concatenate(logits))


def ece(labels: Labels, logits: Logits) -> float:
    """Return the expected calibration error over `BINS` bins, in [0, 1] (Naeini et al. 2015)."""
    return reliability(labels, logits).ece


def _log_softmax(logits: Logits) -> Floats:
    log_p: Floats = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    return log_p


# Two networks


def agreement(a: Logits, b: Logits, where: Mask | None = None) -> float | None:
    """Return the share of the images for which two networks predict the same class, in [0, 1].

    Of the images `where` a mask (M,) is true, if one is given; None of no image.
    """
    same = a.argmax(axis=1) == b.argmax(axis=1)
    if where is not None:
        same = same[where]
    return float(same.mean()) if same.size else None


def kl(teacher: Logits, student: Logits) -> float:
    """Return KL(teacher || student) at T = 1, in nats: summed over the classes, averaged over the images."""
    log_p, log_q = _log_softmax(teacher), _log_softmax(student)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


# Temperature scaling


def temperature(labels: Labels, logits: Logits) -> float:
    """Fit the T for which logits / T have the lowest NLL (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    It lies within `TEMPERATURES`, above 1 for an overconfident network.
    """
    low, high = np.log(TEMPERATURES)
    # The NLL is convex in 1 / T, so in log T it has one minimum as well.
    minimum = scipy.optimize.minimize_scalar(
        lambda log_T: nll(labels, logits / np.exp(log_T)), bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(minimum.x))


class Outputs(NamedTuple):
    """Logits of a network on the test images, as trained and after temperature scaling."""

    logits: Logits
    scaled: Floats | None
    """(M, C); None where there are too few errors to fit a temperature on."""
    temperatures: tuple[float, float] | None
    """Temperatures of the images with an even and with an odd index; each is fitted on the other half."""


def cross_fitted(labels: Labels, logits: Logits) -> Outputs:
    """Scale by temperatures fitted in two folds: none is fitted on an image that it is applied to.

    For runs without a validation split, which have only test images to fit on. Nothing is scaled unless each half has
    `FEWEST_ERRORS` errors.

    Raises:
        ValueError: with fewer than two images.
    """
    if len(labels) < 2:
        raise ValueError(f"temperature scaling in two folds needs two images, not {len(labels)}")
    scaled = logits.astype(np.float64)
    halves = (slice(0, None, 2), slice(1, None, 2))
    wrong = ~correct(labels, logits)
    if min(wrong[half].sum() for half in halves) < FEWEST_ERRORS:
        return Outputs(logits, None, None)
    even, odd = (temperature(labels[half], scaled[half]) for half in reversed(halves))
    for half, T in zip(halves, (even, odd), strict=True):
        scaled[half] /= T
    return Outputs(logits, scaled, (even, odd))


# One network's figures, and their spread over seeds


@dataclass(frozen=True)
class Figures:
    """Figures of one network on the test images; those of its fidelity are None for the teacher itself."""

    accuracy: float
    errors: int
    """Number of images that it gets wrong."""
    nll: float
    """In nats."""
    ece: float
    temperature: float | None = None
    """Mean of the two fitted temperatures; None, like all that is scaled, with too few errors to fit them on."""
    nll_scaled: float | None = None
    """After temperature scaling, like `ece_scaled`."""
    ece_scaled: float | None = None
    agreement: float | None = None
    agreement_right: float | None = None
    """On the images that the teacher gets right; None where there are none."""
    agreement_wrong: float | None = None
    """On the images that the teacher gets wrong: the same wrong class. None of fewer than `FEWEST_ERRORS`."""
    kl: float | None = None
    """KL(teacher || student) at T = 1, in nats."""
    kl_scaled: float | None = None
    """KL with teacher and student scaled, each by its own temperature: what calibration does not explain."""


def measure(labels: Labels, outputs: Outputs, teacher: Outputs | None = None) -> Figures:
    """Return all figures of a network; with a teacher, those of its fidelity, too."""
    logits, scaled, temperatures = outputs
    figures = Figures(
        accuracy=accuracy(labels, logits),
        errors=int((~correct(labels, logits)).sum()),
        nll=nll(labels, logits),
        ece=ece(labels, logits),
        temperature=None if temperatures is None else fmean(temperatures),
        nll_scaled=None if scaled is None else nll(labels, scaled),
        ece_scaled=None if scaled is None else ece(labels, scaled),
    )
    if teacher is None:
        return figures
    right = correct(labels, teacher.logits)
    return replace(
        figures,
        agreement=agreement(logits, teacher.logits),
        agreement_right=agreement(logits, teacher.logits, right),
        agreement_wrong=agreement(logits, teacher.logits, ~right) if (~right).sum() >= FEWEST_ERRORS else None,
        kl=kl(teacher.logits, logits),
        kl_scaled=None if teacher.scaled is None or scaled is None else kl(teacher.scaled, scaled),
    )


def too_few(errors: int) -> str:
    """Name the reason of a figure that is missing, with the number of errors that there are."""
    return f"too few errors ({errors})"


def missing(figures: Sequence[Figures], name: str, teacher: Figures) -> str:
    """Return why some of n seeds lack a figure; "" where none does, or not for too few errors.

    Args:
        figures: those of one network's seeds; of the teacher itself, too.
        name: the figure.
        teacher: the teacher's.
    """
    if all(getattr(seed, name) is not None for seed in figures):
        return ""
    if name == "agreement_wrong" or (name == "kl_scaled" and teacher.nll_scaled is None):
        return too_few(teacher.errors)
    own = [seed.errors for seed in figures if seed.nll_scaled is None]
    return too_few(min(own)) if name in ("temperature", "nll_scaled", "ece_scaled", "kl_scaled") else ""


def spread(figures: Sequence[Figures], name: str) -> Spread | None:
    """Return mean and sample standard deviation of one figure over n seeds; None where a seed lacks it."""
    return Spread.of(getattr(seed, name) for seed in figures)


# Images that one kind of network gets right and another does not


def most(n: int) -> int:
    """Return how many of n seeds count as most of them: all of up to four, four fifths of more.

    Hardly any image is right, or wrong, in all of many seeds.
    """
    return ceil(0.8 * n)


def flipped(before: Mask, after: Mask) -> NDArray[np.intp]:
    """Return the indices of the images that most seeds before (n, M) get wrong and most seeds after (m, M) right."""
    wrong, right = (~before).sum(axis=0) >= most(len(before)), after.sum(axis=0) >= most(len(after))
    return np.flatnonzero(wrong & right)


def expected_flips(before: Mask, after: Mask, k: int) -> float:
    """Return the mean number of `flipped` images over all choices of k seeds before (n, M) and k seeds after (m, M).

    Raises:
        ValueError: unless k is from 1 to n and to m.
    """
    if not 1 <= k <= min(len(before), len(after)):
        raise ValueError(f"cannot choose {k} of {len(before)} and of {len(after)} seeds")
    wrong, right = _choices(~before, k), _choices(after, k)
    return float((wrong * right).sum() / (comb(len(before), k) * comb(len(after), k)))


def flips_by_seed(correct: Mask, k: int) -> float:
    """Return the mean number of images that flip between two disjoint sets of k seeds of one network (n, M).

    As many flip one way as the other.

    Raises:
        ValueError: unless k is from 1 to n / 2.
    """
    n = len(correct)
    if not 1 <= k <= n // 2:
        raise ValueError(f"cannot choose two sets of {k} of {n} seeds")
    return float((_choices(~correct, k) * _choices(correct, k)).sum() / (comb(n, k) * comb(n - k, k)))


def _choices(true: Mask, k: int) -> Floats:
    """Return in how many ways k seeds can be chosen that are all true (n, M) for an image, (M,)."""
    choices: Floats = scipy.special.comb(true.sum(axis=0), k)
    return choices
