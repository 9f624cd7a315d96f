"""Chosen pairs of rows, compared and named: the tables of a study that asks more than one question."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.report.comparison import Comparison, accuracies, contrasts, refusal
from kd.report.crossed import Crossed, Figure, components, sources
from kd.report.effects import equivalence_p, seeds_needed, sign_flip_p, smallest_detectable, spreads
from kd.report.numbers import interval_text, p_value, percent, plus_minus, points, probability
from kd.report.rows import Row
from kd.report.statistics import Difference, corrected, difference, images_interval, t_test
from kd.report.tables import between_teachers, markdown

Rights = NDArray[np.float64]
"""(n, M), 1 where the network of a seed gets a test image right, else 0."""


class Measure(NamedTuple):
    """A figure of records, and how it is written."""

    figure: Figure
    factor: float = 100
    digits: int = 2


class Contrast(NamedTuple):
    """One row compared with another one, by their labels."""

    name: str
    ours: str
    theirs: str
    seeds: Sequence[int] | None = None
    """Those that count; None for all that both have."""


def compared(rows: Mapping[str, Row], family: Sequence[Contrast]) -> list[Comparison]:
    """Compare rows, given by their labels; p values are corrected for the number of comparisons."""
    return contrasts([_pair(rows, contrast) for contrast in family])


def _pair(rows: Mapping[str, Row], contrast: Contrast) -> tuple[Row, Row]:
    """Return the two rows of a contrast, with the seeds that count."""
    ours, theirs = rows[contrast.ours], rows[contrast.theirs]
    return (ours, theirs) if contrast.seeds is None else (ours.of(contrast.seeds), theirs.of(contrast.seeds))


def to_markdown(rows: Mapping[str, Row], *families: Sequence[Contrast], accuracy: bool = False) -> str:
    """Return comparisons as a Markdown table; p values are corrected within each family.

    Args:
        rows: rows by label.
        families: what is compared.
        accuracy: whether to give the test accuracy of the first row of each pair, in place of p and what is detectable.
    """
    lines = []
    for family in families:
        for contrast, found in zip(family, compared(rows, family), strict=True):
            mean, interval, p, n, _ = found.difference
            more = [plus_minus(found.row.test_acc)] if accuracy else [p_value(p), percent(found.detectable)]
            gain = [points(mean), interval_text(interval, "+", n)]
            lines.append([contrast.name, str(n), *gain, *more, found.verdict])
    more = ["test accuracy, %"] if accuracy else ["p (Holm)", "detectable"]
    headers = ["compared", "n", "difference, points", "95 % interval", *more, "in words"]
    return markdown(headers, lines, left=["in words"])


def gains_apart(rows: Mapping[str, Row], family: Sequence[tuple[str, Contrast, Contrast]]) -> list[Difference]:
    """Compare gains: what the first contrast of each pair gains minus what the second does, seed by seed.

    The p values are corrected for the number of pairs.
    """

    def gain(pair: tuple[Row, Row]) -> dict[int, float]:
        ours, theirs = map(accuracies, pair)
        return {seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()}

    pairs = [[_pair(rows, contrast) for contrast in contrasted] for _, *contrasted in family]
    return corrected(
        [difference(gain(first), gain(second), 2.0, refusal((*first, *second))) for first, second in pairs]
    )


def gains_to_markdown(rows: Mapping[str, Row], family: Sequence[tuple[str, Contrast, Contrast]]) -> str:
    """Return gains that are compared as a Markdown table."""
    lines = [
        [name, str(d.n), points(d.mean), interval_text(d.interval, "+", d.n), p_value(d.p), d.in_words("more", "less")]
        for (name, _, _), d in zip(family, gains_apart(rows, family), strict=True)
    ]
    headers = ["gains compared", "n", "difference, points", "95 % interval", "p (Holm)", "in words"]
    return markdown(headers, lines, left=["in words"])


def certainty(found: Mapping[str, Comparison], rights: Sequence[tuple[Rights, Rights]], margin: float) -> str:
    """Return a Markdown table of how certain differences are, with a column for each.

    Args:
        found: comparisons by name, each with an interval.
        rights: what the two rows of each get right.
        margin: the greatest difference that does not matter, a fraction of 1.
    """
    each = list(found.values())
    images = [images_interval(ours > 0, theirs > 0) for ours, theirs in rights]
    spread = [stdev(c.by_seed) for c in each]
    half = f"{100 * margin:g} points"
    lines = [
        ["difference, points", *(points(c.difference.mean) for c in each)],
        ["n", *(str(c.difference.n) for c in each)],
        ["95 % interval over seeds", *(interval_text(c.difference.interval, "+") for c in each)],
        ["95 % interval over test images", *(interval_text(interval, "+") for interval in images)],
        ["seeds in which it is positive", *(str(sum(d > 0 for d in c.by_seed)) for c in each)],
        ["probability of a gain with another seed, %", *(probability(c.probability) for c in each)],
        ["p, paired t test", *(p_value(t_test(c.by_seed)) for c in each)],
        ["p, sign-flip test", *(p_value(sign_flip_p(c.by_seed)) for c in each)],
        [f"p of the test for equivalence within ±{half}", *(p_value(equivalence_p(c.by_seed, margin)) for c in each)],
        ["smallest difference that one test of 3 seeds finds", *(percent(smallest_detectable(s, 3)) for s in spread)],
        ["the same, 6 seeds", *(percent(smallest_detectable(s, 6)) for s in spread)],
        [f"seeds that find {half}", *(str(seeds_needed(s, margin) or "") for s in spread)],
    ]
    return markdown(["", *found], lines)


def variation(rights: Mapping[str, Rights | NDArray[np.bool_]], first: str = "") -> str:
    """Return a Markdown table of what accuracies and gains vary by: standard deviations, in points.

    Args:
        rights: what a row gets right, by name; for a gain, the difference of two. Those of too few seeds are left out.
        first: the header of the names.

    Returns:
        The table; empty if nothing is left.
    """
    headers = [first, "n", "between seeds, on these images", "between seeds, on all images", "between test splits"]
    found = [(name, str(len(right)), spreads(right)) for name, right in rights.items()]
    lines = [[name, n, *map(percent, spread)] for name, n, spread in found if spread]
    return markdown(headers, lines) if lines else ""


def each_teacher(methods: Mapping[str, Crossed], baseline: Row) -> str:
    """Return a Markdown table of differences from a baseline with each teacher by itself, each with its interval.

    The intervals speak of new seeds with this one teacher, as a study of one teacher would give them.
    """
    lines = []
    for name, method in methods.items():
        alone = [difference(accuracies(row), accuracies(baseline), 1.0) for row in method.rows]
        lines.append([name, *(f"{points(d.mean)} ({interval_text(d.interval, '+')})" for d in alone)])
    counts = range(len(next(iter(methods.values())).rows))
    return markdown(["minus labels alone, points", *(f"teacher {number}" for number in counts)], lines)


def over_teachers(methods: Mapping[str, Crossed], baseline: Row, measures: Mapping[str, Measure]) -> str:
    """Return a Markdown table of what methods change, with intervals that speak of new teachers and new seeds.

    Args:
        methods: over teachers and seeds, by name.
        baseline: their seeds without a teacher.
        measures: what is measured, by name: a line each.
    """
    lines = []
    for name, (figure, factor, digits) in measures.items():
        seeds = next(iter(methods.values())).seeds
        base = fmean(value for run in baseline.runs if run.seed in seeds and (value := figure(run)) is not None)
        lines.append([name, f"{factor * base:.{digits}f}"])
        for method in methods.values():
            minus = method.minus(baseline, figure)
            if minus is None:
                raise UserError(f"{name}: not every seed of these runs has it")
            found = components(factor * minus)
            interval = " to ".join(f"{bound:+.{digits}f}" for bound in found.interval)
            lines[-1].append(f"{found.mean:+.{digits}f} ({interval})")
    return markdown(["", "labels alone", *methods], lines)


def sources_to_markdown(rights: Mapping[str, NDArray[np.float64]]) -> str:
    """Return a Markdown table of what accuracies and gains vary by: standard deviations, in points.

    Args:
        rights: what students get right, (teachers, seeds, images), by name; for a gain, the difference of two.
    """
    lines = []
    for name, right in rights.items():
        found = sources(right)
        trained = found.trained
        deviations = [between_teachers(trained), *map(percent, (trained.seed, trained.rest, found.images))]
        sign = "+" if right.min() < 0 else ""
        intervals = [interval_text(interval, sign) for interval in (trained.interval, found.interval)]
        lines.append([name, percent(trained.mean), *deviations, *intervals])
    headers = ["", "mean", "between teachers", "between seeds", "rest", "between test splits"]
    headers += ["95 % interval: new teachers and seeds", "and new test images"]
    return markdown(headers, lines)
