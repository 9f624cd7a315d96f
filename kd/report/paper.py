"""Tables for LaTeX, and pictures as PDF: a report for a paper."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.report.comparison import OF_TEACHING, Comparison, by_baseline, other_settings_note
from kd.report.crossed import Across, across, crossed
from kd.report.notes import counted, joined, mixed_precision, shared_order, unnamed_knobs
from kd.report.numbers import interval_text, p_value, percent, plus_minus, points
from kd.report.page import Report
from kd.report.rows import Role, Row, Spread, overrides, titled
from kd.report.statistics import LEVEL
from kd.report.summary import Summary
from kd.report.text import latex, slug

TABLES = "tables.tex"
STAR = "$^{*}$"
"""Marks what differs from the baseline."""
Lines = list[list[str]]
"""Cells in LaTeX, by line."""


class Table(NamedTuple):
    """What a table shows, in LaTeX."""

    columns: str
    """Their alignments, as in "lrr"."""
    groups: list[Lines]
    """With rules between them."""
    caption: str
    name: str = ""
    """What tells it from another table of the same data, for references."""


def for_paper(made: Report, summary: Summary, comparisons: Sequence[Comparison]) -> Report:
    """Add `TABLES`, and every picture as PDF, to a report."""
    pdf = [picture._replace(name=Path(picture.name).with_suffix(".pdf").name) for picture in made.pictures]
    return Report(made.texts | {TABLES: to_latex(summary, comparisons)}, [*made.pictures, *pdf])


def to_latex(summary: Summary, comparisons: Sequence[Comparison]) -> str:
    """Return a table of each data set for LaTeX, each with a caption that says how its figures are to be read.

    Where rows have several baselines, such as one for each student, the table has a column for each, and a line for
    each method; else a line for each row, and columns for its difference from the baseline. Methods that several
    teachers have taught with the same seeds are in a table besides, with intervals for new teachers.
    """
    tables = [r"% \usepackage{booktabs}"]
    labels: Counter[str] = Counter()
    for part in summary.by_dataset():
        compared = [comparison for comparison in comparisons if any(comparison.row is row for row in part.rows)]
        if len(by_baseline(compared)) > 1:
            shown = {id(row) for comparison in compared for row in (comparison.row, comparison.baseline)}
            left = [row.label for row in part.rows if row.role is not Role.TEACHER and id(row) not in shown]
            tables += [f"% Not in this table: {latex(joined(left, ', '))}"] if left else []
            made = _by_baseline(compared)
        else:
            made = _by_row(part.rows, compared)
        tables.append(_table(titled(part.rows), made, labels))
    if lines := across(summary.rows, comparisons):
        rows = [row for found in crossed(summary.rows) for row in found.rows]
        tables.append(_table(titled(rows), _across(lines, rows, comparisons), labels))
    return "\n\n".join(tables) + "\n"


def _by_row(rows: Sequence[Row], compared: Sequence[Comparison]) -> Table:
    """Return a table with a line for each row."""
    found = {id(comparison.row): comparison for comparison in compared}
    groups: dict[int, Lines] = {}
    for row in rows:
        line = [latex(row.label) + _lost(row), str(row.n), _plus_minus(row.test_acc)]
        if compared:
            line += _difference(found[id(row)]) if id(row) in found else [""] * 3
        groups.setdefault(row.role, []).append(line)
    header = ["", "$n$", r"Test accuracy, \%"]
    header += ["Difference, points", rf"{100 * LEVEL:.0f}\,\% interval", "$p$"] if compared else []
    caption = r"mean $\pm$ sample standard deviation over $n$ seeds."
    if compared:
        caption += f" Differences are from {latex(compared[0].baseline.label)}, over common seeds"
        caption += f"; intervals by Student's $t$, not corrected; {_test(compared)}." if _tested(compared) else "."
        caption += "".join(f" {latex(note)}" for note in other_settings_note(compared))
    caption += _noted(rows)
    return Table("l" + "r" * (len(header) - 1), [[header], *groups.values()], caption)


def _by_baseline(compared: Sequence[Comparison]) -> Table:
    """Return a table with a column for each baseline, and a line for each method and its settings."""
    columns = [group for _, group in by_baseline(compared)]
    baselines = [group[0].baseline for group in columns]
    teachers = _teachers(columns)
    taught = [_taught_by(c.row) for c in compared if c.row.first.teacher]
    apart = {s for own in taught for s in own if not teachers and any(s not in other for other in taught)}
    names = [_names(group, bool(teachers), apart) for group in columns]
    named = [dict(zip(of, group, strict=True)) for of, group in zip(names, columns, strict=True)]
    taught_by = [_common(percent(c.row.teacher_acc) for c in group if c.row.first.teacher) for group in columns]
    header = [["Teacher", *map(latex, teachers)]] if teachers else []
    header += [["Student", *map(latex, _students(baselines))]]
    alone = [["teacher", *taught_by]] if teachers and all(taught_by) else []
    baseline = latex(_common(row.first.method for row in baselines)) or "baseline"
    alone += [[baseline, *(_plus_minus(row.test_acc) + _lost(row) for row in baselines)]]
    methods = [
        [latex(name), *(_starred(of[name]) if name in of else "" for of in named)]
        for name in dict.fromkeys(name for of in named for name in of)
    ]
    numbers = [row.n for row in (*baselines, *(c.row for c in compared))]
    n = f"$n = {min(numbers)}$" + (f" to ${max(numbers)}$" if len({*numbers}) > 1 else "")
    caption = rf"mean $\pm$ sample standard deviation over seeds, {n}."
    if _tested(compared):
        caption += (
            f" {STAR}: differs from {baseline} over common seeds ($p < {1 - LEVEL:.2f}$; {_test(compared)}). Of others "
            "no difference is certain, or none is stated: diverged runs, too few common seeds, or no spread."
        )
    caption += _noted([*baselines, *(c.row for c in compared)])
    return Table("l" + "c" * len(columns), [header, alone, methods], caption)


def _across(lines: Sequence[Across], rows: Sequence[Row], comparisons: Sequence[Comparison]) -> Table:
    """Return a table of methods over several teachers and seeds, made of rows."""
    compared = any(line.difference for line in lines)
    interval = rf"{100 * LEVEL:.0f}\,\% interval"
    header = ["", "Teachers", "Seeds", r"Test accuracy, \%", interval]
    header += ["Difference, points", interval, "$p$"] if compared else []

    def cells(line: Across) -> list[str]:
        acc, gain = line.accuracy, line.difference
        counts = str(line.teachers), str(line.seeds)
        name = latex(line.label) + (f" ({latex(line.refused)})" if line.refused else "")
        minus = [points(gain.mean), interval_text(gain.interval, "+"), p_value(line.p)] if gain else [""] * 3
        return [name, *counts, percent(acc.mean), interval_text(acc.interval), *(_signed(*minus) if compared else [])]

    caption = (
        "mean over teachers and seeds. Intervals (two-way analysis of variance, both factors random, not corrected) "
        "speak of new teachers and new seeds."
    )
    if compared:
        baseline = latex(_common(comparison.baseline.label for comparison in comparisons)) or "the baseline of each"
        caption += f" Differences are from {baseline} with the same seeds"
        tests = sum(line.p is not None for line in lines)
        if tests:
            caption += "; $p$ of the $t$ test with the same error, corrected by Holm's method for "
            caption += counted(tests, "comparison")
        caption += "."
    caption += _noted(rows)
    return Table("l" + "r" * (len(header) - 1), [[header], [cells(line) for line in lines]], caption, "new_teachers")


def _noted(rows: Sequence[Row]) -> str:
    notes = [*unnamed_knobs(rows), *shared_order(rows), *mixed_precision(rows)]
    return "".join(f" {latex(note)}" for note in notes)


def _students(baselines: Sequence[Row]) -> list[str]:
    """Name the columns by all that sets their baselines apart but for the teacher: network, recipe, data."""
    several = len({row.network for row in baselines}) > 1
    settings = [[p for p in row.pieces if not p.startswith(("student=", "teacher"))] for row in baselines]
    networks = [[row.network or ""] if several or not own else [] for row, own in zip(baselines, settings, strict=True)]
    return [" ".join((*network, *own)) for network, own in zip(networks, settings, strict=True)]


def _teachers(columns: Sequence[Sequence[Comparison]]) -> list[str]:
    """Name the one teacher of each column; empty if some column has several, which its lines tell then."""
    rows = [[group[0].baseline, *(c.row for c in group)] for group in columns]
    found = [{(row.first.teacher, *_of_teacher(row)) for row in own if row.first.teacher} for own in rows]
    if any(len(own) != 1 for own in found):
        return []
    teachers = [own.pop() for own in found]
    common = set.intersection(*({*settings} for _, *settings in teachers))
    return [" ".join((name, *(s for s in settings if s not in common))) for name, *settings in teachers]


def _of_teacher(row: Row) -> list[str]:
    return [s for s in overrides(row.first) if s.startswith("teacher") and not s.startswith("teacher=")]


def _taught_by(row: Row) -> list[str]:
    chosen = [f"teacher={row.first.teacher}"] if row.first.teacher else []
    return list(dict.fromkeys([*chosen, *(s for s in overrides(row.first) if s.startswith(("teacher", "ensemble")))]))


def _names(group: Sequence[Comparison], one_teacher: bool, apart: set[str]) -> list[str]:
    """Name the rows of one baseline by method, knobs and teacher, and not by what all of its column have in common.

    Args:
        group: the rows, each with its comparison.
        one_teacher: whether all have one, which the head of the column names.
        apart: settings of teachers that some rows of the table have and others have not.
    """

    def name(row: Row) -> str:
        first = row.first
        of_column = {*overrides(first), f"student={first.student}", f"epochs={first.epochs}", f"trial={row.trial}"}
        kept = [p for p in row.pieces if p not in of_column or re.match(OF_TEACHING, p)]
        kept += [s for s in _taught_by(row) if s in apart and s not in kept]
        return " ".join((first.method, *(p for p in kept if not (one_teacher and p.startswith("teacher")))))

    names = [name(c.row) for c in group]
    return names if len({*names}) == len(names) else [c.row.label for c in group]


def _common(values: Iterable[str]) -> str:
    """Return the one value that all are; empty if there are several."""
    every = {*values}
    return every.pop() if len(every) == 1 else ""


def _tested(compared: Sequence[Comparison]) -> bool:
    return any(comparison.difference.p is not None for comparison in compared)


def _test(compared: Sequence[Comparison]) -> str:
    return f"$p$ of the paired $t$ test, corrected by Holm's method for {counted(compared[0].tests, 'comparison')}"


def _lost(row: Row) -> str:
    return f" ({row.diverged} diverged)" if row.diverged else ""


def _difference(comparison: Comparison) -> list[str]:
    mean, interval, p, n, _ = comparison.difference
    return _signed(points(mean), interval_text(interval, "+", n), p_value(p))


def _signed(*cells: str) -> list[str]:
    return [cell.replace("-", "$-$").replace("+", "$+$").replace("<", "$<$") for cell in cells]


def _starred(comparison: Comparison) -> str:
    p = comparison.difference.p
    star = STAR if p is not None and p < 1 - LEVEL else ""
    return _plus_minus(comparison.row.test_acc) + star + _lost(comparison.row)


def _plus_minus(spread: Spread | None) -> str:
    return plus_minus(spread).replace("±", r"$\pm$")


def _table(data: str, table: Table, labels: Counter[str]) -> str:
    """Return a table of results on a data set in LaTeX, whose label is none of those before."""
    label = "_".join(filter(None, (slug(data), table.name)))
    labels[label] += 1
    label += f"_{labels[label]}" if labels[label] > 1 else ""
    body = "\n\\midrule\n".join("\n".join(" & ".join(line) + r" \\" for line in group) for group in table.groups)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{Test accuracy on {latex(data)} (\%): {table.caption}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{table.columns}}}",
            r"\toprule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )
