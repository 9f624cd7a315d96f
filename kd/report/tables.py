"""Rows as CSV, as Markdown and for a terminal; and one run for a terminal."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from kd.report.rows import Role, Row, Spread, role
from kd.results import Result


def to_csv(rows: Sequence[Row]) -> str:
    """For programs: fractions of 1 in full precision, seconds, seeds separated by spaces; empty where unknown."""
    records = [_record(row) for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _record(row: Row) -> dict[str, object]:
    first = row.first
    return {
        "method": first.method,
        "T": first.T,
        "alpha": first.alpha,
        "beta": first.beta,
        "variant": first.variant,
        "student": first.student,
        "teacher": first.teacher,
        "dataset": first.dataset,
        "epochs": first.epochs,
        "n": row.n,
        "params": row.params,
        "test_acc_mean": row.test_acc and row.test_acc.mean,
        "test_acc_std": row.test_acc and row.test_acc.std,
        "val_acc_mean": row.val_acc and row.val_acc.mean,
        "val_acc_std": row.val_acc and row.val_acc.std,
        "test_nll_mean": row.test_nll,
        "test_ece_mean": row.test_ece,
        "teacher_test_acc": row.teacher_acc,
        "retention": row.retention,
        "agreement_mean": row.agreement,
        "train_seconds_mean": row.train_seconds,
        "seeds": " ".join(map(str, row.seeds)),
    }


class Column(NamedTuple):
    """A column of the tables for people."""

    header: str
    cell: Callable[[Row], str]
    numeric: bool = True
    terminal: bool = True
    """Whether it is one of the few that a terminal has room for."""


COLUMNS = (
    Column("run", lambda row: row.label, numeric=False),
    Column("T", lambda row: _number(row.first.T), terminal=False),
    Column("alpha", lambda row: _number(row.first.alpha), terminal=False),
    Column("beta", lambda row: _number(row.first.beta), terminal=False),
    Column("data", lambda row: row.first.dataset, numeric=False, terminal=False),
    Column("network", lambda row: row.network or "", numeric=False, terminal=False),
    Column("parameters", lambda row: _parameters(row.params), terminal=False),
    Column("n", lambda row: str(row.n)),
    Column("test accuracy, %", lambda row: _plus_minus(row.test_acc)),
    Column("retention", lambda row: _percent(row.retention, 1, " %")),
    Column("agreement, %", lambda row: _percent(row.agreement)),
    Column("NLL", lambda row: _decimals(row.test_nll)),
    Column("ECE, %", lambda row: _percent(row.test_ece)),
    Column("val accuracy, %", lambda row: _plus_minus(row.val_acc), terminal=False),
    Column("teacher, %", lambda row: _percent(row.teacher_acc), terminal=False),
    Column("training", lambda row: _duration(row.train_seconds)),
)


def to_markdown(rows: Sequence[Row]) -> str:
    """For people: a table with percentages. Columns that would be empty are left out."""
    columns = _filled(COLUMNS, rows)
    lines = [
        [column.header for column in columns],
        ["---:" if column.numeric else ":---" for column in columns],
        *([column.cell(row).replace("|", r"\|") for column in columns] for row in rows),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def to_rich(rows: Sequence[Row]) -> Table:
    """The same for a terminal, with fewer columns."""
    columns = _filled([column for column in COLUMNS if column.terminal], rows)
    return _table(
        [column.header.replace(", ", "\n") for column in columns],
        [[column.cell(row) for column in columns] for row in rows],
    )


def _filled(columns: Iterable[Column], rows: Sequence[Row]) -> list[Column]:
    return [column for column in columns if any(column.cell(row) for row in rows)]


def single(result: Result) -> Table:
    """One run, for the terminal at its end: a column for each network that the record knows of.

    A line appears if there is something to say in it.
    """
    teacher = {
        "network": result.teacher or "",
        "parameters": _parameters(result.teacher_params),
        "test accuracy": _percent(result.teacher_test_acc, 2, " %"),
    }
    student = {"network": result.student or "", "parameters": _parameters(result.student_params)}
    trained = {
        "test accuracy": _percent(result.test_acc, 2, " %"),
        "retention": _percent(result.retention, 1, " %"),
        "agreement": _percent(result.agreement, 2, " %"),
        "test NLL": _decimals(result.test_nll),
        "test ECE": _percent(result.test_ece, 2, " %"),
        "training time": _duration(result.train_seconds),
        "training images/s": _decimals(result.images_per_second, 0),
    }
    networks = {
        Role.TEACHER: {"teacher": teacher | trained},
        Role.ALONE: {"student": student | trained},
        Role.DISTILLED: {"teacher": teacher, "student": student | trained},
    }[role(result)]
    lines = [[name, *(cells.get(name, "") for cells in networks.values())] for name in student | trained]
    return _table(["", *networks], [line for line in lines if any(line[1:])])


def _table(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """The first column to the left, the others to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    for line in lines:
        table.add_row(*map(Text, line))
    return table


# Numbers, for people; blank where unknown.


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _decimals(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _percent(fraction: float | None, digits: int = 2, unit: str = "") -> str:
    return "" if fraction is None else f"{100 * fraction:.{digits}f}{unit}"


def _plus_minus(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return _percent(spread.mean) + ("" if spread.std is None else f" ± {_percent(spread.std)}")


def _parameters(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
