"""Intervals and tests for a few seeds and a finite test split. Pure functions, on scipy where it has them."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import NamedTuple

import numpy as np
import scipy  # loads its parts when they are first used
from numpy.typing import NDArray

LEVEL = 0.95
"""Confidence level of every interval, unless another one is given."""
RESOLUTION = 1e-6
"""A smaller spread counts as none: accuracies are fractions of far fewer than a million images, partly in fp32."""
FEWEST = 3
"""Number of seeds below which there is no interval and no test. With two, Student's t is 12.7: the interval of an
accuracy can be wider than all that is possible."""
UNSEEN, UNCERTAIN = "no difference seen", "not certain"
VERDICT_NOTE = (
    f"The verdict rests on p < {1 - LEVEL:.2f}; “{UNCERTAIN}” is said where the interval excludes 0 but the corrected "
    f"p is not below that. Fewer than {FEWEST} seeds allow no statement."
)
"""Explanation of the verdicts for a page that shows some."""


class Interval(NamedTuple):
    """An interval by its bounds."""

    low: float
    high: float

    def clipped(self, low: float, high: float) -> "Interval":
        """Return its part within the range of the figure, such as 0 to 1 for an accuracy."""
        return Interval(min(max(self.low, low), high), min(max(self.high, low), high))


def paired_differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Return ours minus theirs for each common seed, by seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return the interval of the mean, by Student's t with n - 1 degrees of freedom.

    None of fewer than `FEWEST` values, or where all are the same.
    """
    error = standard_error(values)
    if error is None:
        return None
    return t_around(float(np.mean(values)), error, len(values) - 1, level)


def t_around(mean: float, error: float, freedom: float, level: float = LEVEL) -> Interval:
    """Return the interval around a mean, by Student's t with its standard error's degrees of freedom."""
    # scipy.stats.t gives the same, but takes a second to load.
    reach = error * float(scipy.special.stdtrit(freedom, (1 + level) / 2))
    return Interval(mean - reach, mean + reach)


def t_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of the mean being 0, by the paired t test; None where `t_interval` is None."""
    error = standard_error(differences)
    if error is None:
        return None
    return t_p(float(np.mean(differences)), error, len(differences) - 1)


def t_p(mean: float, error: float, freedom: float) -> float:
    """Return the two-sided p value of a mean being 0, by Student's t with its standard error's degrees of freedom."""
    return float(2 * scipy.special.stdtr(freedom, -abs(mean) / error))


def margin_p(mean: float, error: float, freedom: float, margin: float) -> float:
    """Return the p value of a mean being `margin` or more from 0: two one-sided t tests (Schuirmann 1987)."""
    return float(scipy.special.stdtr(freedom, (abs(mean) - margin) / error))


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None of few values, or of equal ones, whose true spread need not be 0."""
    if len(values) < FEWEST or np.ptp(values) < RESOLUTION:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def binomial_interval(correct: int, of: int) -> Interval:
    """Return the interval of an accuracy, in [0, 1], on the population that the test images were drawn from.

    Wilson's score interval (1927). It covers the choice of images, not that of seeds.

    Raises:
        ValueError: unless 0 <= correct <= of and of >= 1.
    """
    if not 0 <= correct <= of or of < 1:
        raise ValueError(f"{correct} of {of} is no share of test images")
    # scipy.stats gives the same, but takes a second to load, which is most of a small run's end.
    z, share = NormalDist().inv_cdf((1 + LEVEL) / 2), correct / of
    middle = share + z * z / (2 * of)
    reach = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = ((middle + side) / (1 + z * z / of) for side in (-reach, reach))
    return Interval(low if correct else 0.0, high if correct < of else 1.0)


def change_interval(gained: int, lost: int, of: int) -> Interval:
    """Return the interval of the difference of two networks' accuracies on the same test images, for all of their kind.

    Tango's score interval (1998, Statistics in Medicine 17:891). It has a width where few images or none change, which
    a bootstrap over the images has not.

    Args:
        gained: images that ours alone gets right.
        lost: images that theirs alone does.
        of: number of images.

    Raises:
        ValueError: unless the counts are at least 0, together at most `of`, and of >= 1.
    """
    if min(gained, lost) < 0 or gained + lost > of or of < 1:
        raise ValueError(f"{gained} and {lost} of {of} are no shares of test images")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)

    def score(true: float) -> float:
        """Return by how many standard errors the difference seen is above this true one."""
        linear = (2 * of - gained + lost) * true - gained - lost
        root = math.sqrt(linear**2 + 8 * of * lost * true * (1 - true))
        variance = of * ((root - linear) / (2 * of) + true * (1 - true))
        seen = gained - lost - of * true
        if variance > 0:
            return seen / math.sqrt(variance)
        return math.copysign(math.inf, seen) if seen else 0.0

    middle = (gained - lost) / of
    # At either end no image agrees, and nothing is left to solve.
    low = -1.0 if lost == of else scipy.optimize.bisect(lambda true: score(true) - z, -1, middle)
    high = 1.0 if gained == of else scipy.optimize.bisect(lambda true: score(true) + z, middle, 1)
    return Interval(float(low), float(high))


def images_interval(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Interval:
    """Return the interval of our mean accuracy minus theirs on the population that the test images were drawn from.

    In fractions of 1, for these very networks. A percentile bootstrap of 9,999 resamples of the images, which keeps the
    predictions of all networks for an image together.

    Args:
        ours, theirs: (n, M) and (m, M), which of the same M images each of n and m networks gets right.

    Raises:
        ValueError: if the two differ in the number of images.
    """
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"not the same images: shapes {ours.shape} and {theirs.shape}")
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    # Few values are possible: drawing images is drawing how often each value comes up.
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), 9999)
    means = drawn @ values / len(differences)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the two-sided exact p value of two networks being equally often right (McNemar 1947).

    Only the images that exactly one of them gets right count; 1 if there are none.

    Args:
        ours, theirs: (M,), which of the same M images each network gets right.

    Raises:
        ValueError: if the two differ in the number of images.
    """
    a, b = np.asarray(ours, dtype=bool), np.asarray(theirs, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"not the same images: shapes {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number, in their order (Holm 1979): at most 5 % of families have one below 0.05 by
    chance.

    None, for a test that could not be made, stays None and does not count.
    """
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        corrected[i] = highest
    return corrected


class Difference(NamedTuple):
    """The paired difference of a figure between two kinds of network, over their common seeds."""

    mean: float | None
    """Ours minus theirs, over the common seeds; None without one."""
    interval: Interval | None
    """Interval of the mean, by Student's t, never corrected; None of fewer than `FEWEST` seeds, or of equal values."""
    p: float | None
    """p value of the paired t test, corrected where several are tested; None where there is no interval."""
    n: int
    """Number of common seeds."""
    refused: str = ""
    """Why nothing is compared, other than for the seeds."""

    @property
    def verdict(self) -> str:
        """The outcome in plain words."""
        return self.in_words("higher", "lower")

    def in_words(self, more: str, less: str) -> str:
        """Return the verdict, where a positive difference is called `more` and a negative one `less`."""
        if self.refused:
            return self.refused
        if self.mean is None or self.interval is None or self.p is None:
            reasons = {0: "no common seed", 1: "one seed", 2: "two seeds"}
            return f"{reasons.get(self.n, 'no spread')}: no statement"
        if self.p < 1 - LEVEL:
            return more if self.mean > 0 else less
        # The interval is of one test, p of all of them: without a third verdict, the two could contradict each other.
        return UNSEEN if self.interval.low <= 0 <= self.interval.high else UNCERTAIN


def difference(
    ours: dict[int, float], theirs: dict[int, float], limit: float = math.inf, refused: str = ""
) -> Difference:
    """Return the difference of figures by seed, over the common seeds; its p is not corrected.

    Args:
        ours, theirs: figures by seed.
        limit: the greatest difference that is possible: 1 for accuracies. The interval keeps within it.
        refused: why no statement is made; then there is no p.
    """
    paired = paired_differences(ours, theirs)
    interval = t_interval(paired)
    within = interval and interval.clipped(-limit, limit)
    p = None if refused else t_test(paired)
    return Difference(fmean(paired) if paired else None, within, p, len(paired), refused)


def corrected(family: Sequence[Difference]) -> list[Difference]:
    """Return the differences with p values corrected for their number, by Holm's method."""
    return [d._replace(p=p) for d, p in zip(family, holm([d.p for d in family]), strict=True)]
