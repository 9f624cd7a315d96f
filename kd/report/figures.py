"""Pictures of accuracies and learning curves. Nothing here touches matplotlib's global state."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kd.report.ranking import leaders
from kd.report.rows import Role, Row, titled
from kd.report.style import INK, Colour, Look, abbreviated, legend, literal, looks, message, panels
from kd.report.summary import Summary
from kd.runs.results import Result

MANY = 12
"""With more rows than this, the legend no longer has every line."""
CROWD, FEW = 64, 24
"""With more than CROWD rows, FEW of them have a bar."""
TEACHERS: tuple[Literal["--", ":", "-."], ...] = ("--", ":", "-.")
"""Dashes of the teachers' lines, if these are no more."""
WIDE = 14.0
"""Width in inches. Labels that need more than this side by side are rotated."""


# Accuracies


class _Bar(NamedTuple):
    """One row's test accuracy, in percent."""

    row: Row
    colour: Colour
    mean: float
    std: float | None
    seeds: list[float]
    teacher: tuple[str, float] | None
    """Name and accuracy of the teacher that taught it."""

    @property
    def reach(self) -> tuple[float, float]:
        """How far the standard deviation reaches down and up, within 0 to 100 %."""
        std = self.std or 0.0
        return min(std, self.mean), min(std, 100 - self.mean)

    @property
    def top(self) -> float:
        return max(self.mean + self.reach[1], *self.seeds)


def accuracy(summary: Summary) -> Figure:
    """Draw the mean test accuracy of each row with its standard deviation, every seed, and its teacher's accuracy.

    The rows are those of one data set. Of very many rows, a few are drawn, which the title names. The axis begins near
    the lowest value, so that differences can be seen, and is labelled so.
    """
    bars = _bars(summary.rows)
    selected, remark = leaders([bar.row for bar in bars], FEW if len(bars) > CROWD else CROWD)
    bars = [bars[i] for i in selected]
    size, ticks, rotated = _layout(bars)
    figure = Figure(figsize=size, layout="constrained")
    (axes,) = panels(figure, [f"Test accuracy on {titled(summary.rows)}" + (f"\n{remark}" if remark else "")])
    if not bars:
        return message(figure, "No run has a test accuracy.")
    lowest, highest = _limits(bars)
    axes.set_ylim(lowest, highest)
    axes.set_ylabel("test accuracy, %" + (f" (axis begins at {lowest})" if lowest else ""))
    axes.set_xlim(-0.6, len(bars) - 0.4)
    look = {"rotation": 90, "fontsize": 8, "multialignment": "right"} if rotated else {"fontsize": 9}
    axes.set_xticks(range(len(bars)), ticks, **look)
    axes.tick_params(axis="x", length=0)
    ticks_at = MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(lowest, highest)
    axes.set_yticks([at for at in ticks_at if lowest <= at <= min(highest, 100)])
    _draw_bars(axes, bars)
    _draw_values(axes, bars)
    _draw_teachers(axes, bars)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return figure


def _layout(bars: Sequence[_Bar]) -> tuple[tuple[float, float], list[str], bool]:
    """Return width and height in inches, the labels below the bars, and whether these are rotated to fit."""
    names = [(bar.row.first.method, *map(abbreviated, bar.row.pieces), _n(bar.row)) for bar in bars]
    each = max(1.05, 0.085 * max((len(line) for name in names for line in name), default=0))
    rotated = each * len(bars) > WIDE
    # Rotated, many labels have a line each, and few a line for each of their pieces.
    lines = 1 if rotated and len(bars) > MANY else max(map(len, names), default=1)
    ticks = [literal(("  " if lines == 1 else "\n").join(name)) for name in names]
    width = max(7.0, 1.5 + len(bars) * (0.18 + 0.14 * lines if rotated else each))
    height = 4.8 + (0.07 * max(len(line) for tick in ticks for line in tick.split("\n")) if rotated else 0.0)
    return (width, height), ticks, rotated


def _n(row: Row) -> str:
    """Name the number of seeds; of teachers as that of a mean, beside the line of an ensemble of them."""
    return f"mean of n = {row.n}" if row.role is Role.TEACHER and row.n > 1 else f"n = {row.n}"


def _bars(rows: Sequence[Row]) -> list[_Bar]:
    bars = []
    for row, look in zip(rows, looks(rows), strict=True):
        if row.test_acc:
            mean, std = row.test_acc
            seeds = [100 * run.test_acc for run in row.runs if run.test_acc is not None]
            own, acc = row.own_teacher, row.teacher_acc
            teacher = (own, round(100 * acc, 2)) if own is not None and acc is not None else None
            bars.append(_Bar(row, look.colour, 100 * mean, None if std is None else 100 * std, seeds, teacher))
    return bars


def _limits(bars: Sequence[_Bar]) -> tuple[int, float]:
    """Return limits from a multiple of 5, about half of the values' range below the lowest, to above the labels."""
    teachers = [bar.teacher[1] for bar in bars if bar.teacher]
    low = min([min(bar.mean - bar.reach[0], *bar.seeds) for bar in bars] + teachers)
    high = max([bar.top for bar in bars] + teachers)
    lowest = max(0, 5 * math.floor((low - (high - low) / 2 - 1) / 5))
    return lowest, lowest + 1.12 * (high - lowest)


def _draw_bars(axes: Axes, bars: Sequence[_Bar]) -> None:
    axes.bar(range(len(bars)), [bar.mean for bar in bars], width=0.72, color=[bar.colour for bar in bars])
    spread = [(x, bar.mean, bar.reach) for x, bar in enumerate(bars) if bar.std is not None]
    if spread:
        x, mean, reach = zip(*spread, strict=True)
        label = "± sample std over n seeds"
        axes.errorbar(x, mean, np.array(reach).T, fmt="none", ecolor=INK, elinewidth=1.2, capsize=4, label=label)
    # Side by side, as seeds often lie on top of each other.
    offsets = [(i + 1) / (len(bar.seeds) + 1) - 0.5 for bar in bars for i in range(len(bar.seeds))]
    centre = [x for x, bar in enumerate(bars) for _ in bar.seeds]
    axes.scatter(
        [x + 0.6 * dx for x, dx in zip(centre, offsets, strict=True)],
        [seed for bar in bars for seed in bar.seeds],
        s=14,
        c="white",
        edgecolors=INK,
        linewidths=0.8,
        zorder=3,
        label="one seed",
    )


def _draw_values(axes: Axes, bars: Sequence[_Bar]) -> None:
    crowded = len(bars) > MANY
    for x, bar in enumerate(bars):
        axes.annotate(
            f"{bar.mean:.2f}",
            (x, bar.top),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90 if crowded else 0,
            fontsize=8 if crowded else 9.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            zorder=4,
        )


def _draw_teachers(axes: Axes, bars: Sequence[_Bar]) -> None:
    """Draw a line over neighbouring bars with the same teacher. A few teachers have a name and a dash each."""
    known = list(dict.fromkeys(bar.teacher for bar in bars if bar.teacher))
    few = len(known) <= len(TEACHERS)
    named: set[str] = set()
    for teacher, group in groupby(range(len(bars)), key=lambda x: bars[x].teacher):
        if teacher:
            x, (name, acc) = list(group), teacher
            label = f"{name}, {acc:.2f}" if few else "the row's teacher"
            dash = TEACHERS[known.index(teacher)] if few else TEACHERS[0]
            legend = "_nolegend_" if label in named else label
            axes.hlines(acc, x[0] - 0.5, x[-1] + 0.5, colors=INK, linestyles=dash, linewidth=1.1, label=legend)
            named.add(label)


# Learning curves


class _Split(NamedTuple):
    name: str
    accuracy: Callable[[Result], list[float]]
    loss: Callable[[Result], list[float]]
    loss_is: str


VALIDATION = _Split("validation", lambda run: run.epoch_val_acc, lambda run: run.epoch_val_loss, "NLL")
TRAINING = _Split(
    "training", lambda run: run.epoch_train_acc, lambda run: run.epoch_train_loss, "each method's own objective"
)


class _Curve(NamedTuple):
    """Mean and standard deviation of one row over its seeds, epoch by epoch."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64] | None

    @property
    def band(self) -> list[NDArray[np.float64]]:
        """The ends of the band around the mean; the mean itself without one."""
        return [self.mean] if self.std is None else [self.mean - self.std, self.mean + self.std]


def curves(summary: Summary) -> Figure:
    """Draw accuracy and loss on the validation split over the epochs, a line per row.

    The training split takes its place where no run has a validation split, and the title names the split.
    """
    split = VALIDATION if any(_has(row, VALIDATION) for row in summary.rows) else TRAINING
    styled = zip(summary.rows, looks(summary.rows), strict=True)
    kept = [(row, look) for row, look in styled if _has(row, split)]
    rows = [row for row, _ in kept]
    accuracies = [_curve(row, split.accuracy, 100.0) for row in rows]
    losses = [_curve(row, split.loss, 1.0) for row in rows]
    named = _names(rows, accuracies)
    texts, columns, height = legend(list(named.values()), 120, 140)
    names = dict(zip(named, texts, strict=True))
    drawn, remark = leaders(rows, FEW if len(rows) > CROWD else CROWD)
    figure = Figure(figsize=(11, 4.9 + height), layout="constrained")
    figure.suptitle(literal(_title(summary, split, rows, len(names), remark)), x=0.01, ha="left", fontsize=11)
    both = panels(figure, [f"{split.name} accuracy, %", f"{split.name} loss ({split.loss_is})"])
    if not rows:
        return message(figure, "No run has learning curves.")
    drawn = sorted({*drawn, *names})
    possible = (0.0, 100.0), (-math.inf, math.inf)  # some methods' objectives are negative
    for axes, lines, ends in zip(both, (accuracies, losses), possible, strict=True):
        for i in drawn:
            _draw_curve(axes, lines[i], kept[i][1], names.get(i), ends)
        _fit(axes, [lines[i] for i in drawn])
    handles, labels = both[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    return figure


def _has(row: Row, split: _Split) -> bool:
    return all(split.accuracy(run) and split.loss(run) for run in row.runs)


def _curve(row: Row, values: Callable[[Result], list[float]], scale: float) -> _Curve:
    """Return the curve of a row over the epochs that all seeds have."""
    epochs = min(len(values(run)) for run in row.runs)
    seeds = scale * np.array([values(run)[:epochs] for run in row.runs])
    return _Curve(seeds.mean(axis=0), seeds.std(axis=0, ddof=1) if row.n > 1 else None)


def _names(rows: Sequence[Row], accuracies: Sequence[_Curve]) -> dict[int, str]:
    """Return legend entries by row: all, or if these are too many, each method's highest accuracy at the end."""
    names = {i: f"{row.label} (n = {row.n})" for i, row in enumerate(rows)}
    if len(rows) <= MANY:
        return names
    methods: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        methods.setdefault(row.first.method, []).append(i)
    best = {max(group, key=lambda i: np.nan_to_num(accuracies[i].mean[-1])): len(group) for group in methods.values()}
    return {i: names[i] + (f", the highest of {of} at the end" if of > 1 else "") for i, of in best.items()}


def _title(summary: Summary, split: _Split, rows: Sequence[Row], named: int, remark: str) -> str:
    of = len(summary.rows)
    title = f"Learning curves on {titled(summary.rows)}, {split.name} split"
    if split is TRAINING:
        title += " (these runs have no validation split)"
    elif len(rows) < of:
        title += f" (rows without one are not shown: {of - len(rows)} of {of})"
    legend = ["line: mean over n seeds, band: ± sample std"] if any(row.n > 1 for row in rows) else []
    legend += [f"{remark}; thin: the others of them" if remark else "thin: the other rows"] if named < len(rows) else []
    return "\n".join([title, *legend])


def _draw_curve(axes: Axes, line: _Curve, look: Look, name: str | None, ends: tuple[float, float]) -> None:
    """Draw a line with its band, within `ends`; a thin one without a band where it has no name."""
    epochs = np.arange(1, len(line.mean) + 1)
    width, alpha, zorder = (0.7, 0.5, 2.0) if name is None else (1.8, 1.0, 3.0)
    axes.plot(
        epochs,
        line.mean,
        color=look.colour,
        linestyle=look.dash,
        linewidth=width,
        alpha=alpha,
        zorder=zorder,
        marker="o" if len(epochs) == 1 else "",  # a line of one point would be invisible
        label=name,
    )
    if name is not None and line.std is not None:
        low, high = (np.clip(end, *ends) for end in line.band)
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.18, linewidth=0)


def _fit(axes: Axes, lines: Sequence[_Curve]) -> None:
    """Set limits by the epochs of each line after its first tenth: the steep beginning would flatten the rest."""
    longest = max(len(line.mean) for line in lines)
    late = np.concatenate([end[len(end) // 10 :] for line in lines for end in line.band])
    late = late[np.isfinite(late)]
    if late.size:
        margin = 0.05 * (late.max() - late.min()) or 1.0
        axes.set_ylim(late.min() - margin, late.max() + margin)
    axes.set_xlim((1, longest) if longest > 1 else (0, 2))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
