"""Rows measured against a baseline, over the seeds that both have."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kd.errors import UserError
from kd.report.rows import Role, Row
from kd.report.statistics import LEVEL, VERDICT_NOTE, Difference, corrected, difference, paired_differences


class Comparison(NamedTuple):
    """One row's test accuracy minus the baseline's, seed by seed."""

    row: Row
    baseline: Row
    difference: Difference
    """A fraction of 1; its p is corrected by Holm's method for the number of rows that are compared."""

    @property
    def by_seed(self) -> list[float]:
        """The difference of each common seed, by seed."""
        return paired_differences(_by_seed(self.row), _by_seed(self.baseline))

    @property
    def verdict(self) -> str:
        """In plain words."""
        return self.difference.in_words("better", "worse")


def compare(rows: Sequence[Row], name: str | None = None) -> list[Comparison]:
    """Every student against the baseline of its data set.

    Args:
        rows: of all roles; teachers are left out.
        name: the baseline's label or method. None for the only student trained on labels alone; nothing is
            compared on a data set that has none, or several.

    Raises:
        UserError: if no row has that name, or several of one data set have.
    """
    baselines = _baselines(rows, name)
    pairs = [(row, baselines[row.first.dataset]) for row in rows if row.first.dataset in baselines]
    pairs = [(row, base) for row, base in pairs if row is not base and row.role is not Role.TEACHER]
    found = corrected([difference(_by_seed(row), _by_seed(base)) for row, base in pairs])
    return [Comparison(row, base, one) for (row, base), one in zip(pairs, found, strict=True)]


def _baselines(rows: Sequence[Row], name: str | None) -> dict[str, Row]:
    """By data set."""
    students = [row for row in rows if row.role is not Role.TEACHER]
    if name is None:
        named = [row for row in students if row.role is Role.ALONE]
    else:
        named = [row for row in students if row.label == name] or [row for row in students if row.first.method == name]
    found: dict[str, list[Row]] = {}
    for row in named:
        found.setdefault(row.first.dataset, []).append(row)
    several = [row for mates in found.values() for row in mates if len(mates) > 1]
    if name is not None and (several or not named):
        said = f"is the name of {len(several)} rows" if several else "is not the name of a student"
        raise UserError(f"baseline {name!r} {said}; give one of: {_listed(several or students)}")
    return {dataset: mates[0] for dataset, mates in found.items() if len(mates) == 1}


def _listed(rows: Iterable[Row], most: int = 12) -> str:
    labels = [repr(row.label) for row in rows]
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def _by_seed(row: Row) -> dict[int, float]:
    return {run.seed: run.test_acc for run in row.runs if run.test_acc is not None}


def by_baseline(comparisons: Sequence[Comparison]) -> list[tuple[str, list[Comparison]]]:
    """The baselines' labels, of which every data set has one, and what is compared with each."""
    found: dict[int, tuple[str, list[Comparison]]] = {}
    for one in comparisons:
        found.setdefault(id(one.baseline), (one.baseline.label, []))[1].append(one)
    return list(found.values())


def reading(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader of the comparison, or of a report without one, must know."""
    if not comparisons:
        unsure = sum(row.role is Role.ALONE for row in rows) > 1
        return ["Nothing is compared: several rows could be the baseline; name one with --baseline."] if unsure else []
    notes = [
        "Differences are in test accuracy, in points, over the seeds that a row and the baseline have in common. "
        "They compare; they choose nothing."
    ]
    tests = sum(one.difference.p is not None for one in comparisons)
    if tests:
        notes.append(
            f"The intervals of the differences ({100 * LEVEL:.0f} %, Student's t) tell of what differs between the "
            "student's seeds only, not of other teachers or test images. p is that of the paired t test, corrected by "
            f"Holm's method for {tests} comparison{'s' * (tests > 1)}; the intervals are not. {VERDICT_NOTE}"
        )
    return notes
