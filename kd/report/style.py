"""Common style of the report's pictures: colours, panels, text."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, product
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd.report.rows import Role, Row
from kd.report.text import shortened

Colour = tuple[float, float, float]

# Okabe and Ito's colours without black and yellow, then four of Paul Tol's: readable for the colour-blind, too.
HUES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#882255", "#999933", "#332288", "#44AA99")
TEACHER = "#595959"
INK = "#262626"
FAINT = "#E3E3E3"
LINE = 160
"""Characters of a line of text, for which the widest pictures have room."""
VALUE = 40
"""Characters of a setting's value below a bar."""
DASHES = ("-", "--", ":")


class Look(NamedTuple):
    """Colour and dash of a row, the same in every picture."""

    colour: Colour
    dash: str


def looks(rows: Sequence[Row]) -> list[Look]:
    """Return the rows' looks: a hue per method, grey for teachers, a method's rows from light to dark in order."""
    return shades([row.first.method for row in rows], method_styles(rows))


def method_styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Return dash and hue of each method in a report."""
    styles = cycle(product(DASHES, HUES))  # dashes only once the hues are used up
    styled: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.first.method not in styled:
            styled[row.first.method] = ("-", TEACHER) if row.role is Role.TEACHER else next(styles)
    return styled


def shades(of_method: Sequence[str], styles: dict[str, tuple[str, str]]) -> list[Look]:
    """Return looks for items given by their methods: those of one method from light to dark, in their order."""
    counts = Counter(of_method)
    place: Counter[str] = Counter()
    looks = []
    for method in of_method:
        dash, hue = styles[method]
        looks.append(Look(_shade(hue, place[method], counts[method]), dash))
        place[method] += 1
    return looks


def _shade(base: str, place: int, count: int) -> Colour:
    """Mix a colour with white for the first of `count` places, with black for the last; leave it for a single one."""
    reach = min(0.42, 0.14 * count)
    mix = 0.0 if count == 1 else reach * (1 - 2 * place / (count - 1))
    rgb = (int(base[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = ((1 - abs(mix)) * part + max(mix, 0.0) for part in rgb)
    return red, green, blue


def panels(figure: Figure, titles: Sequence[str]) -> list[Axes]:
    """Add panels side by side."""
    added = [framed(figure.add_subplot(1, len(titles), i)) for i in range(1, len(titles) + 1)]
    for axes, title in zip(added, titles, strict=True):
        axes.set_title(literal(title), loc="left", fontsize=11)
    return added


def framed(axes: Axes) -> Axes:
    """Leave two spines, and add faint horizontal lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def message(figure: Figure, text: str) -> Figure:
    """Show a text instead of axes."""
    for axes in figure.axes:
        axes.set_axis_off()
    figure.text(0.5, 0.5, text, ha="center", color=INK)
    return figure


def literal(text: str) -> str:
    """Escape "$", which an override may hold, so that matplotlib starts no formula with it, and shorten long lines.

    A legend leaves out what begins with "_", so that gets a blank before it.
    """
    lines = "\n".join(shortened(line, LINE) for line in text.split("\n"))
    return (" " if lines.startswith("_") else "") + lines.replace("$", r"\$")


def wrapped(name: str, width: int = 24) -> str:
    """Wrap a name into lines of `width` characters, longer words whole, and escape it."""
    return literal("\n".join(textwrap.wrap(name, width, break_long_words=False) or [""]))


def legend(names: Sequence[str], side_by_side: int, width: int) -> tuple[list[str], int, float]:
    """Wrap and escape the entries of a legend.

    Args:
        names: of the entries.
        side_by_side: characters of all entries of a line together, if they fit into more than one column.
        width: characters of a line of a single column.

    Returns:
        The entries, the number of columns, and the height of all in inches.
    """
    columns = max(1, side_by_side // (max(map(len, names), default=0) + 9))
    entries = [wrapped(name, width) for name in names]
    return entries, columns, 0.21 * math.ceil(sum(entry.count("\n") + 1 for entry in entries) / columns)


def abbreviated(setting: str) -> str:
    """Return a setting as a label has room for it: of a long value, such as a path, the end."""
    name, equals, value = setting.partition("=")
    if len(value) <= VALUE:
        return setting
    end = value[3 - VALUE :]
    return f"{name}{equals}...{end[max(0, end.find('/')) :]}"
