"""Rows over several teachers and several seeds: what varies, and intervals that speak of new teachers and new seeds."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from kd.report.comparison import Comparison, in_words, refusal
from kd.report.rows import Role, Row, settings
from kd.report.statistics import FEWEST, LEVEL, RESOLUTION, Difference, Interval, holm, margin_p, t_around, t_p
from kd.runs.results import Result

Figure = Callable[[Result], float | None]
"""A figure of a record, such as its test accuracy."""
_TEACHER_SEED = re.compile(r"teacher_seed=\d+")

ACROSS_NOTES = (
    f"Rows of a method that differ in teacher_seed alone, from {FEWEST} teachers and {FEWEST} seeds on, are taken "
    f"together. These intervals ({100 * LEVEL:.0f} %, two-way analysis of variance, both factors random) speak of new "
    "teachers and new seeds; those above, of new seeds with these teachers.",
    "Between teachers, between seeds, rest: standard deviations of the difference, or of the accuracy where nothing is "
    "compared, in points; in brackets the upper end of the interval of the first, as few teachers tell little of it. "
    "What counts as a seed is all that the seed decides: see data.order_seed.",
    "p is that of the difference's t test with the same error, corrected by Holm's method for the number of lines; the "
    "intervals are not.",
)
"""What a reader of the table must know."""


class Components(NamedTuple):
    """A mean over teachers and seeds, and the standard deviations of what it varies by; all in the figure's unit."""

    mean: float
    interval: Interval
    """Interval of the mean over all teachers and seeds of their kind."""
    teacher: float
    """Between teachers. An estimate below 0 counts as 0, here and in the next one."""
    seed: float
    """Between the student's seeds."""
    rest: float
    """Between pairs of a teacher and a seed, beside both."""
    error: float
    """Standard error of the mean."""
    freedom: float
    """Degrees of freedom of that error."""
    teacher_most: float
    """Upper end of the interval of what is between teachers."""

    @property
    def p(self) -> float | None:
        """Two-sided p value of the mean being 0; None where nothing varies."""
        return None if self.error < RESOLUTION else t_p(self.mean, self.error, self.freedom)

    def equivalence_p(self, margin: float) -> float | None:
        """Return the p value of the mean being `margin` or more from 0, by two one-sided tests; None as for `p`."""
        return None if self.error < RESOLUTION else margin_p(self.mean, self.error, self.freedom, margin)

    def within(self, low: float, high: float) -> "Components":
        """Return the same with an interval that keeps within the range of the figure."""
        return self._replace(interval=self.interval.clipped(low, high))


def components(figures: NDArray[np.float64], level: float = LEVEL) -> Components:
    """Split what varies in figures of every teacher with every seed, by a two-way analysis of variance.

    Both are random: the teachers, and the seeds, are samples of those that might have been taken. The interval is
    Student's t with the degrees of freedom of Satterthwaite (1946); where neither is found to matter, it is that of the
    largest of the three mean squares, which makes it too wide rather than too narrow. What is between teachers has an
    upper end after Williams (1962, Biometrika 49, 278): few teachers tell little of how much teachers differ.

    Args:
        figures: (a, b), one figure for each of a teachers and b seeds; a, b >= `FEWEST`.

    Raises:
        ValueError: if there are fewer.
    """
    a, b = figures.shape
    if min(a, b) < FEWEST:
        raise ValueError(f"{a} teachers and {b} seeds: at least {FEWEST} of each are needed")
    mean = float(figures.mean())
    teachers, seeds = figures.mean(axis=1, keepdims=True) - mean, figures.mean(axis=0, keepdims=True) - mean
    squares = [
        (b * float((teachers**2).sum()) / (a - 1), a - 1),
        (a * float((seeds**2).sum()) / (b - 1), b - 1),
        (float(((figures - mean - teachers - seeds) ** 2).sum()) / ((a - 1) * (b - 1)), (a - 1) * (b - 1)),
    ]
    (teacher, _), (seed, _), (rest, _) = squares
    variance, freedom = max(squares)
    both = teacher + seed - rest
    if both > variance:
        variance, freedom = both, both**2 / sum(square**2 / degrees for square, degrees in squares)
    error = math.sqrt(variance / (a * b))
    return Components(
        mean,
        t_around(mean, error, freedom, level),
        math.sqrt(max(0.0, (teacher - rest) / b)),
        math.sqrt(max(0.0, (seed - rest) / a)),
        math.sqrt(rest),
        error,
        freedom,
        _most_between(teacher, a - 1, rest, (a - 1) * (b - 1), b, level),
    )


def _most_between(square: float, degrees: int, rest: float, rest_degrees: int, each: int, level: float) -> float:
    """Return the upper end of the interval of a standard deviation between groups, from two mean squares."""
    tail = (1 - level) / 2
    least_ratio = scipy.special.fdtri(degrees, rest_degrees, tail)
    least = scipy.special.chdtri(degrees, 1 - tail)
    return math.sqrt(max(0.0, degrees * (square - least_ratio * rest) / (each * least)))


def _test_acc(run: Result) -> float | None:
    return run.test_acc


class Sources(NamedTuple):
    """What a mean over teachers, seeds and test images varies by; all in the figure's unit."""

    trained: Components
    """Components by teachers and seeds, on these test images."""
    images: float
    """Standard error that comes from the images: that of these networks' mean over other test splits of the size."""
    interval: Interval
    """Interval of the mean over all teachers, seeds and images of their kind."""


def sources(right: NDArray[np.float64]) -> Sources:
    """Split what varies in figures of every teacher with every seed on each of the same test images.

    The networks' luck on single images is in both errors; in the interval it counts once.

    Args:
        right: (a, b, M), a figure of a teacher's student of a seed on an image, such as 1 where it is right, else 0;
            of a gain, the difference of two. a, b >= `FEWEST`, M > 1.

    Raises:
        ValueError: if there are fewer teachers or seeds.
    """
    trained, count = components(right.mean(axis=2)), right.shape[2]
    networks = right.reshape(-1, count)
    images = float(networks.mean(axis=0).std(ddof=1)) / math.sqrt(count)
    luck = float(networks.var(axis=0, ddof=1).mean()) / networks.size
    own = t_around(0.0, math.sqrt(max(0.0, images**2 - luck)), count - 1)
    # Of the reaches, and not by the joint error's degrees of freedom: a further source never makes it narrower.
    reach = math.hypot(trained.interval.high - trained.mean, own.high)
    return Sources(trained, images, Interval(trained.mean - reach, trained.mean + reach))


@dataclass(frozen=True)
class Crossed:
    """Rows of one method that differ in the teacher's seed alone, over the seeds that all of them have."""

    label: str
    rows: tuple[Row, ...]
    """One for each teacher."""
    seeds: tuple[int, ...]

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Test accuracies, (teachers, seeds)."""
        return self.figures(_test_acc)

    def figures(self, figure: Figure) -> NDArray[np.float64]:
        """Return a figure that all runs have, (teachers, seeds)."""
        found = [{run.seed: figure(run) for run in row.runs} for row in self.rows]
        return np.array([[row[seed] for seed in self.seeds] for row in found], dtype=np.float64)

    def minus(self, baseline: Row, figure: Figure = _test_acc) -> NDArray[np.float64] | None:
        """Return a figure minus that of the baseline's same seeds; None if it lacks one of them."""
        known = {run.seed: figure(run) for run in baseline.runs}
        base = [known.get(seed) for seed in self.seeds]
        return None if None in base else self.figures(figure) - np.array(base, dtype=np.float64)


def crossed(rows: Sequence[Row]) -> list[Crossed]:
    """Find the rows that differ in `teacher_seed` alone, with at least `FEWEST` teachers and common seeds."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.role is Role.DISTILLED:
            alike = replace(row.first, variant=_without_teacher_seed(row.first.variant))
            groups.setdefault((row.trial, settings(alike)), []).append(row)
    return [found for group in groups.values() if (found := _crossed(group))]


def _crossed(group: Sequence[Row]) -> Crossed | None:
    by_teacher = {row.first.teacher_id: row for row in group}
    if None in by_teacher or len(by_teacher) < max(FEWEST, len(group)):
        return None
    tested = [{run.seed for run in row.runs if run.test_acc is not None} for row in group]
    seeds = tuple(sorted(set.intersection(*tested)))
    label = _without_teacher_seed(group[0].label)
    return Crossed(label, tuple(group), seeds) if len(seeds) >= FEWEST else None


def _without_teacher_seed(text: str) -> str:
    return " ".join(word for word in text.split(" ") if not _TEACHER_SEED.fullmatch(word))


def _baseline(found: Crossed, comparisons: Sequence[Comparison]) -> Row | None:
    """Return what the same rows are compared with; None if that has a teacher, of which it would be a single one."""
    baseline = next((c.baseline for c in comparisons if any(c.row is row for row in found.rows)), None)
    return baseline if baseline is not None and baseline.role is Role.ALONE else None


class Across(NamedTuple):
    """A line of the table on new teachers and new seeds."""

    label: str
    teachers: int
    seeds: int
    accuracy: Components
    difference: Components | None
    """From the baseline's same seeds; None without one that has them all."""
    p: float | None
    """p of the difference, corrected by Holm's method for the number of lines."""
    margin: float | None
    """The greatest difference that does not matter, a fraction of 1, if one was stated."""
    equivalence: float | None
    """p of the test for equivalence within the margin, corrected likewise; None without a margin."""
    refused: str = ""
    """Why nothing is said of the difference."""

    @property
    def verdict(self) -> str:
        """The outcome in plain words; empty where nothing is compared."""
        if self.difference is None:
            return ""
        tested = Difference(self.difference.mean, self.difference.interval, self.p, self.seeds, self.refused)
        return in_words(tested, self.margin, self.equivalence)


def across(rows: Sequence[Row], comparisons: Sequence[Comparison] = ()) -> list[Across]:
    """Return a line for each method that was taught by several teachers with the same seeds.

    What is tested is what `comparisons` test, by the same margin.
    """
    groups = crossed(rows)
    baselines = [_baseline(found, comparisons) for found in groups]
    minus = [None if base is None else found.minus(base) for found, base in zip(groups, baselines, strict=True)]
    differences = [None if values is None else components(values) for values in minus]
    if len({row.first.dataset for row in rows}) > 1:
        groups = [replace(group, label=f"{group.label} on {group.rows[0].first.dataset}") for group in groups]
    margin = comparisons[0].margin if comparisons else None
    return _lines(groups, differences, margin, [[b] if b else [] for b in baselines])


def against(methods: Sequence[Crossed], other: Crossed, margin: float | None = None) -> list[Across]:
    """Return a line for each method, compared with another one of the same teachers and seeds.

    Args:
        methods, other: of teachers in the same order, with the same seeds.
        margin: the greatest difference that does not matter, a fraction of 1: smaller ones are tested for.
    """
    minus = [components(method.accuracies - other.accuracies) for method in methods]
    return _lines(methods, minus, margin, [other.rows] * len(methods))


def _lines(
    groups: Sequence[Crossed],
    differences: Sequence[Components | None],
    margin: float | None,
    compared_with: Sequence[Sequence[Row]],
) -> list[Across]:
    """Return a line for each group, of its difference from other rows."""
    why = [refusal((*group.rows, *rows)) for group, rows in zip(groups, compared_with, strict=True)]
    tested = [None if refused else d for d, refused in zip(differences, why, strict=True)]
    corrected = holm([d and d.p for d in tested])
    beyond = holm([None if d is None or margin is None else d.equivalence_p(margin) for d in tested])
    return [
        Across(
            group.label,
            len(group.rows),
            len(group.seeds),
            components(group.accuracies).within(0.0, 1.0),
            difference and difference.within(-1.0, 1.0),
            p,
            margin,
            equivalence,
            refused,
        )
        for group, difference, p, equivalence, refused in zip(groups, differences, corrected, beyond, why, strict=True)
    ]
