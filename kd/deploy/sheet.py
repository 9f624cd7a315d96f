"""A picture of images and what networks make of them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image, ImageFont

from kd.errors import UserError
from kd.inference import Prediction
from kd.report.style import HUES, INK, TEACHER, literal
from kd.terminal import visible

COLUMNS = 8
"""At most."""
CELL, NARROWEST = 1.5, 4.5
"""Inches: width of an image's cell where there are many, and of the whole picture at least."""
TITLE, LABEL, LINE, GAP = 0.36, 0.24, 0.15, 0.1
"""Inches: height of the title, of the class above an image, of a line below it; distance between images."""
DPI = 150
PAPER = "#F4F4F4"
"""What fills the square of an image that is none."""


class Shown(NamedTuple):
    """An image with its name and what was made of it."""

    picture: Image.Image
    name: str
    best: Prediction
    teacher: Prediction | None


def draw(path: Path, shown: Sequence[Shown], total: int) -> None:
    """Draw images with their most probable class, and that of the teacher where it is another one.

    Args:
        path: of the picture, whose suffix is its format.
        shown: the images, at least one.
        total: how many images were classified, for the title.

    Raises:
        UserError: if the picture cannot be written.
    """
    try:
        _figure(shown, total).savefig(path, dpi=DPI, facecolor="white")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the picture cannot be written: {error}") from error


def _figure(shown: Sequence[Shown], total: int) -> Figure:
    rows = -(-len(shown) // COLUMNS)
    columns = -(-len(shown) // rows)  # rows of equal length, but for the last
    differing = [image.teacher is not None and image.teacher.label != image.best.label for image in shown]
    width = max(CELL * columns, NARROWEST)
    side = width / columns - GAP
    cell = LABEL + side + LINE * (2 if any(differing) else 1) + GAP
    height = TITLE + rows * cell
    figure = Figure(figsize=(width, height))
    part = "" if len(shown) == total else f", the first {len(shown)} of {total:,} images"
    title = f"Most probable class and its probability{part}"
    figure.text(GAP / 2 / width, 1 - 0.1 / height, title, fontsize=10, va="top", color=INK)
    for place, (image, differs) in enumerate(zip(shown, differing, strict=True)):
        left = (place % columns) * width / columns + GAP / 2
        bottom = height - TITLE - place // columns * cell - LABEL - side
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        _show(axes, image.picture)
        _write(axes, side, side + 0.06, image.best.label, _percent(image.best), 8, INK)
        _write(axes, side, -0.11, Path(image.name).name, "", 6, TEACHER)
        if image.teacher is not None and differs:
            _write(axes, side, -0.11 - LINE, f"teacher: {image.teacher.label}", _percent(image.teacher), 6.5, HUES[1])
    return figure


def _show(axes: Axes, picture: Image.Image) -> None:
    """Show a picture in the middle of a square."""
    w, h = picture.size
    axes.imshow(picture)  # pixels stay pixels where it is enlarged
    half = max(w, h) / 2
    axes.set_xlim(w / 2 - 0.5 - half, w / 2 - 0.5 + half)
    axes.set_ylim(h / 2 - 0.5 + half, h / 2 - 0.5 - half)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_facecolor(PAPER)


def _write(axes: Axes, side: float, up: float, text: str, after: str, size: float, colour: str) -> None:
    """Write a line in the middle, as far above an image's lower edge as `up` says.

    Args:
        axes: the image's.
        side: its width and height in inches.
        up: in inches.
        text: shortened until the line is no wider than the image.
        after: the end of the line, which is not.
        size: of the letters, in points.
        colour: theirs.
    """
    line = literal(_fitting(text, side - _font(size).getlength(after) / DPI, size) + after)
    axes.text(0.5, up / side, line, transform=axes.transAxes, ha="center", fontsize=size, color=colour)


def _percent(prediction: Prediction) -> str:
    return f", {100 * prediction.probability:.0f} %"


def _fitting(text: str, inches: float, size: float) -> str:
    """Return a text on one line, its middle left out if it is wider than that in letters of so many points.

    A box stands for each letter that the font lacks.
    """
    has, font = get_font(findfont(FontProperties())).get_char_index, _font(size)
    text = "".join(letter if has(ord(letter)) else "□" for letter in visible(text))
    kept, short = len(text), text
    # matplotlib moves letters to whole pixels, so that a line may be some percent longer.
    while (width := 1.03 * font.getlength(short) / DPI) > inches and kept > 2:
        kept = min(kept - 1, round(kept * inches / width))
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib writes with, at the pixels that it has in the picture."""
    return ImageFont.truetype(findfont(FontProperties()), size * DPI / 72)
