"""What a few seeds and a finite test split allow to say. Pure functions; what scipy has is scipy's."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded when they are first used
from numpy.typing import NDArray

LEVEL = 0.95
"""Of every interval, unless told otherwise."""
RESOLUTION = 1e-6
"""A smaller spread is none: accuracies are whole images out of far fewer than a million, as 32-bit floats at times."""
UNSEEN, UNCERTAIN = "no difference seen", "not certain"
VERDICT_NOTE = (
    f"The verdict rests on p < {1 - LEVEL:.2f}; “{UNCERTAIN}” is said where the interval excludes 0 but the corrected "
    "p is not below that."
)
"""For whoever reads them."""


class Interval(NamedTuple):
    """From a lower to an upper bound."""

    low: float
    high: float


def paired_differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours minus theirs for each seed that both have, by seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Of the mean, by Student's t with n - 1 degrees of freedom; None where there are not two different values."""
    error = _standard_error(values)
    if error is None:
        return None
    # What scipy.stats.t asks, too, without the second that it takes to load.
    reach = error * float(scipy.special.stdtrit(len(values) - 1, (1 + level) / 2))
    mean = float(np.mean(values))
    return Interval(mean - reach, mean + reach)


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p value of the mean being 0, by the paired t test; None where `t_interval` is None."""
    error = _standard_error(differences)
    if error is None:
        return None
    return float(2 * scipy.special.stdtr(len(differences) - 1, -abs(np.mean(differences)) / error))


def _standard_error(values: Sequence[float]) -> float | None:
    """Of the mean. None for a single value, and for equal ones: their spread, and with it t, is not known to be 0."""
    if len(values) < 2 or np.ptp(values) < RESOLUTION:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def binomial_interval(correct: int, of: int, level: float = LEVEL) -> Interval:
    """Of the accuracy on all images of the kind that finitely many were tested of, as fractions of 1 (Wilson 1927).

    It tells nothing about other seeds. Raises ValueError unless
    0 <= correct <= of and of >= 1.
    """
    found = scipy.stats.binomtest(correct, of).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def images_interval(
    ours: NDArray[np.bool_],
    theirs: NDArray[np.bool_],
    level: float = LEVEL,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Of our mean accuracy minus theirs on all images of the kind that the test images were drawn from.

    As fractions of 1, for these very networks. A percentile bootstrap over the images, each of which keeps all answers
    to it.

    Args:
        ours, theirs: (n, M) and (m, M), which of the same M images each of n and m networks gets right.

    Raises:
        ValueError: if the two are not answers to as many images.
    """
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"not the same images: shapes {ours.shape} and {theirs.shape}")
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    # Few values are possible: to draw images is to draw how often each of these comes up.
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), resamples)
    means = drawn @ values / len(differences)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Two-sided exact p value of two networks being equally often right, from which images each got right (N,).

    Only the images that exactly one of them got right count (McNemar 1947); 1 if there are none. Raises
    ValueError if the two are not answers to as many images.
    """
    one, other = np.asarray(ours, dtype=bool), np.asarray(theirs, dtype=bool)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"not the same images: shapes {one.shape} and {other.shape}")
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_one, only_one + only_other, 0.5).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values corrected for their number, in their order (Holm 1979): below 0.05 in at most 5 % of
    families by chance.

    None is where no test could be made; it stays None and counts for nothing.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    so_far = 0.0
    for rank, (p, i) in enumerate(known):
        so_far = max(so_far, min(1.0, (len(known) - rank) * p))
        corrected[i] = so_far
    return corrected


class Difference(NamedTuple):
    """Of a figure that two kinds of network have for each seed."""

    mean: float | None
    """Ours minus theirs, over the common seeds; None without one."""
    interval: Interval | None
    """Of that mean, by Student's t, never corrected; None unless there are two seeds with different differences."""
    p: float | None
    """Of the paired t test, corrected where several are tested; None where there is no interval."""
    n: int
    """Number of common seeds."""

    @property
    def verdict(self) -> str:
        """In plain words."""
        return self.in_words("higher", "lower")

    def in_words(self, more: str, less: str) -> str:
        """What may be said of it, where a positive difference is called `more` and a negative one `less`."""
        if self.mean is None or self.interval is None or self.p is None:
            reasons = {0: "no common seed", 1: "one seed"}
            return f"{reasons.get(self.n, 'no spread')}: no statement"
        if self.p < 1 - LEVEL:
            return more if self.mean > 0 else less
        # The interval is of one test, p of all of them: without a word between, the two could contradict each other.
        return UNSEEN if self.interval.low <= 0 <= self.interval.high else UNCERTAIN


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    """Of figures by seed, over the seeds that both have; its p is not corrected."""
    found = paired_differences(ours, theirs)
    return Difference(fmean(found) if found else None, t_interval(found), t_test(found), len(found))


def corrected(family: Sequence[Difference]) -> list[Difference]:
    """With p values corrected for their number, by Holm's method."""
    return [one._replace(p=p) for one, p in zip(family, holm([one.p for one in family]), strict=True)]
