"""Accuracy of networks in the forms that they are run in, against latency and against size."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kd.deploy.table import Row, pareto
from kd.deploy.timing import FORMS
from kd.report.style import HUES, INK, TEACHER, framed, literal, wrapped

MARKERS = dict(zip(FORMS, "osD^", strict=True))
SIZES = dict(zip(FORMS, (10, 7, 5, 8), strict=True))
"""Sizes of the markers: two forms may have the same accuracy and size, and both are to be seen."""


def accuracy_against(
    rows: Sequence[Row], cost: Callable[[Row], float], label: str, teachers: Sequence[str], title: str
) -> Figure:
    """Draw the test accuracy of each row against what it costs, and the line of those that no other one dominates.

    Args:
        rows: at least one.
        cost: of a row, above 0.
        label: of the axis of costs, which is logarithmic.
        teachers: the networks that are drawn in grey.
        title: above the picture.
    """
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = framed(figure.add_subplot())
    axes.set_title(literal(title), loc="left", fontsize=11)
    points = [(cost(row), 100 * row.accuracy) for row in rows]
    best = pareto(points)
    axes.plot(*zip(*(points[place] for place in best), strict=True), color=INK, linewidth=1, linestyle="--", zorder=1)
    names = list(dict.fromkeys(row.network for row in rows))
    hues = iter(HUES * len(names))
    colours = {name: TEACHER if name in teachers else next(hues) for name in names}
    for row, (x, y) in zip(rows, points, strict=True):
        reach = [[y - 100 * row.interval[0]], [100 * row.interval[1] - y]]
        colour = colours[row.network]
        axes.errorbar(x, y, reach, color=colour, linewidth=1, alpha=0.35, zorder=2)
        axes.plot(x, y, color=colour, zorder=3, **_marker(row.form))
    axes.set_ylabel("test accuracy, %")
    axes.set_xlabel(label)
    _logarithmic(axes, [x for x, _ in points])
    handles = [Line2D([], [], color=colours[name], marker="s", linestyle="", label=wrapped(name)) for name in names]
    shown = [form for form in FORMS if any(row.form == form for row in rows)]
    handles += [Line2D([], [], color=INK, label=FORMS[form].name, **_marker(form)) for form in shown]
    handles.append(Line2D([], [], color=INK, linewidth=1, linestyle="--", label="Pareto line"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _marker(form: str) -> dict[str, Any]:
    return {
        "marker": MARKERS[form],
        "markersize": SIZES[form],
        "markerfacecolor": "none",
        "markeredgewidth": 1.4,
        "linestyle": "",
    }


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Make the axis of costs logarithmic, with room at its ends and ticks that are read as plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.25, max(values) * 1.25)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
