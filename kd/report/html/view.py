"""What the page shows of rows and comparisons, as JSON has it. Accuracies are in percent, differences in points."""

import math
import re
from collections.abc import Sequence
from typing import Any

from kd.report import tuning
from kd.report.axes import Sweep, grid, logarithmic, sizes, sweeps
from kd.report.comparison import Comparison, baseline_name, comparison_notes
from kd.report.crossed import ACROSS_NOTES, Across, across
from kd.report.html.headline import headline
from kd.report.html.runs import details
from kd.report.numbers import interval_text, points
from kd.report.ranking import leaders
from kd.report.rows import Role, Row
from kd.report.style import Colour, looks
from kd.report.summary import Summary
from kd.report.sweeps import MOST_LINES, measured, top_lines
from kd.report.tables import CERTAINTY, Cells, across_cells, columns
from kd.runs.results import Result

Json = dict[str, Any]

MOST_DRAWN = 30
"""Rows of a data set in bars and curves; the table has all of them."""
MOST_EPOCHS = 120
"""Points of a curve; of a longer one, evenly spaced epochs and the last."""
MOST_SWEEPS = 12
SHAPES = {"-": "circle", "--": "square", ":": "triangle-up"}
"""Points by the dash of a row's lines: where the hues are used up, rows of one colour differ in both."""
CURVES = (
    ("validation accuracy, %", "epoch_val_acc", 100.0),
    ("validation loss, NLL", "epoch_val_loss", 1.0),
    ("training accuracy, %", "epoch_train_acc", 100.0),
    ("training loss, each method's own", "epoch_train_loss", 1.0),
)
"""Curves by title: field of the record, and factor."""


def view(summary: Summary, comparisons: Sequence[Comparison]) -> Json:
    """Return everything that the page shows but for predictions and images."""
    compared = {id(comparison.row): comparison for comparison in comparisons}
    ids = {id(row): f"r{place}" for place, row in enumerate(summary.rows)}
    parts = summary.by_dataset()
    drawn: set[str] = set()
    datasets, swept = [], []
    for part in parts:
        places, remark = leaders(part.rows, MOST_DRAWN)
        drawn |= {ids[id(part.rows[place])] for place in places}
        own = set(map(id, part.rows))
        here = [comparison for comparison in comparisons if id(comparison.row) in own]
        datasets.append(
            {
                "name": part.rows[0].first.dataset,
                "headline": headline(part.rows, here),
                "baseline": baseline_name(here) if here else None,
                "remark": remark,
            }
        )
        found = [*sweeps(part.rows), *sizes(part.rows)][:MOST_SWEEPS]
        swept += [_sweep(sweep, part.rows[0].first.dataset, ids) for sweep in found]
    colours = [look for part in parts for look in looks(part.rows)]
    return {
        "title": f"Results on {summary.datasets}",
        "datasets": datasets,
        "table": _table(summary.rows, compared),
        "rows": [
            _row(row, ids[id(row)], compared.get(id(row)), look.colour, look.dash, ids[id(row)] in drawn)
            for row, look in zip(summary.rows, colours, strict=True)
        ],
        "curves": _curves([row for row in summary.rows if ids[id(row)] in drawn], ids),
        "sweeps": [sweep for sweep in swept if sweep["points"]],
        "further": _further(parts, across(summary.rows, comparisons)),
        "notes": [*summary.notes, *comparison_notes(summary.rows, comparisons)],
    }


def _row(row: Row, name: str, compared: Comparison | None, colour: Colour, dash: str, drawn: bool) -> Json:
    interval = row.test_interval
    return {
        "id": name,
        "label": row.label,
        "data": row.first.dataset,
        "colour": [_hex(colour), _hex(_lighter(colour))],
        "dash": {"-": [1, 0], "--": [6, 3], ":": [2, 3]}[dash],
        "shape": "diamond" if row.role is Role.TEACHER else SHAPES[dash],
        "drawn": drawn,
        "n": row.n,
        "acc": row.test_acc and percent(row.test_acc.mean),
        "std": row.test_acc and row.test_acc.std and percent(row.test_acc.std),
        "interval": interval and [percent(interval.low), percent(interval.high)],
        "seeds": [[run.seed, percent(run.test_acc)] for run in row.runs if run.test_acc is not None],
        "teacher": percent(row.teacher_acc) if row.own_teacher else None,
        "difference": compared and _difference(compared),
        "costs": _costs(row),
        **details(row),
    }


def _difference(compared: Comparison) -> Json | None:
    difference = compared.difference
    if difference.mean is None:
        return None
    interval = difference.interval
    return {
        "mean": percent(difference.mean),
        "interval": interval and [percent(interval.low), percent(interval.high)],
        "seeds": [percent(value) for value in compared.by_seed],
        "verdict": compared.verdict,
    }


def _costs(row: Row) -> Json:
    """Return what a network or its training takes, as far as the records tell."""
    seconds = row.train_seconds
    known = {
        "parameters": row.params,
        "multiply-adds": row.multiply_adds,
        "training time, min": seconds and rounded(seconds / 60),
    }
    return {name: value for name, value in known.items() if value}


# Table


_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "s": 1.0, "min": 60.0, "h": 3600.0}


def _table(rows: Sequence[Row], compared: dict[int, Comparison]) -> Json:
    """Return the columns, and for each row its cells."""
    several = len({row.first.dataset for row in rows}) > 1
    filled = [column for column in columns(rows) if several or column.header != "data"]
    headers: list[list[Any]] = [[column.header, column.numeric] for column in filled]
    cells = [[column.cell(row) for column in filled] for row in rows]
    if compared:
        baselines = list(dict.fromkeys(comparison.baseline.label for comparison in compared.values()))
        minus = f"minus {baselines[0] if len(baselines) == 1 else 'baseline'}, points"
        # Right of the accuracy: the verdicts are what a reader looks for.
        place = 1 + max(headers.index([column, True]) for column in _ACCURACY if [column, True] in headers)
        added = [[minus, True], ["interval of it", True], ["in words", False]]
        added += [[header, True] for header in CERTAINTY]
        headers[place:place] = added
        for row, line in zip(rows, cells, strict=True):
            comparison = compared.get(id(row))
            line[place:place] = _difference_cells(comparison) if comparison else [""] * len(added)
    numbers = [numeric for _, numeric in headers]
    order = [[sort_value(cell) if x else None for cell, x in zip(line, numbers, strict=True)] for line in cells]
    return {"headers": headers, "cells": cells, "order": order}


def _further(parts: Sequence[Summary], lines: Sequence[Across]) -> list[Json]:
    """Return the tables that some reports have besides that of the rows: tuning budgets, and several teachers."""
    found = []
    for part in parts:
        tuned = tuning.budgets(part.rows, part.cut_short)
        if len(tuned) > 1:
            found.append(_plain("Tuning", tuning.cells(tuned), [tuning.NOTE], part.rows[0].first.dataset))
    if lines:
        found.append(_plain("New teachers and new seeds", across_cells(lines), ACROSS_NOTES))
    return found


def _plain(title: str, table: Cells, notes: Sequence[str], dataset: str | None = None) -> Json:
    """Return a table that is neither sorted nor filtered; without a data set, it is shown with each."""
    headers = [[name, i > 0 and name not in table.left] for i, name in enumerate(table.headers)]
    return {"title": title, "headers": headers, "cells": table.lines, "notes": list(notes), "data": dataset}


_ACCURACY = ("n", "test accuracy, %", "95 % interval")


def _difference_cells(comparison: Comparison) -> list[str]:
    difference = comparison.difference
    gain = [points(difference.mean), interval_text(difference.interval, "+")]
    return [*gain, comparison.verdict, *(cell(comparison) for cell in CERTAINTY.values())]


def sort_value(cell: str) -> float | None:
    """Return the number that a cell begins with, in units of its own: "1.5 min" is 90; None without one."""
    found = re.match(r"(?:< )?([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)(?: ([a-zA-Z]+)$)?", cell)
    return float(found[1].replace(",", "")) * _UNITS.get(found[2] or "", 1.0) if found else None


# Curves


def _curves(rows: Sequence[Row], ids: dict[int, str]) -> list[Json]:
    found = []
    for title, field, scale in CURVES:
        lines = {ids[id(row)]: _curve(row.runs, field, scale) for row in rows}
        known = {name: line for name, line in lines.items() if line}
        if known:
            found.append({"title": title, "lines": known})
    return found


def _curve(runs: Sequence[Result], field: str, scale: float) -> Json | None:
    """Return epochs, means and standard deviations over the seeds, of the epochs that all of them have."""
    seeds: list[list[float]] = [getattr(run, field) for run in runs]
    length = min(map(len, seeds))
    if not length:
        return None
    step = math.ceil(length / MOST_EPOCHS)
    epochs = [*range(0, length - 1, step), length - 1]
    spreads = [_spread([seed[epoch] for seed in seeds], scale) for epoch in epochs]
    return {
        "epochs": [epoch + 1 for epoch in epochs],
        "mean": [mean for mean, _ in spreads],
        "std": [std for _, std in spreads] if len(runs) > 1 else None,
    }


def _spread(values: Sequence[float], scale: float) -> tuple[float | None, float | None]:
    if not all(map(math.isfinite, values)):
        return None, None
    mean = math.fsum(values) / len(values)
    square = math.fsum((value - mean) ** 2 for value in values)
    return rounded(scale * mean), rounded(scale * math.sqrt(square / max(1, len(values) - 1)))


# Sweeps


def _sweep(sweep: Sweep, dataset: str, ids: dict[int, str]) -> Json:
    """Return a sweep's points, as the picture of it has them."""
    metric, complete = measured(sweep)
    lines, remark = top_lines(complete.lines, metric, MOST_LINES)
    left_out = f"{complete.left_out} without a place here left out" if complete.left_out else ""
    points: list[Json] = []
    for line in lines:
        for place, row in line.points.items():
            at = {"x": place[0], **({"y": place[1]} if len(place) > 1 else {})}
            figures = {"acc": rounded(metric.mean(row)), "std": rounded(metric.std(row)) or None}
            points.append({"id": ids[id(row)], "line": line.name, **at, **figures})
    return {
        "data": dataset,
        "axes": sweep.axes,
        "logarithmic": logarithmic(sweep.axes, lines),
        "metric": metric.name,
        "remark": "; ".join(filter(None, [remark, left_out])),
        "loose": bool(lines) and len(sweep.axes) > 1 and grid(lines)[2],
        "points": points,
    }


# Numbers and colours


def percent(fraction: float | None) -> float | None:
    """Return a fraction in percent with three decimals."""
    return None if fraction is None else round(100 * float(fraction), 3)


def rounded(value: float) -> float:
    """Return a number with five digits."""
    return float(f"{value:.5g}")


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _lighter(colour: Colour) -> Colour:
    """Mix a colour with white until it stands out from a dark background."""
    red, green, blue = colour
    while 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.42:
        red, green, blue = (part + 0.1 * (1 - part) for part in (red, green, blue))
    return red, green, blue
