"""The figures of `scripts/benchmark.py` as a table for the terminal, a table for pages, and remarks."""

import statistics
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from kd.report.tables import markdown

LOOPS = ("textbook", "train.py")
IMAGES = 50_000
"""The number of training images that an epoch's seconds refer to."""
COLUMNS = ("training", "images/s, textbook", "images/s, `train.py`", "ratio", "s / epoch")


def ratio(entry: dict[str, Any], loop: str, reference: str = "textbook") -> float:
    """Return the median over rounds of one loop's speed divided by the reference's in the same round.

    Args:
        entry: one workload's figures. Under "images_per_second" it has, for each loop, one figure a round.
        loop: the loop whose speed is the numerator.
        reference: the loop whose speed is the denominator.

    Raises:
        ValueError: if the two loops have different numbers of rounds.
    """
    rates = entry["images_per_second"]
    return float(statistics.median(a / b for a, b in zip(rates[loop], rates[reference], strict=True)))


def to_markdown(figures: dict[str, Any]) -> str:
    """Return a table with `COLUMNS` and one line a workload."""
    return markdown(COLUMNS, [_cells(name, entry) for name, entry in figures["workloads"].items()])


def to_rich(figures: dict[str, Any]) -> Table:
    """Return the same table for a terminal, with peak memory and, if it was measured, the changed loop."""
    table = Table(title=f"images/s, median of {figures['machine']['rounds']} rounds", title_justify="left")
    headers = [header.removeprefix("images/s, ").strip("`") for header in COLUMNS]
    for header in [*headers, "GB", *(["changed"] if _has_changed(figures) else [])]:
        table.add_column(header, justify="right" if table.columns else "left", no_wrap=True)
    for name, entry in figures["workloads"].items():
        changed = [f"{ratio(entry, 'changed', 'train.py'):.2f}x"] if _has_changed(figures) else []
        table.add_row(*_cells(name, entry), f"{entry['memory_gb']['train.py']:.1f}", *changed)
    return table


def remarks(figures: dict[str, Any]) -> Iterator[str]:
    """Yield lines that explain the table, and figures that it has no column for."""
    yield figures["machine"]["device"]
    yield "ratio: speed of train.py divided by that of textbook; GB: peak memory of train.py"
    if _has_changed(figures):
        yield f"changed: speed with {' '.join(figures['overrides'])}, divided by that of train.py"
    yield f"from `python train.py data=digits` to the first step: {min(figures['first_step_seconds']):.1f} s"


def _cells(name: str, entry: dict[str, Any]) -> list[str]:
    textbook, ours = (statistics.median(entry["images_per_second"][loop]) for loop in LOOPS)
    return [
        name.replace("_", ", "),
        f"{textbook:,.0f}",
        f"{ours:,.0f}",
        f"{ratio(entry, 'train.py'):.1f}x",
        f"{IMAGES / ours:.1f}",
    ]


def _has_changed(figures: dict[str, Any]) -> bool:
    return any("changed" in entry["images_per_second"] for entry in figures["workloads"].values())
