"""How many seeds find a difference: the picture of statistical power."""

from collections.abc import Sequence
from statistics import stdev

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd.report.comparison import Comparison
from kd.report.effects import POWER, smallest_detectable
from kd.report.statistics import FEWEST
from kd.report.style import HUES, INK, framed, literal

MOST_SHOWN = 20
"""Seeds up to which the lines go."""


def picture(comparisons: Sequence[Comparison], names: Sequence[str], marked: float | None = None) -> Figure:
    """Draw the true difference, in points, that n seeds find, over n: a line for the spread of each comparison.

    A diamond is the difference that was seen with the seeds at hand. Above its line, it is one that as many seeds find.
    Of one test: where several are corrected, it is larger.

    Args:
        comparisons: comparisons that have an interval.
        names: what each is called.
        marked: a difference, in points, to be marked by a horizontal line.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = framed(figure.add_subplot())
    seeds = range(FEWEST, MOST_SHOWN + 1)
    for comparison, name, hue in zip(comparisons, names, HUES, strict=False):
        spread = 100 * stdev(comparison.by_seed)
        label = literal(f"{name}: spread {spread:.2f} points")
        axes.plot(seeds, [smallest_detectable(spread, n) for n in seeds], color=hue, label=label)
        axes.plot(comparison.difference.n, 100 * abs(comparison.difference.mean or 0.0), "D", color=hue, markersize=7)
    if marked is not None:
        axes.axhline(marked, color=INK, linestyle=":", linewidth=1.1, label=f"{marked:g} points")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seeds")
    axes.set_ylabel("true difference, points")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    share = f"{100 * POWER:.0f} %"
    axes.set_title(f"Difference that one test finds in {share} of sweeps; diamond: seen", loc="left", fontsize=11)
    axes.legend(frameon=False)
    return figure
