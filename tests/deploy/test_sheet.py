"""The picture sheet: what is on it stays inside it, whatever the images and their names are."""

import re
import warnings

import numpy as np
import pytest
from PIL import Image

from kd.deploy.sheet import Shown, _fitting, draw
from kd.inference import Prediction


def shown(size=(9, 9), name="a.png", label="cat", teacher=None):
    other = None if teacher is None else Prediction(teacher, 1.0)
    return Shown(Image.new("RGB", size, "teal"), name, Prediction(label, 0.5), other)


def drawn(path, images, total=None):
    """Return the sheet as grey levels, (H, W)."""
    with warnings.catch_warnings(record=True) as warned:  # they would be lines of the program
        draw(path, images, len(images) if total is None else total)
    assert not warned
    return np.asarray(Image.open(path).convert("L"))


@pytest.mark.parametrize("n", [1, 2, 7, 17])
def test_draw_keeps_everything_inside(tmp_path, n):
    long = shown(name="W" * 200 + ".png", label="$x_1$ " * 30, teacher="m" * 90)
    pixels = drawn(tmp_path / "sheet.png", [long] * n, total=n if n < 17 else 1000)
    edges = np.concatenate([part.ravel() for part in (pixels[:, :4], pixels[:, -4:], pixels[:4], pixels[-4:])])
    assert (edges > 250).all()
    assert 600 < pixels.shape[1] <= 1800


def test_draw_has_rows_of_equal_length(tmp_path):
    shapes = {n: drawn(tmp_path / "sheet.png", [shown()] * n).shape for n in (8, 9)}
    assert shapes[8][1] == pytest.approx(8 / 5 * shapes[9][1], abs=2)


def test_draw_puts_images_of_any_shape_in_the_middle_of_equal_squares(tmp_path):
    shapes = [(90, 10), (10, 90), (40, 40), (50, 1)]
    wide, tall, square, strip = np.split(drawn(tmp_path / "sheet.png", [shown(size) for size in shapes]), 4, axis=1)
    teal = round(0.587 * 128 + 0.114 * 128)

    def middle(pixels):
        rows, columns = np.nonzero(np.abs(pixels.astype(int) - teal) < 8)
        return rows.mean(), columns.mean()

    for part in (wide, tall, strip):
        assert middle(part) == pytest.approx(middle(square), abs=4)


def test_draw_leaves_out_what_no_font_has(tmp_path):
    drawn(tmp_path / "sheet.png", [shown(name="日本語のとても長いファイル名です写真.png", label="犬")])


def test_fitting_leaves_out_the_middle():
    assert _fitting("photo.png", 0.6, 6) == "photo.png"
    assert re.fullmatch(r"a_lon\w*…\w*\.png", _fitting("a_long_name_of_a_photo.png", 0.6, 6))
    assert len(_fitting("W" * 90, 0.6, 6)) < len(_fitting("i" * 90, 0.6, 6)) < 90
    assert _fitting("犬.png", 0.6, 6) == "□.png"
    assert _fitting("a\nb", 0.6, 6) == "a\\nb"
