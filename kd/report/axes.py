"""Swept knobs, found by what rows have in common and what distinguishes them, not by any list of knobs."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kd.report.knobs import knob_text, number
from kd.report.rows import Role, Row, overrides
from kd.runs.results import Knob

Setting = float | str | None


class Line(NamedTuple):
    """Rows that differ in the swept knobs only."""

    name: str
    """Its method, and what distinguishes it from the method's other lines."""
    method: str
    points: dict[tuple[float, ...], Row]
    """Rows by the values of the sweep's axes, in ascending order."""


class Sweep(NamedTuple):
    """One or two numeric knobs with several values each, or sizes."""

    axes: tuple[str, ...]
    lines: list[Line]
    left_out: int
    """Number of rows of the lines' methods that lack a number on some axis, or share all of them with another row."""


SIZE = "parameters"
MOST_CELLS = 16
"""Cells on a side of a heat map. A larger grid, or one less than a quarter full, is drawn as dots."""


def grid(lines: Sequence[Line]) -> tuple[list[float], list[float], bool]:
    """Return the values on both axes of two, over all lines, and whether they are too many or too thin for cells."""
    first, second = (sorted({place[axis] for line in lines for place in line.points}) for axis in (0, 1))
    fullest = max(len(line.points) for line in lines)
    return first, second, max(len(first), len(second)) > MOST_CELLS or 4 * fullest < len(first) * len(second)


def logarithmic(axes: Sequence[str], lines: Sequence[Line]) -> list[bool]:
    """Return which axes of a picture of these lines are logarithmic."""
    along = [sorted({place[i] for line in lines for place in line.points}) for i in range(len(axes))]
    if len(axes) == 1:
        return [axes[0] == SIZE or geometric(along[0])]
    return [bool(values) and _wide(values) for values in along]


def geometric(values: Sequence[float]) -> bool:
    """Return whether ascending values are nearer to equal ratios than to equal steps, as 1, 2, 4, 8 are."""
    if len(values) < 3 or values[0] <= 0:
        return False
    steps, ratios = np.diff(values), np.diff(np.log(values))
    return bool(np.std(ratios) / np.mean(ratios) < np.std(steps) / np.mean(steps) - 1e-9)


def _wide(values: Sequence[float]) -> bool:
    """Return whether ascending values need a logarithmic axis, by the lower quartile: the lowest may be an outlier."""
    return values[0] > 0 and values[-1] >= 20 * values[len(values) // 4]


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """Find the sweeps in rows of one data set. Methods that swept the same knobs share one; some methods are in none.

    With more than two swept knobs, the two with the most values are the axes. The rest distinguish lines, numbers only
    where most lines have several rows.
    Knobs that set the student's size are left to `sizes`, and seeds are no axes, as their numbers mean nothing.
    Teachers count where there are no students.
    """
    by_axes: dict[tuple[str, ...], list[Sweep]] = {}
    for group in _by_method(rows):
        settings = [_settings(row) for row in group]
        varying = _varying(settings)
        tied = _tied(group, settings, varying)
        values = {
            name: {row.get(name) for row in settings} for name in varying if name not in tied and "seed" not in name
        }
        counts = {name: sum(isinstance(value, float) for value in several) for name, several in values.items()}
        swept = [name for name in sorted(counts, key=lambda name: (-counts[name], name)) if counts[name] > 1]
        if swept:
            axes = tuple(sorted(swept[:2], key=str.casefold))
            places = [tuple(row.get(name) for name in axes) for row in settings]
            rest = [name for name in varying if name not in axes]
            if 2 * len({tuple(row.get(name) for name in rest) for row in settings}) > len(group):
                # As in a random search: numbers distinguish nearly every row, and lines of one point show nothing.
                rest = [name for name in rest if name not in swept]
            by_axes.setdefault(axes, []).append(_sweep(axes, group, places, settings, rest))
    return [_joined(parts) for parts in by_axes.values()]


def sizes(rows: Sequence[Row]) -> list[Sweep]:
    """Return the students of one data set by their number of parameters, if these differ; else nothing."""
    students = [row for row in rows if row.role is not Role.TEACHER and row.params]
    if len({row.params for row in students}) < 2:
        return []
    return [_joined([_by_size(group) for group in _by_method(students)])]


def _by_size(group: Sequence[Row]) -> Sweep:
    settings = [_settings(row) for row in group]
    varying = _varying(settings)
    rest = [name for name in varying if name not in _tied(group, settings, varying)]
    return _sweep((SIZE,), group, [(float(row.params or 0),) for row in group], settings, rest)


def _by_method(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows by method; the teachers only if there are no students."""
    groups: dict[str, list[Row]] = {}
    for row in [row for row in rows if row.role is not Role.TEACHER] or rows:
        groups.setdefault(row.first.method, []).append(row)
    return list(groups.values())


def _settings(row: Row) -> dict[str, Setting]:
    """Return knobs, overrides and networks by their names, numbers as floats."""
    run = row.first
    named: dict[str, Setting] = {"student": run.student, "teacher": run.teacher}
    named |= {name: _setting(value) for name, value in run.knobs.items()}
    for override in overrides(run):
        name, _, value = override.lstrip("+").partition("=")
        named[name] = _setting(value)
    if not any(name.rpartition(".")[2] == "epochs" for name in named):
        named["epochs"] = float(run.epochs)
    return named


def _setting(value: Knob) -> Setting:
    as_number = number(value)
    return knob_text(value) if as_number is None else as_number


def _varying(settings: Sequence[dict[str, Setting]]) -> list[str]:
    """Return the names of the settings that are not the same for all rows."""
    names = dict.fromkeys(name for row in settings for name in row)
    return [name for name in names if len({row.get(name) for row in settings}) > 1]


def _tied(group: Sequence[Row], settings: Sequence[dict[str, Setting]], varying: Iterable[str]) -> set[str]:
    """Return those of the varying settings that the student's size determines."""
    if len({row.params for row in group}) == 1:
        return set()
    sizes = [row.params for row in group]
    pairs = {name: {(size, row.get(name)) for size, row in zip(sizes, settings, strict=True)} for name in varying}
    return {name for name, seen in pairs.items() if len(seen) == len(set(sizes))}


def _sweep(
    axes: tuple[str, ...],
    group: Sequence[Row],
    places: Sequence[tuple[Setting, ...]],
    settings: Sequence[dict[str, Setting]],
    rest: Sequence[str],
) -> Sweep:
    """Put one method's rows at their places: a line for each combination of the `rest` of the varying settings."""
    points: dict[tuple[str, ...], dict[tuple[float, ...], Row]] = {}
    for row, place, setting in zip(group, places, settings, strict=True):
        numbers = tuple(value for value in place if isinstance(value, float))
        pieces = tuple(f"{name}={knob_text(value)}" for name in rest if (value := setting.get(name)) is not None)
        line = points.setdefault(pieces, {})
        if len(numbers) == len(axes):
            line.setdefault(numbers, row)
    method = group[0].first.method
    lines = [Line(" ".join((method, *pieces)), method, dict(sorted(line.items()))) for pieces, line in points.items()]
    return Sweep(axes, [line for line in lines if line.points], len(group) - sum(len(x.points) for x in lines))


def _joined(parts: Sequence[Sweep]) -> Sweep:
    lines = [line for part in parts for line in part.lines]
    return parts[0]._replace(lines=lines, left_out=sum(part.left_out for part in parts))
