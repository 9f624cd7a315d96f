"""Measurements of `scripts/benchmark.py` for people: a table for the terminal, two for pages, and remarks."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from kd.report.tables import markdown

LOOPS = ("textbook", "bare", "train.py")
IMAGES = 50_000
"""Images of an epoch."""
BRIEF = ("training", "images/s, textbook", "images/s, `train.py`", "ratio", "s / epoch")
FULL = (
    *("training", "images/s, textbook", "images/s, bare loop", "images/s, `train.py`"),
    *("ratio, bare loop", "ratio", "Lightning", "s / epoch"),
)


def ratio(entry: dict[str, Any], loop: str, to: str = "textbook") -> float:
    """Return the median over rounds of one loop's speed divided by another's in the same round."""
    rates = entry["images_per_second"]
    return float(statistics.median(ours / theirs for ours, theirs in zip(rates[loop], rates[to], strict=True)))


def overhead(entry: dict[str, Any]) -> float:
    """Return what Lightning adds to the time of the bare loop, as a fraction of it."""
    return 1 / ratio(entry, "train.py", "bare") - 1


def _cells(name: str, entry: dict[str, Any]) -> dict[str, str]:
    rates = {loop: statistics.median(entry["images_per_second"][loop]) for loop in LOOPS}
    return {
        "training": name.replace("_", ", "),
        "images/s, textbook": f"{rates['textbook']:,.0f}",
        "images/s, bare loop": f"{rates['bare']:,.0f}",
        "images/s, `train.py`": f"{rates['train.py']:,.0f}",
        "ratio, bare loop": f"{ratio(entry, 'bare'):.1f}x",
        "ratio": f"{ratio(entry, 'train.py'):.1f}x",
        "Lightning": f"{100 * overhead(entry):+.1f} %",
        "s / epoch": f"{IMAGES / rates['train.py']:.1f}",
    }


def to_markdown(figures: dict[str, Any], columns: Sequence[str]) -> str:
    """Return a Markdown table with a line for each kind of training and the columns `BRIEF` or `FULL`."""
    cells = [_cells(name, entry) for name, entry in figures["workloads"].items()]
    return markdown(columns, [[line[column] for column in columns] for line in cells])


def to_rich(figures: dict[str, Any]) -> Table:
    """Return the table for a terminal, with computation, memory and, if it was measured, the changed loop."""
    table = Table(title=f"images/s, median of {figures['machine']['rounds']} rounds", title_justify="left")
    for name, entry in figures["workloads"].items():
        flops = figures["training_flops"]["teacher" if name == "teacher" else "student"]
        pace = statistics.median(entry["images_per_second"]["train.py"])
        cells = {header.removeprefix("images/s, ").strip("`"): cell for header, cell in _cells(name, entry).items()}
        del cells["ratio, bare loop"]  # a terminal has no room for it
        cells["GFLOP/s"] = f"{pace * flops / 1e9:,.0f}"
        cells["GB"] = f"{entry['memory_gb']['train.py']:.1f}"
        if _changed(figures):
            cells["changed"] = f"{ratio(entry, 'changed', 'train.py'):.2f}x"
        if not table.columns:
            for header in cells:
                table.add_column(header, justify="right" if table.columns else "left", no_wrap=True)
        table.add_row(*cells.values())
    return table


def remarks(figures: dict[str, Any]) -> Iterator[str]:
    """Explain the columns of the table, then report the measurements that are not in it."""
    evaluation = figures["evaluation"]
    rates = evaluation["images_per_second"]
    plain, ours = (statistics.median(rates[name]) for name in ("textbook", "ours"))
    yield figures["machine"]["device"]
    if _changed(figures):
        yield f"changed: speed with {' '.join(figures['overrides'])}, to that of train.py without"
    yield "ratio: of train.py to textbook; Lightning: time of train.py beyond the bare loop's"
    yield "GFLOP/s: of the network that is trained, forward and backward"
    yield (
        f"teacher's forward pass: {plain:,.0f} images/s plain, {ours:,.0f} ours "
        f"({ratio(evaluation, 'ours'):.1f}x), {ours * evaluation['teacher_forward_flops'] / 1e9:,.0f} GFLOP/s"
    )
    yield f"matrix product in the same precision: {evaluation['matmul_flops'] / 1e9:,.0f} GFLOP/s"
    yield f"from `python train.py data=digits` to the first step: {min(figures['first_step_seconds']):.1f} s"


def _changed(figures: dict[str, Any]) -> bool:
    return any("changed" in entry["images_per_second"] for entry in figures["workloads"].values())
