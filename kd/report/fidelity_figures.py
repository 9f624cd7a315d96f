"""Pictures of what distillation did: calibration, classes, images, and how close the student came to its teacher."""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kd.report.fidelity import Bins, Figures, Labels, Logits, cross_fitted, reliability
from kd.report.fidelity_study import Compared, Student, Study
from kd.report.style import FAINT, INK, TEACHER, Colour, framed, literal, looks, nothing

RIGHT, WRONG = "#0072B2", "#D55E00"
"""Blue and vermilion: apart for the colour-blind, too."""
FEWEST = 0.002
"""Share of the images below which a bin is not drawn: its accuracy would be that of a few."""
COLUMNS, LINES = 7, 2
"""Of images, for fixed ones and as many for broken ones."""


# Reliability


class _Panel(NamedTuple):
    name: str
    colour: Colour | str
    before: Bins
    after: Bins


def calibration(study: Study) -> Figure:
    """A reliability diagram of the teacher and of each student, over all seeds, before and after temperature scaling.

    Below each, how its confidences are spread.
    """
    colours = [look.colour for look in looks([one.row for one in study.students])]
    shown = [_panel("teacher", TEACHER, study.labels, [study.teacher_logits])]
    shown += [
        _panel(one.label, colour, study.labels, one.logits) for one, colour in zip(study.students, colours, strict=True)
    ]
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(11, 0.5 + 3.9 * lines), layout="constrained")
    grid = GridSpec(2 * lines, columns, figure, height_ratios=[3, 1] * lines)
    for i, panel in enumerate(shown):
        line, column = divmod(i, columns)
        upper = figure.add_subplot(grid[2 * line, column])
        lower = figure.add_subplot(grid[2 * line + 1, column], sharex=upper)
        _draw_reliability(upper, lower, panel, first=column == 0)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _panel(name: str, colour: Colour | str, labels: Labels, logits: Sequence[Logits]) -> _Panel:
    every = np.tile(labels, len(logits))
    scaled = [cross_fitted(labels, one).logits for one in logits]
    before, after = (reliability(every, np.concatenate(some)) for some in (logits, scaled))
    return _Panel(name, colour, before, after)


def _draw_reliability(upper: Axes, lower: Axes, panel: _Panel, first: bool) -> None:
    framed(upper)
    framed(lower)
    upper.set_title(_wrapped(panel.name), loc="left", fontsize=10.5, color=INK)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=":", label="confidence = accuracy")
    styles = (
        (panel.before, "as trained", {"color": panel.colour, "marker": "o", "markerfacecolor": "white"}),
        (panel.after, "temperature scaled", {"color": panel.colour, "marker": "o", "linestyle": "--", "alpha": 0.75}),
    )
    for bins, name, style in styles:
        enough = bins.share >= FEWEST
        upper.plot(
            bins.confidence[enough], bins.accuracy[enough], markersize=4.5, linewidth=1.4, label=name, zorder=3, **style
        )
    upper.text(
        0.97,
        0.05,
        f"ECE {100 * panel.before.ece:.1f} %\nscaled {100 * panel.after.ece:.1f} %",
        transform=upper.transAxes,
        ha="right",
        va="bottom",
        fontsize=9,
        color=INK,
    )
    edges = np.linspace(0, 1, len(panel.before.share) + 1)
    lower.stairs(100 * panel.before.share, edges, color=panel.colour, linewidth=1.4)
    lower.stairs(100 * panel.after.share, edges, color=panel.colour, fill=True, alpha=0.28)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("confidence", fontsize=9)
    lower.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (upper, lower):
        axes.tick_params(labelsize=8.5)
    if first:
        upper.set_ylabel("accuracy", fontsize=9)
        lower.set_ylabel("images, %", fontsize=9)


# Classes


def classes(study: Study, names: Sequence[str]) -> Figure:
    """What each student gains on the baseline in each class, in points, with the 95 % interval over seeds."""
    gains = [[one.differences["accuracy"], *one.classes] for one in study.compared]
    means = np.array([[np.nan if d.mean is None else 100 * d.mean for d in line] for line in gains])
    figure = Figure(figsize=(8.6, 1.6 + 0.42 * (len(names) + 1)), layout="constrained")
    axes = framed(figure.add_subplot())
    if np.isnan(means).all():
        return nothing(figure, f"No seed in common with {study.baseline.label}.")
    known = np.where(np.isnan(means[:, 1:]), 0.0, means[:, 1:]).mean(axis=0)
    order = [0, *(1 + np.argsort(-known, kind="stable"))]  # all classes, then the greatest gain first
    colours = [look.colour for look in looks([one.row for one in study.students])][1:]
    reach = 0.6 / max(1, len(gains))
    for i, (one, line, colour) in enumerate(zip(study.compared, gains, colours, strict=True)):
        y = np.arange(len(order)) + (i - (len(gains) - 1) / 2) * reach
        drawn = [line[place] for place in order]
        for height, difference in zip(y, drawn, strict=True):
            if difference.interval:
                ends = [100 * bound for bound in difference.interval]
                axes.plot(ends, [height, height], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
        label = literal(f"{one.student.label} (n = {line[0].n})")
        axes.scatter(means[i, order], y, s=34, color=colour, edgecolors="white", linewidths=0.7, zorder=3, label=label)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=2)
    axes.axhline(0.5, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(order)), [literal(["all classes", *names][place]) for place in order], fontsize=10)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"test accuracy minus that of {literal(study.baseline.label)}, points")
    axes.set_title("Gains by class", loc="left", fontsize=11)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    figure.text(0.99, 0.01, "dot: mean over n seeds, bar: 95 % interval", ha="right", fontsize=8.5, color=INK)
    return figure


# Images


def images(study: Study, compared: Compared, pixels: NDArray[np.uint8], names: Sequence[str]) -> Figure:
    """Images that a student has right in all seeds and the baseline in none, and the reverse, with every answer.

    Args:
        pixels: (M, H, W, 3), the test images.
        names: of the C classes.
    """
    of = compared.changes
    figure = Figure(figsize=(11, 2 * (0.45 + 1.92 * LINES)), layout="constrained")
    grid = GridSpec(2, 1, figure)
    student, base = compared.student, study.baseline
    blocks = (
        ("Fixed", of.fixed, "right", "wrong"),
        ("Broken", of.broken, "wrong", "right"),
    )
    for line, (title, chosen, ours, theirs) in enumerate(blocks):
        shown = min(len(chosen), COLUMNS * LINES)
        said = f"{ours} in {_seeds(student.n)} of {student.label}, {theirs} in {_seeds(base.n)} of {base.label}"
        whole = f"{title}: {said}. {len(chosen)} images" + (f", {shown} of them:" if shown < len(chosen) else "")
        block = figure.add_subfigure(grid[line])
        block.suptitle(literal(whole), x=0.01, ha="left", fontsize=11, color=INK)
        _draw_images(block, chosen[:shown], lambda i: _answers(study, student, i, names), study, pixels, names)
    return figure


def _seeds(n: int) -> str:
    return "the only seed" if n == 1 else f"all {n} seeds"


class _Answer(NamedTuple):
    text: str
    right: bool


def _answers(study: Study, student: Student, image: int, names: Sequence[str]) -> list[_Answer]:
    label = int(study.labels[image])
    taught = int(study.teacher_logits[image].argmax())
    found = [("teacher", taught, 1, 1)]
    found += [(one.row.first.method, *one.answers(image), one.n) for one in (study.baseline, student)]
    return [
        _Answer(f"{who}: {names[what]}" + (f" {times}/{n}" if times < n else ""), what == label)
        for who, what, times, n in found
    ]


def _draw_images(
    block: SubFigure,
    chosen: NDArray[np.intp],
    answers: Callable[[int], list[_Answer]],
    study: Study,
    pixels: NDArray[np.uint8],
    names: Sequence[str],
) -> None:
    for place in range(COLUMNS * LINES):
        axes = block.add_subplot(LINES, COLUMNS, place + 1)
        axes.set_axis_off()
        if place >= len(chosen):
            if place == 0:
                axes.text(0, 0.5, "none", fontsize=10, color=INK)
            continue
        image = int(chosen[place])
        axes.imshow(pixels[image], interpolation="nearest")
        axes.set_title(literal(names[int(study.labels[image])]), fontsize=9, fontweight="bold", color=INK, pad=3)
        for line, answer in enumerate(answers(image)):
            axes.text(
                0.5,
                -0.04 - 0.125 * line,
                literal(answer.text),
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=7.5,
                color=RIGHT if answer.right else WRONG,
            )


# Bars


class _Quantity(NamedTuple):
    title: str
    names: tuple[str, ...]
    """One figure, or the same before and after temperature scaling."""
    scale: float
    digits: int
    of_teacher: bool


_QUANTITIES = (
    _Quantity("agreement with the teacher, %", ("agreement",), 100, 1, False),
    _Quantity("the same where the teacher is wrong, %", ("agreement_wrong",), 100, 1, False),
    _Quantity("KL(teacher ‖ student), nats", ("kl", "kl_scaled"), 1, 3, False),
    _Quantity("NLL, nats", ("nll", "nll_scaled"), 1, 3, True),
)


def bars(study: Study) -> Figure:
    """Agreement, KL to the teacher and NLL of each student, as trained and temperature scaled, with every seed."""
    colours = [look.colour for look in looks([one.row for one in study.students])]
    students = [(one.label, one.figures, colour) for one, colour in zip(study.students, colours, strict=True)]
    teacher: list[tuple[str, list[Figures], Colour | str]] = [("teacher", [study.teacher_figures], TEACHER)]
    figure = Figure(figsize=(11, 1.2 + 2 * (0.6 + 0.44 * (len(students) + 1))), layout="constrained")
    for place, quantity in enumerate(_QUANTITIES, 1):
        axes = framed(figure.add_subplot(2, 2, place))
        axes.set_title(quantity.title, loc="left", fontsize=10.5)
        _draw_bars(axes, [*(teacher if quantity.of_teacher else []), *students], quantity)
    return figure


def _draw_bars(axes: Axes, shown: Sequence[tuple[str, Sequence[Figures], Colour | str]], quantity: _Quantity) -> None:
    height = 0.72 / len(quantity.names)
    longest = 0.0
    for line, (_, figures, colour) in enumerate(shown):
        for i, name in enumerate(quantity.names):
            values = np.array([getattr(one, name) for one in figures], dtype=float) * quantity.scale
            if np.isnan(values).any():
                continue
            y = line + (i - (len(quantity.names) - 1) / 2) * height
            axes.barh(y, values.mean(), 0.92 * height, color=colour, alpha=0.45 if i else 1.0)
            if len(values) > 1:
                axes.errorbar(
                    values.mean(), y, xerr=values.std(ddof=1), fmt="none", ecolor=INK, elinewidth=1.2, capsize=3
                )
            text = f"{values.mean():.{quantity.digits}f}" + (" scaled" if i else "")
            end = values.mean() + (values.std(ddof=1) if len(values) > 1 else 0.0)
            axes.annotate(
                text, (end, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
            )
            longest = max(longest, end)
    axes.set_xlim(0, 1.22 * longest or 1)
    axes.set_yticks(range(len(shown)), [_wrapped(name, 22) for name, _, _ in shown], fontsize=9.5)
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)


def _wrapped(name: str, width: int = 24) -> str:
    return literal("\n".join(textwrap.wrap(name, width, break_long_words=False) or [""]))
