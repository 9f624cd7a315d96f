"""Tables of rows as CSV, as Markdown and for a terminal; a table of one run for a terminal."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kd.report.comparison import Comparison, by_baseline
from kd.report.crossed import Across, Components
from kd.report.knobs import knob_columns, knob_names, knob_text, knob_value, number
from kd.report.numbers import (
    TOO_FEW,
    decimals,
    duration,
    interval_text,
    p_value,
    parameters,
    percent,
    plus_minus,
    points,
    probability,
)
from kd.report.rows import TELLING, Role, Row, also_named, also_tested, role, show_balanced
from kd.report.text import comma_separated, encodable, escaped
from kd.runs.results import Result
from kd.terminal import visible


def to_csv(rows: Sequence[Row], comparisons: Sequence[Comparison] = ()) -> str:
    """Return a CSV for programs: fractions of 1 in full precision, seconds, seeds separated by spaces.

    Cells are empty where a figure is unknown. With comparisons, each row has its difference to the baseline, too.
    """
    compared = {id(comparison.row): comparison for comparison in comparisons}
    labels = {comparison.baseline.label for comparison in comparisons}
    methods = {comparison.baseline.first.method for comparison in comparisons}
    baseline = " or ".join(sorted(labels if len(labels) == 1 else methods))
    records = [_record(row, _difference(compared.get(id(row)), baseline) if comparisons else {}) for row in rows]
    if any(row.trial for row in rows):
        records = [{**record, "trial": row.trial or ""} for row, record in zip(rows, records, strict=True)]
    if show_balanced(rows):
        for row, record in zip(rows, records, strict=True):
            record["balanced_acc_mean"] = row.balanced_acc and row.balanced_acc.mean
    for name in also_tested(rows):
        for row, record in zip(rows, records, strict=True):
            acc = row.also_test_acc(name)
            record |= {f"{also_named(name)}_acc_mean": acc and acc.mean, f"{also_named(name)}_acc_std": acc and acc.std}
            record |= {f"{also_named(name)}_nll_mean": row.also_test_nll(name)}
    knobs = knob_columns((row.first for row in rows), records[0])
    for row, record in zip(rows, records, strict=True):
        record |= {header: knob_value(row.first.knobs.get(name)) for header, name in knobs.items()}
    first, *rest = (header for header in records[0] if header not in knobs)
    return comma_separated([first, *knobs, *rest], records)


def _record(row: Row, difference: dict[str, object]) -> dict[str, object]:
    first = row.first
    return {
        "method": first.method,
        "variant": first.variant,
        "student": first.student,
        "teacher": first.teacher,
        "dataset": first.dataset,
        "epochs": first.epochs,
        "n": row.n,
        "params": row.params,
        "multiply_adds": row.multiply_adds,
        "test_acc_mean": row.test_acc and row.test_acc.mean,
        "test_acc_std": row.test_acc and row.test_acc.std,
        "test_acc_low": row.test_interval and row.test_interval.low,
        "test_acc_high": row.test_interval and row.test_interval.high,
        "val_acc_mean": row.val_acc and row.val_acc.mean,
        "val_acc_std": row.val_acc and row.val_acc.std,
        "test_nll_mean": row.test_nll,
        "test_ece_mean": row.test_ece,
        "teacher_test_acc": row.teacher_acc,
        "retention": row.retention,
        "agreement_mean": row.agreement,
        "train_seconds_median": row.train_seconds,
        **difference,
        "seeds": " ".join(map(str, row.seeds)),
    }


def _difference(comparison: Comparison | None, baseline: str) -> dict[str, object]:
    mean, interval, p, n, _ = comparison.difference if comparison else (None,) * 5
    low, high = interval or (None, None)
    probability = comparison and comparison.probability
    return {
        f"diff_vs_{baseline}": mean,
        "diff_low": low,
        "diff_high": high,
        "diff_n": n,
        "diff_p": p,
        "diff_p_sign_flip": comparison and comparison.sign_flip,
        "diff_p_equivalence": comparison and comparison.equivalence,
        "diff_prob_better": probability and probability.estimate,
        "diff_prob_better_low": probability and probability.interval.low,
        "diff_prob_better_high": probability and probability.interval.high,
        "diff_detectable": comparison and comparison.detectable,
        "diff_seeds_needed": comparison and comparison.seeds_needed,
        "diff_verdict": comparison and comparison.verdict,
    }


class Column(NamedTuple):
    """A column of the tables for people."""

    header: str
    cell: Callable[[Row], str]
    numeric: bool = True
    terminal: bool = True
    """Whether a terminal has room for it."""


VALIDATION, TEACHER = "val accuracy, %", "teacher, %"

COLUMNS = (
    Column("run", lambda row: row.label, numeric=False),
    Column("trial", lambda row: row.trial or "", numeric=False, terminal=False),
    Column("data", lambda row: row.first.dataset, numeric=False, terminal=False),
    Column("network", lambda row: row.network or "", numeric=False, terminal=False),
    Column("parameters", lambda row: parameters(row.params), terminal=False),
    Column("multiply-adds", lambda row: parameters(row.multiply_adds), terminal=False),
    Column("n", lambda row: str(row.n)),
    Column("test accuracy, %", lambda row: plus_minus(row.test_acc)),
    Column("95 % interval", lambda row: interval_text(row.test_interval, n=row.n)),
    Column("retention", lambda row: percent(row.retention, 1, " %")),
    Column("agreement, %", lambda row: percent(row.agreement), terminal=False),
    Column("NLL", lambda row: decimals(row.test_nll), terminal=False),
    Column("ECE, %", lambda row: percent(row.test_ece), terminal=False),
    Column(VALIDATION, lambda row: plus_minus(row.val_acc)),
    Column(TEACHER, lambda row: percent(row.teacher_acc), terminal=False),
    Column("training", lambda row: duration(row.train_seconds)),
)


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table for people, with percentages. Empty columns are left out."""
    chosen = columns(rows)
    headers = [escaped(column.header) for column in chosen]
    left = [header for header, column in zip(headers, chosen, strict=True) if not column.numeric]
    return markdown(headers, [[column.cell(row) for column in chosen] for row in rows], left)


def columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of a table for people: the run, its knobs, then the figures. Empty ones are left out."""
    run, *rest = _filled(COLUMNS, rows)
    return [run, *_knob_columns(rows), *rest, *_further_columns(rows)]


def _knob_columns(rows: Sequence[Row]) -> list[Column]:
    """Return a column for each knob of the rows, aligned to the left if some value is no number."""

    def column(name: str) -> Column:
        values = [row.first.knobs[name] for row in rows if name in row.first.knobs]
        numeric = all(number(value) is not None for value in values)
        return Column(name, lambda row: knob_text(row.first.knobs.get(name, "")), numeric, terminal=False)

    return [column(name) for name in knob_names(row.first for row in rows)]


def _further_columns(rows: Sequence[Row]) -> list[Column]:
    """Return columns for the mean of the classes' accuracies, where that tells something, and further test sets."""

    def column(name: str) -> Column:
        return Column(f"{also_named(name)}, %", lambda row: plus_minus(row.also_test_acc(name)), terminal=False)

    balanced = Column("balanced accuracy, %", lambda row: plus_minus(row.balanced_acc), terminal=False)
    return [*([balanced] if show_balanced(rows) else []), *(column(name) for name in also_tested(rows))]


def to_brief(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    """Return a short Markdown table: accuracy of each row, and whether it differs from the baseline."""
    compared = {id(comparison.row): comparison for comparison in comparisons}
    brief = {"run", "trial", "network", "parameters", "n", "test accuracy, %", "teacher, %", "retention"}
    chosen = _filled([column for column in COLUMNS if column.header in brief], rows)
    headers = [column.header for column in chosen]
    names = {name for name, _ in by_baseline(comparisons)}
    headers += [f"minus {escaped(names.pop()) if len(names) == 1 else 'baseline'}, points"] if comparisons else []
    headers += ["95 % interval", "in words"] if comparisons else []
    lines = []
    for row in rows:
        line = [column.cell(row) for column in chosen]
        comparison = compared.get(id(row))
        if comparison:
            difference = comparison.difference
            line += [points(difference.mean), interval_text(difference.interval, "+", difference.n), comparison.verdict]
        elif comparisons:
            line += [""] * 3
        lines.append(line)
    return markdown(headers, lines, left=["trial", "network", "in words"])


def to_rich(rows: Sequence[Row], width: int = 100, encoding: str = "utf-8") -> Table:
    """Return the table of rows for a terminal `width` characters wide, with fewer columns."""
    columns = _filled([column for column in COLUMNS if column.terminal], rows)
    cells = {column.header: [column.cell(row) for row in rows] for column in columns}
    cells["run"] = [row.label + (" (trial)" if row.trial else "") for row in rows]
    return _fitted(cells, width, ("training", "retention", "95 % interval", VALIDATION), encoding)


def _filled(columns: Iterable[Column], rows: Sequence[Row]) -> list[Column]:
    """Return the columns that are not empty; the teacher's is named after the ensemble if there is one."""
    teachers = {row.own_teacher for row in rows if row.own_teacher}
    ensemble = f"{teachers.pop()}, %" if len(teachers) == 1 else TEACHER
    return [
        column._replace(header=ensemble) if column.header == TEACHER else column
        for column in columns
        if any(column.cell(row) not in ("", TOO_FEW) for row in rows)
    ]


def differences_to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return a Markdown table of rows against their baseline."""
    columns = _differences(comparisons)
    return markdown(list(columns), zip(*columns.values(), strict=True), left=["in words"])


def differences_to_rich(comparisons: Sequence[Comparison], width: int = 100, encoding: str = "utf-8") -> Table:
    """Return the table of differences for a terminal `width` characters wide."""
    dispensable = ("seeds needed", "detectable, points", "P(better), %", "p (Holm)", "95 % interval")
    return _fitted(_differences(comparisons), width, dispensable, encoding)


def between_teachers(parts: Components) -> str:
    """Write what is between teachers, and how large it may be: "0.16 (to 0.88)"."""
    return f"{percent(parts.teacher)} (to {percent(parts.teacher_most)})"


class Cells(NamedTuple):
    """A table in plain text."""

    headers: list[str]
    lines: list[list[str]]
    left: tuple[str, ...] = ()
    """Headers of the columns, besides the first, that are aligned to the left."""

    def to_markdown(self) -> str:
        return markdown(*self)


def across_cells(lines: Sequence[Across]) -> Cells:
    """Return a table of methods over several teachers, in percent and points."""
    headers = ["run", "teachers", "seeds", "test accuracy, %", "95 % interval", "difference, points", "95 % interval"]
    headers += ["p (Holm)", "between teachers", "between seeds", "rest", "in words"]

    def cells(line: Across) -> list[str]:
        acc, gain = line.accuracy, line.difference
        minus = [points(gain.mean), interval_text(gain.interval, "+")] if gain else ["", ""]
        varies = gain or acc
        deviations = between_teachers(varies), percent(varies.seed), percent(varies.rest)
        counts = str(line.teachers), str(line.seeds)
        accuracy = percent(acc.mean), interval_text(acc.interval)
        return [line.label, *counts, *accuracy, *minus, p_value(line.p), *deviations, line.verdict]

    return Cells(headers, list(map(cells, lines)), ("in words",))


WRAPPED = {"run": 24, "in words": 12}
"""Columns of words, which wrap before a column of numbers goes; and the width that they keep until then."""


def _fitted(cells: dict[str, list[str]], width: int, dispensable: Sequence[str], encoding: str) -> Table:
    """Make a table of columns by header that breaks no word and no number.

    While it is too wide, dispensable columns are left out, the first ones first. Then words that are longer than their
    column lose their beginning.
    """
    cells = {header: [encodable(cell, encoding) for cell in column] for header, column in cells.items()}
    full = {h: max(map(cell_len, [*h.split(", "), *column])) for h, column in cells.items()}
    words = {
        h: max((cell_len(word) for cell in column for word in cell.split()), default=0) for h, column in cells.items()
    }
    least = {h: min(full[h], max(words[h], WRAPPED[h])) if h in WRAPPED else full[h] for h in cells}

    def room() -> int:
        """Return the width that is left; two blanks are between columns, one is before and one behind them."""
        return width - sum(2 + least[header] for header in cells)

    for header in dispensable:
        if room() < 0:
            cells.pop(header, None)
    if room() < 0:
        least["run"] = max(8, least["run"] + room())
        cells["run"] = [" ".join(_tail(word, least["run"]) for word in cell.split()) for cell in cells["run"]]
    for header in cells:
        least[header] += max(0, min(full[header] - least[header], room()))
    headers = [header.replace(", ", "\n") for header in cells]
    return _table(headers, list(zip(*cells.values(), strict=True)), [least[header] for header in cells])


def _tail(word: str, width: int) -> str:
    """Shorten a word from the left: an override's end distinguishes it."""
    return word if len(word) <= width else "..." + word[3 - width :]


CERTAINTY: dict[str, Callable[[Comparison], str]] = {
    "p (Holm)": lambda c: p_value(c.difference.p),
    "P(better), %": lambda c: probability(c.probability),
    "detectable, points": lambda c: percent(c.detectable),
    "seeds needed": lambda c: "" if (needed := c.seeds_needed) is None else str(needed),
}
"""Cells of a comparison by header, on how certain it is."""
_DIFFERENCES: dict[str, Callable[[Comparison], str]] = {
    "run": lambda c: c.row.label,
    "difference, points": lambda c: points(c.difference.mean),
    "95 % interval": lambda c: interval_text(c.difference.interval, "+", c.difference.n),
    "seeds": lambda c: str(c.difference.n),
    **CERTAINTY,
    "in words": lambda c: c.verdict,
}


def _differences(comparisons: Sequence[Comparison]) -> dict[str, list[str]]:
    """Return the cells of a table of differences by header. Empty columns are left out."""
    columns = {header: [cell(comparison) for comparison in comparisons] for header, cell in _DIFFERENCES.items()}
    return {header: cells for header, cells in columns.items() if not {*cells} <= {"", TOO_FEW}}


def markdown(headers: Sequence[str], lines: Iterable[Sequence[str]], left: Iterable[str] = ()) -> str:
    """Return a Markdown table; columns are aligned to the right but for the first and those in `left`.

    Cells are plain text, headers are Markdown.
    """
    rules = [":---" if i == 0 or header in left else "---:" for i, header in enumerate(headers)]
    cells = [headers, rules, *([escaped(cell) for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def single(result: Result) -> RenderableType:
    """Return a table of one run for the terminal: a column for each network of the record.

    Empty lines are left out. What makes its figures other than those of a whole run is above it, warnings are below.
    """
    above = [f"trial run: {result.trial}"] if result.trial else []
    above += ["diverged: these are figures of a network that has not learnt anything"] if result.diverged else []
    below = [f"warning: {warning}" for warning in result.warnings]
    prominent = [[Text(visible(line), style="bold yellow") for line in lines] for lines in (above, below)]
    return Group(*prominent[0], _single(result), *prominent[1])


def _single(result: Result) -> Table:
    teacher = {
        "network": result.teacher or "",
        "parameters": parameters(result.teacher_params),
        "test accuracy": percent(result.teacher_test_acc, 2, " %"),
    }
    student = {"network": result.student or "", "parameters": parameters(result.student_params)}
    also = {also_named(name): acc for name, acc in result.also_test_acc.items() if "/" not in name}
    trained = {
        "test accuracy": percent(result.test_acc, 2, " %"),
        "balanced accuracy": _balanced(result),
        **{f"{name} accuracy": percent(acc, 2, " %") for name, acc in also.items()},
        "retention": percent(result.retention, 1, " %"),
        "agreement": percent(result.agreement, 2, " %"),
        "test NLL": decimals(result.test_nll),
        "test ECE": percent(result.test_ece, 2, " %"),
        "training time": duration(result.train_seconds),
        "training images/s": decimals(result.images_per_second, 0),
    }
    if role(result) is Role.TEACHER:
        networks = {"teacher": teacher | trained}
    else:
        networks = {} if result.teacher_params is None else {"teacher": teacher}
        networks["student"] = student | trained
    lines = [[name, *(cells.get(name, "") for cells in networks.values())] for name in student | trained]
    return _table(["", *networks], [line for line in lines if any(line[1:])])


def _balanced(result: Result) -> str:
    """Return the mean of the classes' accuracies, where it tells something else than the accuracy."""
    balanced, acc = result.test_balanced_acc, result.test_acc
    telling = balanced is not None and acc is not None and abs(balanced - acc) >= TELLING
    return percent(balanced, 2, " %") if telling else ""


def _table(headers: Sequence[str], lines: Iterable[Sequence[str]], widths: Sequence[int] | None = None) -> Table:
    """Make a table with its first column aligned to the left, all others to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for i, header in enumerate(headers):
        width = None if widths is None else widths[i]
        table.add_column(Text(header), justify="right" if i else "left", width=width, overflow="fold")
    for line in lines:
        table.add_row(*(Text(visible(cell)) for cell in line))
    return table
