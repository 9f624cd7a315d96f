"""The picture of differences between rows."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kd.report.comparison import Comparison
from kd.report.rows import titled
from kd.report.statistics import UNCERTAIN, UNSEEN
from kd.report.style import FAINT, INK, TEACHER, framed, literal, wrapped

COLOURS = {"better": "#0072B2", "worse": "#D55E00"}
"""Colours by the first word of the verdict; grey for all others."""
FAR = 4
"""A difference this many times as large as the next would flatten all others."""


def differences(comparisons: Sequence[Comparison], names: Sequence[str] = (), title: str = "") -> Figure:
    """Draw test accuracy minus that of the baseline, with its interval and every seed, from the highest to the lowest.

    An outlier is an arrow at the edge, so that the axis has room for the rest.

    Args:
        comparisons: comparisons, each with a difference; with one baseline unless `title` tells what is compared.
        names: in place of the rows' labels.
        title: in place of the data and the baseline.
    """
    named = list(zip(comparisons, names or [comparison.row.label for comparison in comparisons], strict=True))
    named.sort(key=lambda pair: pair[0].difference.mean or 0.0)
    ranked = [comparison for comparison, _ in named]
    names = [wrapped(f"{name} (n = {comparison.difference.n})", 48) for comparison, name in named]
    lines = sum(1 + name.count("\n") for name in names)
    figure = Figure(figsize=(9, 1.9 + 0.14 * len(names) + 0.2 * lines), layout="constrained")
    baseline, outlier = comparisons[0].baseline, _outlier(ranked)
    line = " line: 95 % interval," if any(comparison.difference.interval for comparison in ranked) else ""
    marks = f"diamond: mean over n seeds,{line} dots: seeds"
    marks += ", arrow: far beyond the axis" if outlier else ""
    title = title or f"Test accuracy on {titled([baseline])} compared with {baseline.label}"
    figure.suptitle(literal(f"{title}\n{marks}"), x=0.01, ha="left", fontsize=11)
    axes = framed(figure.add_subplot())
    axes.axvline(0, color=INK, linewidth=1.0)
    for place, comparison in enumerate(ranked):
        interval, mean = comparison.difference.interval, 100 * (comparison.difference.mean or 0.0)
        colour = COLOURS.get(comparison.verdict.partition(",")[0], TEACHER)
        # Outside the axes, where no interval can run through it.
        axes.text(
            1.01, place, f"{mean:+.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9.5, color=INK
        )
        if comparison is outlier:
            edge, arrow = (0.015, "<") if mean < 0 else (0.985, ">")
            axes.plot(edge, place, arrow, color=colour, markersize=8, transform=axes.get_yaxis_transform())
            continue
        seeds = [100 * seed for seed in comparison.by_seed]
        axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.35, markersize=4)
        if interval:
            axes.plot([100 * end for end in interval], [place, place], color=colour, linewidth=1.6)
        axes.plot(mean, place, "D", color=colour, markersize=6)
    axes.set_yticks(range(len(ranked)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("difference, points")
    handles = [Line2D([], [], color=colour, marker="D", label=verdict) for verdict, colour in COLOURS.items()]
    other = f"{'equivalent, ' if comparisons[0].margin else ''}{UNSEEN}, {UNCERTAIN}, or no statement"
    handles.append(Line2D([], [], color=TEACHER, marker="D", label=other))
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return figure


def _outlier(comparisons: Sequence[Comparison]) -> Comparison | None:
    """Return the comparison whose difference is `FAR` times as large as any seed or interval of the rest, if any."""

    def reach(comparison: Comparison) -> float:
        return float(max(map(abs, (*comparison.by_seed, *(comparison.difference.interval or ())))))

    ranked = sorted(comparisons, key=reach)
    far = len(ranked) > 2 and abs(ranked[-1].difference.mean or 0.0) > FAR * reach(ranked[-2])
    return ranked[-1] if far else None
