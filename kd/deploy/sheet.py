"""A picture of images and what networks make of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from kd.errors import UserError
from kd.inference import Prediction
from kd.report.style import HUES, INK, TEACHER, literal
from kd.report.text import shortened, visible

COLUMNS = 8


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
        shown: the images.
        total: how many images were classified, for the title.

    Raises:
        UserError: if the picture cannot be written.
    """
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.95 * rows + 0.4), layout="constrained")
    part = "" if len(shown) == total else f", the first {len(shown)} of {total:,} images"
    figure.suptitle(f"Most probable class and its probability{part}", fontsize=10, color=INK)
    for place, (picture, name, best, teacher) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(_label(best), fontsize=8, color=INK, pad=3)
        below = literal(shortened(visible(Path(name).name), 24))
        differs = teacher is not None and teacher.label != best.label
        if teacher is not None and differs:
            below = f"teacher: {_label(teacher)}\n{below}"
        colour = HUES[1] if differs else TEACHER
        axes.text(0.5, -0.04, below, transform=axes.transAxes, ha="center", va="top", fontsize=6, color=colour)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the picture cannot be written: {error}") from error


def _label(prediction: Prediction) -> str:
    return f"{literal(shortened(visible(prediction.label), 18))}, {100 * prediction.probability:.0f} %"
