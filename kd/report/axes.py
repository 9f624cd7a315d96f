"""Which knobs were swept: read from what rows have in common and what sets them apart, not from any list of knobs."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kd.report.knobs import knob_text, number
from kd.report.rows import Role, Row
from kd.runs.results import Knob

Setting = float | str | None


class Line(NamedTuple):
    """Rows that differ in the swept knobs only."""

    name: str
    """Its method, and what sets it apart from the method's other lines."""
    method: str
    points: dict[tuple[float, ...], Row]
    """By the values of the sweep's axes, in ascending order."""


class Sweep(NamedTuple):
    """One or two numeric knobs with several values each, or sizes, on one data set."""

    axes: tuple[str, ...]
    dataset: str
    lines: list[Line]
    left_out: int
    """Rows of the lines' methods that have no number on some axis, or the very same ones as another row."""


SIZE = "parameters"


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """By data set and axes. Methods that swept the same knobs share one; a method that swept none is in none.

    With more than two swept knobs, the two with the most values are the axes and the others tell lines apart.
    No axes are knobs that set the student's size, which `sizes` has, and seeds, whose numbers mean nothing.
    Teachers count where there are no students.
    """
    found: dict[tuple[str, tuple[str, ...]], list[Sweep]] = {}
    for dataset, group in _groups(rows):
        settings = [_settings(row) for row in group]
        varying = _varying(settings)
        tied = _tied(group, settings, varying)
        values = {
            name: {one.get(name) for one in settings} for name in varying if name not in tied and "seed" not in name
        }
        counts = {name: sum(isinstance(value, float) for value in several) for name, several in values.items()}
        swept = [name for name in sorted(counts, key=lambda name: (-counts[name], name)) if counts[name] > 1]
        if swept:
            axes = tuple(sorted(swept[:2], key=str.casefold))
            places = [tuple(one.get(name) for name in axes) for one in settings]
            rest = [name for name in varying if name not in axes]
            found.setdefault((dataset, axes), []).append(_sweep(axes, dataset, group, places, settings, rest))
    return [_joined(several) for several in found.values()]


def sizes(rows: Sequence[Row]) -> list[Sweep]:
    """By data set, where students of different size are: every student by its number of parameters."""
    found = []
    students = [row for row in rows if row.role is not Role.TEACHER and row.params]
    for dataset in dict.fromkeys(row.first.dataset for row in students):
        here = [row for row in students if row.first.dataset == dataset]
        if len({row.params for row in here}) > 1:
            found.append(_joined([_by_size(dataset, group) for _, group in _groups(here)]))
    return found


def _by_size(dataset: str, group: Sequence[Row]) -> Sweep:
    settings = [_settings(row) for row in group]
    varying = _varying(settings)
    rest = [name for name in varying if name not in _tied(group, settings, varying)]
    return _sweep((SIZE,), dataset, group, [(float(row.params or 0),) for row in group], settings, rest)


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of one data set and method; the teachers only if there is nothing else."""
    chosen = [row for row in rows if row.role is not Role.TEACHER] or rows
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in chosen:
        groups.setdefault((row.first.dataset, row.first.method), []).append(row)
    return [(dataset, group) for (dataset, _), group in groups.items()]


def _settings(row: Row) -> dict[str, Setting]:
    """Knobs, overrides and networks by their names; numbers where they are numbers."""
    run = row.first
    named: dict[str, Setting] = {"student": run.student, "teacher": run.teacher}
    named |= {name: _setting(value) for name, value in run.knobs.items()}
    for override in run.variant.split():
        name, _, value = override.lstrip("+").partition("=")
        named[name] = _setting(value)
    if not any(name.rpartition(".")[2] == "epochs" for name in named):
        named["epochs"] = float(run.epochs)
    return named


def _setting(value: Knob) -> Setting:
    as_number = number(value)
    return knob_text(value) if as_number is None else as_number


def _varying(settings: Sequence[dict[str, Setting]]) -> list[str]:
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({one.get(name) for one in settings}) > 1]


def _tied(group: Sequence[Row], settings: Sequence[dict[str, Setting]], varying: Iterable[str]) -> set[str]:
    """Those of the varying settings that a student's size tells already."""
    if len({row.params for row in group}) == 1:
        return set()
    pairs = {name: {(row.params, one.get(name)) for row, one in zip(group, settings, strict=True)} for name in varying}
    return {name for name, seen in pairs.items() if len(seen) == len({params for params, _ in seen})}


def _sweep(
    axes: tuple[str, ...],
    dataset: str,
    group: Sequence[Row],
    places: Sequence[tuple[Setting, ...]],
    settings: Sequence[dict[str, Setting]],
    rest: Sequence[str],
) -> Sweep:
    """One method's rows at their places, a line for each combination of the `rest` of the varying settings."""
    points: dict[tuple[str, ...], dict[tuple[float, ...], Row]] = {}
    for row, place, one in zip(group, places, settings, strict=True):
        numbers = tuple(value for value in place if isinstance(value, float))
        pieces = tuple(f"{name}={knob_text(value)}" for name in rest if (value := one.get(name)) is not None)
        line = points.setdefault(pieces, {})
        if len(numbers) == len(axes):
            line.setdefault(numbers, row)
    method = group[0].first.method
    lines = [Line(" ".join((method, *pieces)), method, dict(sorted(line.items()))) for pieces, line in points.items()]
    return Sweep(axes, dataset, [line for line in lines if line.points], len(group) - sum(len(x.points) for x in lines))


def _joined(several: Sequence[Sweep]) -> Sweep:
    lines = [line for one in several for line in one.lines]
    return several[0]._replace(lines=lines, left_out=sum(one.left_out for one in several))
