"""Pictures of a fidelity study: agreement with the teacher, calibration, classes, images."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kd.report.fidelity.measures import Bins, Figures, Outputs, missing, most, pooled, spread
from kd.report.fidelity.study import Compared, Student, Study
from kd.report.style import FAINT, INK, TEACHER, Colour, framed, literal, looks, message, wrapped

RIGHT, WRONG = "#0072B2", "#D55E00"
"""Blue and vermilion: distinct for the colour-blind, too."""
COLUMNS, LINES = 6, 2
"""Grid of images: one for fixed ones, one for broken ones."""


# Reliability


class _Panel(NamedTuple):
    name: str
    colour: Colour | str
    before: Bins
    """Bins over all seeds."""
    after: Bins | None
    ece: float
    """Mean over seeds."""
    ece_scaled: float | None
    unscaled: str
    """Why nothing is scaled."""
    images: int
    """Number of test images, the same for each network."""


def calibration(study: Study) -> Figure:
    """Draw reliability diagrams of teacher and students, over all seeds, before and after temperature scaling.

    Below each is the distribution of its confidences.
    """
    colours = [look.colour for look in looks([student.row for student in study.students])]
    panels = [_panel(study.teacher_name, TEACHER, study, [study.teacher_outputs], [study.teacher_figures])]
    for student, colour in zip(study.students, colours, strict=True):
        panels.append(_panel(student.label, colour, study, student.outputs, student.figures))
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(11, 0.5 + 3.9 * lines), layout="constrained")
    grid = GridSpec(2 * lines, columns, figure, height_ratios=[3, 1] * lines)
    highest = 105 * max(bins.share.max() for panel in panels for bins in (panel.before, panel.after) if bins)
    for i, panel in enumerate(panels):
        line, column = divmod(i, columns)
        upper = figure.add_subplot(grid[2 * line, column])
        lower = figure.add_subplot(grid[2 * line + 1, column], sharex=upper)
        _draw_reliability(upper, lower, panel, first=column == 0)
        lower.set_ylim(0, highest)
    by_name: dict[str, Artist] = {}
    for axes in figure.axes[::2]:
        handles, names = axes.get_legend_handles_labels()
        by_name = dict(zip(names, handles, strict=True)) | by_name
    figure.legend(by_name.values(), by_name, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _panel(
    name: str, colour: Colour | str, study: Study, outputs: Sequence[Outputs], figures: Sequence[Figures]
) -> _Panel:
    before = pooled(study.labels, [seed.logits for seed in outputs])
    scaled = [seed.scaled for seed in outputs if seed.scaled is not None]
    after = pooled(study.labels, scaled) if len(scaled) == len(outputs) else None
    ece, ece_scaled = fmean(seed.ece for seed in figures), spread(figures, "ece_scaled")
    unscaled = missing(figures, "ece_scaled", study.teacher_figures)
    return _Panel(name, colour, before, after, ece, ece_scaled and ece_scaled.mean, unscaled, len(study.labels))


def _draw_reliability(upper: Axes, lower: Axes, panel: _Panel, first: bool) -> None:
    framed(upper)
    framed(lower)
    upper.set_title(wrapped(panel.name), loc="left", fontsize=10.5, color=INK)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=":", label="confidence = accuracy")
    styles = (
        (panel.before, "as trained", {"color": panel.colour, "marker": "o", "markerfacecolor": "white"}),
        (panel.after, "temperature scaled", {"color": panel.colour, "marker": "o", "linestyle": "--", "alpha": 0.75}),
    )
    for bins, name, style in styles:
        if bins is None:
            continue
        enough = bins.drawn(panel.images)
        upper.plot(
            bins.confidence[enough], bins.accuracy[enough], markersize=4.5, linewidth=1.4, label=name, zorder=3, **style
        )
    upper.text(
        0.97,
        0.05,
        f"ECE {100 * panel.ece:.2f} %\n"
        + (f"not scaled:\n{panel.unscaled}" if panel.ece_scaled is None else f"scaled {100 * panel.ece_scaled:.2f} %"),
        transform=upper.transAxes,
        ha="right",
        va="bottom",
        fontsize=9,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        zorder=4,
    )
    edges = np.linspace(0, 1, len(panel.before.share) + 1)
    lower.stairs(100 * panel.before.share, edges, color=panel.colour, linewidth=1.4)
    if panel.after:
        lower.stairs(100 * panel.after.share, edges, color=panel.colour, fill=True, alpha=0.28)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("confidence", fontsize=9)
    lower.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (upper, lower):
        axes.tick_params(labelsize=8.5, labelleft=first)
    if first:
        upper.set_ylabel("accuracy", fontsize=9)
        lower.set_ylabel("images, %", fontsize=9)


# Classes


def classes(study: Study, names: Sequence[str]) -> Figure:
    """Draw each student's gain over the baseline in each class, in points, with the 95 % interval over seeds."""
    gains = [[compared.differences["accuracy"], *compared.classes] for compared in study.compared]
    means = np.array([[np.nan if d.mean is None else 100 * d.mean for d in line] for line in gains])
    figure = Figure(figsize=(8.6, 1.6 + 0.42 * (len(names) + 1)), layout="constrained")
    axes = framed(figure.add_subplot())
    if np.isnan(means).all():
        why = " or ".join(sorted({line[0].verdict for line in gains}))
        return message(figure, literal(f"Compared with {study.baseline.label}: {why}."))
    unknown = np.isnan(means[:, 1:])
    known = np.where(unknown.all(axis=0), -np.inf, np.where(unknown, 0.0, means[:, 1:]).mean(axis=0))
    order = [0, *(1 + np.argsort(-known, kind="stable"))]  # all classes, then the greatest gain first
    colours = [look.colour for look in looks([student.row for student in study.students])][1:]
    reach = 0.6 / max(1, len(gains))
    for i, (compared, line, colour) in enumerate(zip(study.compared, gains, colours, strict=True)):
        y = np.arange(len(order)) + (i - (len(gains) - 1) / 2) * reach
        drawn = [line[place] for place in order]
        for height, difference in zip(y, drawn, strict=True):
            if difference.interval:
                ends = [100 * bound for bound in difference.interval]
                axes.plot(ends, [height, height], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
        label = literal(f"{compared.student.label} (n = {line[0].n})")
        axes.scatter(means[i, order], y, s=34, color=colour, edgecolors="white", linewidths=0.7, zorder=3, label=label)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=2)
    axes.axhline(0.5, color=INK, linewidth=0.6)
    refused = [{line[place].refused for line in gains} for place in range(len(order))]
    ticks = [
        literal(name) + (f"\n{' or '.join(sorted(why))}" if all(why) else "")
        for name, why in zip(["all classes", *names], refused, strict=True)
    ]
    axes.set_yticks(range(len(order)), [ticks[place] for place in order], fontsize=10)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"test accuracy minus that of {literal(study.baseline.label)}, points")
    intervals = ", and 95 % interval" if any(d.interval for line in gains for d in line) else ""
    axes.set_title(f"Gains by class: mean over n common seeds{intervals}", loc="left", fontsize=11)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


# Images


def images(study: Study, compared: Compared, pixels: NDArray[np.uint8], names: Sequence[str]) -> Figure:
    """Show images that most seeds of a student get right and most of the baseline's wrong, and the reverse.

    With the true class and the predictions of teacher, baseline and student.

    Args:
        study: the study.
        compared: the student.
        pixels: (M, H, W, 3), the test images.
        names: names of the C classes.
    """
    student, base, changes = compared.student, study.baseline, compared.changes
    blocks = (("Fixed", changes.fixed, "right", "wrong"), ("Broken", changes.broken, "wrong", "right"))
    lines = [min(LINES, -(-len(chosen) // COLUMNS)) for _, chosen, _, _ in blocks]
    height = _NOTE + sum(_TITLE + number * _LINE for number in lines)
    # Placed by hand: all images have one size, whatever room the text around them takes.
    figure = Figure(figsize=(WIDTH, height))
    top = height
    for (title, chosen, ours, theirs), number in zip(blocks, lines, strict=True):
        drawn = chosen[: COLUMNS * LINES]
        rule = f"{ours} in {_seeds(student.n)} of {student.label}, {theirs} in {_seeds(base.n)} of {base.label}"
        few = f"the {len(drawn)} most changed of " if len(drawn) < len(chosen) else ""
        _write(figure, 0.1, top - 0.12, f"{title}: {rule}; {few}{_count(len(chosen))}", 10.5, ha="left")
        for place, image in enumerate(map(int, drawn)):
            line, column = divmod(place, COLUMNS)
            left, upper = 0.1 + column * (WIDTH - 0.1) / COLUMNS, top - _TITLE - line * _LINE
            _draw_image(figure, left, upper, pixels[image], names[int(study.labels[image])])
            for i, prediction in enumerate(_predictions(study, student, image, names)):
                colour = RIGHT if prediction.right else WRONG
                height_of = upper - 0.22 - _SIDE - 0.05 - 0.165 * i
                _write(figure, left + _SIDE / 2, height_of, prediction.text, 7.5, color=colour)
        top -= _TITLE + number * _LINE
    note = f"above: the true class; below: the answers, {_WRONG} where wrong; 3/5: of 3 of 5 seeds"
    _write(figure, 0.1, top, note, 8.5, ha="left")
    return figure


WIDTH, _SIDE = 9.0, 1.38
"""Width of the picture and of an image, in inches."""
_TITLE, _LINE, _NOTE = 0.45, 2.32, 0.25
"""Heights of a title, of a line of images with its text, and of the note below, in inches."""


def _write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    size: float,
    ha: str = "center",
    color: str = INK,
    weight: str = "normal",
) -> None:
    """Write a text at x with its upper end at y, both in inches."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, literal(text), va="top", ha=ha, color=color, fontsize=size, fontweight=weight)


def _draw_image(figure: Figure, left: float, upper: float, pixels: NDArray[np.uint8], name: str) -> None:
    width, height = figure.get_size_inches()
    _write(figure, left + _SIDE / 2, upper, _short(name, 16), 9.5, weight="bold")
    bottom = upper - 0.22 - _SIDE
    axes = figure.add_axes((left / width, bottom / height, _SIDE / width, _SIDE / height))
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()


def _short(name: str, most: int) -> str:
    """Shorten a class name that would run into the next image."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _seeds(n: int) -> str:
    if n == 1:
        return "the only seed"
    return f"all {n} seeds" if most(n) == n else f"≥ {most(n)} of {n} seeds"


def _count(images: int) -> str:
    return f"{images} image{'s' * (images != 1)}"


_RIGHT, _WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"
"""Marks beside the colours, for the colour-blind."""


class _Prediction(NamedTuple):
    text: str
    right: bool


def _predictions(study: Study, student: Student, image: int, names: Sequence[str]) -> list[_Prediction]:
    """Return the predictions of teacher, baseline and student for an image."""
    label = int(study.labels[image])
    votes = [("teacher", int(study.teacher_outputs.logits[image].argmax()), 1, 1)]
    one_method = study.baseline.row.first.method == student.row.first.method
    for network in (study.baseline, student):
        votes.append((network.label if one_method else network.row.first.method, *network.vote(image), network.n))
    predictions = []
    for name, predicted, count, n in votes:
        mark, few = _RIGHT if predicted == label else _WRONG, f" {count}/{n}" if count < n else ""
        predictions.append(_Prediction(f"{name} {mark} {_short(names[predicted], 12)}{few}", predicted == label))
    return predictions


# Bars


class _Quantity(NamedTuple):
    title: str
    names: tuple[str, ...]
    """Name of one figure, or of the figure before and after temperature scaling."""
    scale: float
    digits: int
    of_teacher: bool
    end: float | None = None
    """End of the axis where it is fixed."""


_QUANTITIES = (
    _Quantity("agreement with the teacher, %", ("agreement",), 100, 1, False, 100),
    _Quantity("agreement where the teacher is wrong, %", ("agreement_wrong",), 100, 1, False, 100),
    _Quantity("KL(teacher ‖ student), nats", ("kl", "kl_scaled"), 1, 3, False),
    _Quantity("NLL, nats", ("nll", "nll_scaled"), 1, 3, True),
)


def bars(study: Study) -> Figure:
    """Draw agreement, KL to the teacher and NLL of each student, as trained and temperature scaled."""
    colours = [look.colour for look in looks([student.row for student in study.students])]
    students = [(s.label, s.figures, colour) for s, colour in zip(study.students, colours, strict=True)]
    name, own = study.teacher_name, study.teacher_figures
    teacher: list[tuple[str, list[Figures], Colour | str]] = [(name, [own], TEACHER)]
    size = (11, 1.4 + 2 * (0.6 + 0.44 * (len(students) + 1)))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.09))
    for place, quantity in enumerate(_QUANTITIES, 1):
        axes = framed(figure.add_subplot(2, 2, place))
        number = f" ({own.errors:,} images)" if quantity.names == ("agreement_wrong",) else ""
        axes.set_title(quantity.title.replace(",", f"{number},", 1), loc="left", fontsize=10.5)
        _draw_bars(axes, [*(teacher if quantity.of_teacher else []), *students], quantity, own)
    note = "light: temperature scaled (of KL, both networks)"
    if any(student.n > 1 for student in study.students):
        note = f"mean over n seeds ± sample std; {note}"
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=INK)
    return figure


def _light(colour: Colour | str) -> Colour:
    red, green, blue = (1 - 0.45 * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _draw_bars(
    axes: Axes, bars: Sequence[tuple[str, Sequence[Figures], Colour | str]], quantity: _Quantity, teacher: Figures
) -> None:
    height = 0.72 / len(quantity.names)
    longest = 0.0
    for line, (_, figures, colour) in enumerate(bars):
        for i, name in enumerate(quantity.names):
            y = line + (i - (len(quantity.names) - 1) / 2) * height
            found = spread(figures, name)
            if found is None:
                why = missing(figures, name, teacher)
                axes.annotate(
                    why, (0, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
                )
                continue
            mean, std = quantity.scale * found.mean, quantity.scale * (found.std or 0.0)
            axes.barh(y, mean, 0.92 * height, color=_light(colour) if i else colour)
            if std:
                reach = [[min(std, mean)], [std if quantity.end is None else min(std, quantity.end - mean)]]
                axes.errorbar(mean, y, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
            text = f"{mean:.{quantity.digits}f}" + (" scaled" if i else "")
            end = min(mean + std, quantity.end or math.inf)
            axes.annotate(
                text, (end, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
            )
            longest = max(longest, end)
    axes.set_xlim(0, quantity.end or 1.22 * longest or 1)
    axes.set_yticks(range(len(bars)), [wrapped(name, 18) for name, _, _ in bars], fontsize=9.5)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
