"""The figures of `scripts/benchmark.py` as a table for the terminal, a table for pages, and remarks."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from kd.report.tables import markdown

LOOPS = ("textbook", "train.py")
IMAGES = 50_000
"""The number of training images that an epoch's seconds refer to."""
LIMIT_COLUMNS = ("training", "GFLOP", "GB moved", "products", "memory", "both", "binds")
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
    return median_ratio(rates[loop], rates[reference])


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of our figure divided by theirs in the same round.

    Raises:
        ValueError: if the two have different numbers of rounds.
    """
    return float(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)))


def shares(entry: dict[str, Any], batch_size: int) -> dict[str, float]:
    """Return how long a step of `train.py` would take at the machine's limits, as shares of its time.

    Medians over rounds, each of which has the limits that were measured in it.

    Args:
        entry: one workload's figures. Under "step" it has the step's "flops" by precision and the bytes that its
            operations move, "product_bytes" and "other_bytes"; under "limits", one figure a round, FLOP/s by precision
            and bytes/s of "copy" and "triad".
        batch_size: images a step.

    Returns:
        "products", of all FLOPs at the rate of a large matrix product; "memory", of all bytes at the better of the two
        rates of memory; "least", of the products at the limit that binds them, then all else at memory's.
    """
    step, limits = entry["step"], entry["limits"]
    rounds: dict[str, list[float]] = {"products": [], "memory": [], "least": []}
    for place, rate in enumerate(entry["images_per_second"]["train.py"]):
        seconds = batch_size / rate
        moved = max(limits["copy"][place], limits["triad"][place])
        products = sum(flops / limits[precision][place] for precision, flops in step["flops"].items())
        bound, others = step["product_bytes"] / moved, step["other_bytes"] / moved
        rounds["products"].append(products / seconds)
        rounds["memory"].append((bound + others) / seconds)
        rounds["least"].append((max(products, bound) + others) / seconds)
    return {name: statistics.median(values) for name, values in rounds.items()}


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


def limits_to_rich(figures: dict[str, Any]) -> Table:
    """Return a table for a terminal of what binds each training, with the limits below."""
    table = Table(title="a step of train.py at the machine's limits, share of its time", title_justify="left")
    for header in LIMIT_COLUMNS:
        table.add_column(header, justify="right" if table.columns else "left", no_wrap=True)
    for name, entry in figures["workloads"].items():
        table.add_row(*_limit_cells(name, entry, figures["shares"][name]))
    limits: dict[str, list[float]] = {}
    for entry in figures["workloads"].values():
        for name, rates in entry["limits"].items():
            limits.setdefault(name, []).extend(rates)
    unit = {name: "GB/s" if name in ("copy", "triad") else "GFLOP/s" for name in limits}
    table.caption = "limits: " + ", ".join(
        f"{name} {statistics.median(rates) / 1e9:,.0f} {unit[name]}" for name, rates in limits.items()
    )
    table.caption_justify = "left"
    return table


def limits_to_markdown(figures: dict[str, Any]) -> str:
    """Return the same table for pages."""
    cells = [_limit_cells(name, entry, figures["shares"][name]) for name, entry in figures["workloads"].items()]
    return markdown(LIMIT_COLUMNS, cells)


def remarks(figures: dict[str, Any]) -> Iterator[str]:
    """Yield lines that explain the table, and figures that it has no column for."""
    yield figures["machine"]["device"]
    yield "ratio: speed of train.py divided by that of textbook; GB: peak memory of train.py"
    if _has_changed(figures):
        yield f"changed: speed with {' '.join(figures['overrides'])}, divided by that of train.py"
    first = statistics.median(figures["first_step_seconds"])
    yield f"from `python train.py data=digits` to the first step: {first:.1f} s"


def _cells(name: str, entry: dict[str, Any]) -> list[str]:
    textbook, ours = (statistics.median(entry["images_per_second"][loop]) for loop in LOOPS)
    return [
        name.replace("_", ", "),
        f"{textbook:,.0f}",
        f"{ours:,.0f}",
        f"{ratio(entry, 'train.py'):.1f}x",
        f"{IMAGES / ours:.1f}",
    ]


def _limit_cells(name: str, entry: dict[str, Any], shares: dict[str, float]) -> list[str]:
    step = entry["step"]
    return [
        name.replace("_", ", "),
        f"{sum(step['flops'].values()) / 1e9:,.1f}",
        f"{(step['product_bytes'] + step['other_bytes']) / 1e9:,.2f}",
        *(f"{shares[share]:.0%}" for share in ("products", "memory", "least")),
        "products" if shares["products"] > shares["memory"] else "memory",
    ]


def _has_changed(figures: dict[str, Any]) -> bool:
    return any("changed" in entry["images_per_second"] for entry in figures["workloads"].values())
