"""Pictures of accuracy over the swept knobs, and over the students' size."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kd.report.axes import SIZE, Line, Sweep, grid, logarithmic, sizes, sweeps
from kd.report.numbers import parameters
from kd.report.rows import Role, Row, Spread, titled
from kd.report.style import INK, Colour, Look, framed, legend, literal, method_styles, shades
from kd.report.summary import Summary
from kd.report.text import slug

MOST_LINES = 12
MOST_MAPS = 12
MOST_REFERENCES = 3
MOST_SWEEPS = 20
MARK = "#D55E00"


class Metric(NamedTuple):
    """The figure of a row that a picture shows."""

    name: str
    of: Callable[[Row], Spread | None]

    def mean(self, row: Row) -> float:
        """Return the mean in percent; NaN where unknown."""
        spread = self.of(row)
        return 100 * spread.mean if spread else math.nan

    def std(self, row: Row) -> float:
        """Return the standard deviation in percentage points; 0 for one seed."""
        spread = self.of(row)
        return 100 * (spread.std or 0.0) if spread else 0.0


VALIDATION = Metric("validation accuracy, %", lambda row: row.val_acc)
TEST = Metric("test accuracy, %", lambda row: row.test_acc)


class Picture(NamedTuple):
    """A figure, the name of its file, and a short description."""

    name: str
    figure: Figure
    what: str


def pictures(summary: Summary) -> list[Picture]:
    """Draw each set of swept knobs: curves for a single one, heat maps for two; and curves over sizes.

    The rows are those of one data set.
    No picture where nothing was swept. Each shows validation accuracy if any of its rows has one, else test accuracy,
    and is labelled so.
    """
    drawn = []
    for sweep in [*sweeps(summary.rows)[:MOST_SWEEPS], *sizes(summary.rows)]:
        metric, complete = measured(sweep)
        if complete.lines:
            draw = _curves if len(sweep.axes) == 1 else _maps
            drawn.append(Picture(_file(sweep), draw(complete, metric, summary), _description(sweep, metric)))
    return drawn


def measured(sweep: Sweep) -> tuple[Metric, Sweep]:
    """Return the metric to show, and the sweep without the rows that lack it."""
    rows = [row for line in sweep.lines for row in line.points.values()]
    metric = VALIDATION if any(row.val_acc for row in rows) else TEST
    lines = [line._replace(points={x: row for x, row in line.points.items() if metric.of(row)}) for line in sweep.lines]
    lines = [line for line in lines if line.points]
    lacking = len(rows) - sum(len(line.points) for line in lines)
    return metric, sweep._replace(lines=lines, left_out=sweep.left_out + lacking)


def _file(sweep: Sweep) -> str:
    stem = "sizes" if sweep.axes == (SIZE,) else "_".join(("sweep", *sweep.axes))
    return slug(stem) + ".png"


def _description(sweep: Sweep, metric: Metric) -> str:
    over = "the students' size" if sweep.axes == (SIZE,) else " and ".join(sweep.axes)
    rows = [row for line in sweep.lines for row in line.points.values()]
    return f"{metric.name.split(',')[0].capitalize()} over {over}, {titled(rows)}"


def top_lines(lines: Sequence[Line], metric: Metric, most: int) -> tuple[list[Line], str]:
    """Return at most `most` lines, those with the highest validation accuracy, else the first, and a remark."""
    if len(lines) <= most:
        return list(lines), ""
    places = list(range(len(lines)))
    how = "first"
    if metric is VALIDATION:
        tops = [max(metric.mean(row) for row in line.points.values()) for line in lines]
        places.sort(key=lambda i: -tops[i])
        how = "highest"
    return [lines[i] for i in sorted(places[:most])], f"the {how} {most} of {len(lines)} combinations"


def _title(sweep: Sweep, metric: Metric, *remarks: str) -> str:
    """Return a title with a second line of remarks."""
    left_out = f"{sweep.left_out} without a place here left out" if sweep.left_out else ""
    second = "; ".join(filter(None, [*remarks, left_out]))
    return literal(f"{_description(sweep, metric)}\n{second}".rstrip())


def _n(rows: Sequence[Row]) -> str:
    seeds = sorted({row.n for row in rows})
    return f"n = {seeds[0]}" + (f" to {seeds[-1]}" if len(seeds) > 1 else "")


# One axis: curves


def _curves(sweep: Sweep, metric: Metric, summary: Summary) -> Figure:
    """Draw a line with a band for each method and combination of further settings; sizes on a logarithmic axis."""
    size = sweep.axes == (SIZE,)
    lines, remark = top_lines(sweep.lines, metric, MOST_LINES)
    references = _references(sweep, metric, summary, Role.TEACHER if size else Role.ALONE)
    names = [_name(line.name, list(line.points.values())) for line in lines]
    names += [_name(row.label, [row]) for row in references]
    names, columns, height = legend(names, 75, 95)
    figure = Figure(figsize=(7.6, 4.7 + height), layout="constrained")
    axes = framed(figure.add_subplot())
    styles = method_styles(summary.rows)
    for line, look, name in zip(lines, shades([line.method for line in lines], styles), names, strict=False):
        _draw_line(axes, line, look, metric, name)
    values = [x for line in lines for (x,) in line.points]
    for row, name in zip(references, names[len(lines) :], strict=True):
        hue = styles[row.first.method][1]
        if size:
            axes.plot([row.params or 0], [metric.mean(row)], "D", color=hue, label=name)
            values.append(float(row.params or 0))
        else:
            axes.axhline(metric.mean(row), color=hue, linestyle="--", linewidth=1.4, label=name)
    (log,) = logarithmic(sweep.axes, lines)
    _ticks(axes, sorted(set(values)), log, size)
    axes.margins(y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.set_ylabel(metric.name)
    axes.set_xlabel(
        literal("parameters of the student (diamond: of the teacher)" if size and references else sweep.axes[0])
    )
    banded = any(metric.std(row) for line in lines for row in line.points.values())
    axes.set_title(_title(sweep, metric, "band: ± sample std" * banded, remark), loc="left", fontsize=11)
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    return figure


def _references(sweep: Sweep, metric: Metric, summary: Summary, role: Role) -> list[Row]:
    """Return rows to compare the lines with that are on none of them; none if these are many."""
    on_lines = {id(row) for line in sweep.lines for row in line.points.values()}
    here = [row for row in summary.rows if row.role is role]
    rows = [row for row in here if id(row) not in on_lines and metric.of(row)]
    return rows if len(rows) <= MOST_REFERENCES else []


def _name(name: str, rows: Sequence[Row]) -> str:
    return f"{name} ({_n(rows)})"


def _draw_line(axes: Axes, line: Line, look: Look, metric: Metric, name: str) -> None:
    x = [x for (x,) in line.points]
    mean = np.array([metric.mean(row) for row in line.points.values()])
    std = np.array([metric.std(row) for row in line.points.values()])
    axes.plot(
        x,
        mean,
        color=look.colour,
        linestyle=look.dash,
        linewidth=1.8,
        marker="o",
        markersize=4.5,
        label=name,
    )
    low, high = np.clip(mean - std, 0, 100), np.clip(mean + std, 0, 100)
    if len(x) == 1:
        axes.errorbar(x, mean, np.array([mean - low, high - mean]), fmt="none", ecolor=look.colour, capsize=3)
    else:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)


def _ticks(axes: Axes, values: Sequence[float], log: bool, size: bool) -> None:
    """Set ticks at the swept values, except where two would be too close to be read."""
    if log:
        axes.set_xscale("log")
    where = np.log(values) if log else np.array(values)
    room = 0.09 if size else 0.04
    kept: list[int] = []
    for i, at in enumerate(where):
        if not kept or at - where[kept[-1]] >= room * np.ptp(where):
            kept.append(i)
    axes.xaxis.set_major_locator(FixedLocator([values[i] for i in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: parameters(round(x)) if size else f"{x:g}"))


# Two axes: heat maps


def _maps(sweep: Sweep, metric: Metric, summary: Summary) -> Figure:
    """Draw a map for each method and combination of further settings, all on one scale of colours."""
    lines, remark = top_lines(sweep.lines, metric, MOST_MAPS)
    ys, xs, loose = grid(lines)
    width, height = (3.6, 3.0) if loose else (0.8 + 0.5 * len(xs), max(1.8, 0.9 + 0.34 * len(ys)))
    columns = _columns(len(lines), width / height)
    rows = math.ceil(len(lines) / columns)
    size = (1.3 + max(columns * width, 5.8), 1.1 + rows * height)
    figure = Figure(figsize=size, layout="constrained")
    points = [row for line in lines for row in line.points.values()]
    colours = _colours([metric.mean(row) for row in points])
    draw = _draw_dots if loose else _draw_cells
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(len(lines))]
    for axes, line in zip(panels, lines, strict=True):
        draw(axes, line, xs, ys, metric, colours)
        if loose:
            for set_scale, log in zip((axes.set_yscale, axes.set_xscale), logarithmic(sweep.axes, lines), strict=True):
                set_scale("log" if log else "linear")
        axes.set_title(literal(line.name), loc="left", fontsize=10)
        axes.set_ylabel(literal(sweep.axes[0]))
        axes.set_xlabel(literal(sweep.axes[1]))
    best = "" if metric is TEST else "marked: the highest of each map"
    references = _references(sweep, metric, summary, Role.ALONE)
    beside = ", ".join(f"{row.label}: {metric.mean(row):.2f}" for row in references)
    figure.suptitle(_title(sweep, metric, _n(points), best, beside, remark), x=0.01, ha="left", fontsize=11)
    bar = figure.colorbar(colours, ax=panels, label=metric.name, aspect=25)
    bar.outline.set_visible(False)
    return figure


def _columns(maps: int, aspect: float) -> int:
    """Return the number of maps side by side that leaves fewest places empty, in about the shape of a page."""

    def oddness(columns: int) -> tuple[int, float]:
        rows = math.ceil(maps / columns)
        return rows * columns - maps, abs(math.log(aspect * columns / rows / 1.5))

    return min(range(1, 5), key=oddness)


def _colours(means: Sequence[float]) -> ScalarMappable:
    """Return a scale from the lowest to the highest, at least a tenth of a point wide: less would be noise."""
    middle, reach = (max(means) + min(means)) / 2, max((max(means) - min(means)) / 2, 0.05)
    return ScalarMappable(Normalize(middle - reach, middle + reach), "viridis")


def _colour(colours: ScalarMappable, value: float) -> Colour:
    red, green, blue, _ = colours.to_rgba(np.array([value]))[0]
    return float(red), float(green), float(blue)


def _draw_cells(
    axes: Axes, line: Line, xs: list[float], ys: list[float], metric: Metric, colours: ScalarMappable
) -> None:
    """Draw a cell for each row with its value in it."""
    highest = max(line.points, key=lambda place: metric.mean(line.points[place]))
    for place, row in line.points.items():
        x, y, mean = xs.index(place[1]), ys.index(place[0]), metric.mean(row)
        red, green, blue = colour = _colour(colours, mean)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.45
        axes.text(x, y, f"{mean:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
        if place == highest and metric is VALIDATION and len(line.points) > 1:
            frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=2.2, zorder=3)
            frame.set_clip_on(False)
            axes.add_patch(frame)
    axes.set_xlim(-0.5, len(xs) - 0.5)
    axes.set_ylim(-0.5, len(ys) - 0.5)
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_dots(
    axes: Axes, line: Line, xs: list[float], ys: list[float], metric: Metric, colours: ScalarMappable
) -> None:
    """Draw a dot for each row, the highest on top, as for a random search."""
    ranked = sorted(line.points.items(), key=lambda item: metric.mean(item[1]))
    x, y = [place[1] for place, _ in ranked], [place[0] for place, _ in ranked]
    axes.scatter(
        x,
        y,
        c=[_colour(colours, metric.mean(row)) for _, row in ranked],
        s=36,
        edgecolors="white",
        linewidths=0.5,
    )
    if metric is VALIDATION:
        axes.scatter(x[-1:], y[-1:], s=80, facecolors="none", edgecolors=MARK, linewidths=1.8)
    axes.spines[["top", "right"]].set_visible(False)
