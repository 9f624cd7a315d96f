"""What the report's pictures have in common: colours, panels, text."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, product
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd.report.rows import Role, Row

Colour = tuple[float, float, float]

# Okabe and Ito's colours without black and yellow, then four of Paul Tol's: chosen for the colour-blind, too.
HUES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#882255", "#999933", "#332288", "#44AA99")
TEACHER = "#595959"
INK = "#262626"
FAINT = "#E3E3E3"
DASHES = ("-", "--", ":")


class Look(NamedTuple):
    """How a row is drawn, in every picture."""

    colour: Colour
    dash: str


def looks(rows: Sequence[Row]) -> list[Look]:
    """A hue per method, grey for teachers; a method's rows go from light to dark in their order."""
    return shades([row.first.method for row in rows], methods(rows))


def methods(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Dash and hue of each method in a report."""
    styles = cycle(product(DASHES, HUES))  # dashes only once the hues are used up
    found: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.first.method not in found:
            found[row.first.method] = ("-", TEACHER) if row.role is Role.TEACHER else next(styles)
    return found


def shades(of_method: Sequence[str], styles: dict[str, tuple[str, str]]) -> list[Look]:
    """The looks of things that belong to methods: those of one method from light to dark, in their order."""
    of = Counter(of_method)
    place: Counter[str] = Counter()
    found = []
    for method in of_method:
        dash, hue = styles[method]
        found.append(Look(_shade(hue, place[method], of[method]), dash))
        place[method] += 1
    return found


def _shade(base: str, place: int, of: int) -> Colour:
    """`base` itself where it stands alone, else one of its mixtures, from with white to with black."""
    reach = min(0.42, 0.14 * of)
    mix = 0.0 if of == 1 else reach * (1 - 2 * place / (of - 1))
    rgb = (int(base[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = ((1 - abs(mix)) * part + max(mix, 0.0) for part in rgb)
    return red, green, blue


def panels(figure: Figure, titles: Sequence[str]) -> list[Axes]:
    """Side by side."""
    found = [framed(figure.add_subplot(1, len(titles), i)) for i in range(1, len(titles) + 1)]
    for axes, title in zip(found, titles, strict=True):
        axes.set_title(literal(title), loc="left", fontsize=11)
    return found


def framed(axes: Axes) -> Axes:
    """Two spines, and faint lines to read heights by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def nothing(figure: Figure, why: str) -> Figure:
    """Words instead of axes."""
    for axes in figure.axes:
        axes.set_axis_off()
    figure.text(0.5, 0.5, why, ha="center", color=INK)
    return figure


def literal(text: str) -> str:
    """Its "$" made no start of a formula: an override may hold one."""
    return text.replace("$", r"\$")


def wrapped(name: str, width: int = 24) -> str:
    """In lines of so many characters, if its words are no longer; literally."""
    return literal("\n".join(textwrap.wrap(name, width, break_long_words=False) or [""]))
