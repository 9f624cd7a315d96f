"""What paired differences over a few seeds allow to say beyond their mean. Pure functions, on scipy."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from kd.report.statistics import FEWEST, LEVEL, Interval, margin_p, standard_error

POWER = 0.8
"""Share of sweeps in which a difference is to be found."""
ENUMERATED = 16
"""Number of seeds up to which all signs are tried: 2^16 of them."""
FEWEST_BCA = 30
"""Number of seeds below which there is no bootstrap interval. In simulated sweeps of a normal distribution, BCa's
interval of 95 % covers the mean in 76 % with 3 seeds, 86 % with 6, 89 % with 10 and 93 % with 30."""
MOST_SEEDS = 10_000


class Probability(NamedTuple):
    """A probability and its interval, both within [0, 1]."""

    estimate: float
    interval: Interval


def better_probability(differences: Sequence[float]) -> Probability | None:
    """Return the probability that ours beats theirs with another seed.

    After Bouthillier et al. (2021, arXiv 2103.03098), but not by a bootstrap:
    Phi(mean / standard deviation), for differences of a normal distribution, with the interval that follows from the
    noncentral t distribution. It is exact; a bootstrap over six seeds that all gained would claim 100 to 100 %, and
    where the probability is 93 % such an interval covers it in a third of the sweeps only.

    Args:
        differences: ours minus theirs, by seed. None of fewer than `FEWEST`, or of equal ones.
    """
    if standard_error(differences) is None:
        return None
    n, effect = len(differences), float(np.mean(differences) / np.std(differences, ddof=1))
    t = min(max(effect * math.sqrt(n), -1e4), 1e4)  # farther out scipy does not end, and the bounds are 0 or 1
    low, high = (float(scipy.special.nctdtrinc(n - 1, p, t)) for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    bounds = Interval(*(float(scipy.special.ndtr(bound / math.sqrt(n))) for bound in (low, high)))
    return Probability(float(scipy.special.ndtr(effect)), bounds)


def equivalence_p(differences: Sequence[float], margin: float) -> float | None:
    """Return the p value of the mean lying outside of -margin to margin: two one-sided t tests (Schuirmann 1987).

    A small one says that the two are equivalent; a large p of a test for a difference does not.

    Args:
        differences: ours minus theirs, by seed. None of fewer than `FEWEST`, or of equal ones.
        margin: the greatest difference that does not matter, > 0; stated before the figures are looked at.

    Raises:
        ValueError: unless margin > 0.
    """
    if not margin > 0:
        raise ValueError(f"margin must be > 0, not {margin}")
    error = standard_error(differences)
    if error is None:
        return None
    return margin_p(float(np.mean(differences)), error, len(differences) - 1, margin)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of differences that are symmetric about 0, by a test that needs no distribution.

    Fisher's permutation test: the share of all assignments of signs whose mean is at least as far from 0. With five
    seeds it cannot be below 0.0625. Beyond `ENUMERATED` seeds, signs are drawn 99,999 times.

    Args:
        differences: ours minus theirs, by seed. None of fewer than `FEWEST`, or of equal ones.
    """
    if standard_error(differences) is None:
        return None
    values = np.asarray(differences)
    if len(values) <= ENUMERATED:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
        added = 0
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (99_999, len(values)))
        added = 1  # the assignment that was seen
    extreme = np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-9)
    return float((extreme.sum() + added) / (len(extreme) + added))


def bca_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return the bootstrap interval of the mean, bias-corrected and accelerated (Efron 1987), of 9,999 resamples.

    None of fewer than `FEWEST_BCA` values, which it does not cover at its level, or of equal ones.
    """
    if len(values) < FEWEST_BCA or standard_error(values) is None:
        return None
    rng = np.random.default_rng(0)
    found = scipy.stats.bootstrap((values,), np.mean, confidence_level=level, method="BCa", rng=rng)
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


def smallest_detectable(std: float, n: int, level: float = LEVEL) -> float:
    """Return the true mean difference that a paired t test of n seeds finds in a share `POWER` of the sweeps.

    In the unit of `std`. Of one test: where several are corrected, it is larger.

    Args:
        std: standard deviation of the differences by seed, > 0.
        n: number of seeds, at least 2.
    """
    critical = scipy.special.stdtrit(n - 1, (1 + level) / 2)
    return float(scipy.special.nctdtrinc(n - 1, 1 - POWER, critical)) * std / math.sqrt(n)


def seeds_needed(std: float, effect: float, level: float = LEVEL) -> int | None:
    """Return the number of seeds with which a true difference `effect` is found in a share `POWER` of the sweeps.

    At least `FEWEST`; None where more than `MOST_SEEDS` would be needed.
    """
    numbers = range(FEWEST, MOST_SEEDS + 1)
    place = bisect_left(numbers, -abs(effect), key=lambda n: -smallest_detectable(std, n, level))
    return numbers[place] if place < len(numbers) else None


class Spreads(NamedTuple):
    """Standard deviations of a test accuracy, in fractions of 1."""

    seen: float
    """Over seeds, as measured on these test images."""
    seeds: float
    """Over seeds, on all images of their kind: what training varies (Jordan 2023, arXiv 2304.01910)."""
    images: float
    """Spread of the mean accuracy of these networks, over other test images of their number."""


def spreads(correct: NDArray[np.bool_] | NDArray[np.float64]) -> Spreads | None:
    """Split what varies in a test accuracy into seeds and test images.

    The covariance, over seeds, of the accuracies on two disjoint sets of images is the variance on all images of their
    kind, whatever single images add; its mean over all pairs of images has a closed form. It may come out below 0,
    which counts as 0.

    Args:
        correct: (n, M), which of the same M test images the network of each seed gets right; of a gain, 1 where ours
            alone does and -1 where theirs alone does. None of fewer than `FEWEST` seeds or of one image.
    """
    right = np.asarray(correct, dtype=np.float64)
    n, images = right.shape
    if n < FEWEST or images < 2:
        return None
    seen = float(right.mean(axis=1).var(ddof=1))
    single = float(right.var(axis=0, ddof=1).sum())
    true = (images**2 * seen - single) / (images * (images - 1))
    return Spreads(
        math.sqrt(seen), math.sqrt(max(true, 0.0)), float(right.mean(axis=0).std(ddof=1)) / math.sqrt(images)
    )


def equal_size(accuracy: float, sizes: Mapping[int, float]) -> float | None:
    """Return the number of parameters with which networks of another kind reach an accuracy.

    Linear between their sizes on a logarithmic scale; None outside of what they reach, or where a larger one is worse.

    Args:
        accuracy: to be reached, a fraction of 1.
        sizes: accuracies of the others by their number of parameters.
    """
    counts = sorted(sizes)
    reached = [sizes[count] for count in counts]
    if not reached[0] <= accuracy <= reached[-1] or any(b <= a for a, b in pairwise(reached)):
        return None
    return float(np.exp(np.interp(accuracy, reached, np.log(counts))))
