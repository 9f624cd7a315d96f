"""Pictures of the loggers: confusion and samples."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.training.loggers import class_label, confusion_figure, render, sample_grid


def texts(axes):
    return {tuple(map(float, text.get_position())): text for text in axes.texts}


# --- the confusion matrix


def test_confusion_figure_labels_few_classes():
    # true a: 8 as a, 2 as b; true b: all 5 right; true c: 1 of 500 right, 499 as a
    counts = np.array([[8, 2, 0], [0, 5, 0], [499, 0, 1]])
    matrix, bars = confusion_figure(counts, ["a", "b", "c"]).axes
    np.testing.assert_allclose(matrix.images[0].get_array(), [[0.8, 0.2, 0], [0, 1, 0], [0.998, 0, 0.002]], rtol=1e-6)
    # at (predicted, true): per cents, and nothing where they round to 0
    cells = {place: text.get_text() for place, text in texts(matrix).items()}
    assert cells == {(0, 0): "80", (1, 0): "20", (1, 1): "100", (0, 2): "100"}
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([80, 100, 0.2])
    assert [text.get_text() for text in bars.texts] == ["80.0", "100.0", "0.2"]
    assert bars.get_title().endswith("(all: 2.72 %)")  # 14 of 515
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted", "true")
    for labels in (matrix.get_xticklabels(), matrix.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "b", "c"]


def test_confusion_figure_text_contrasts_with_its_background():
    matrix, _ = confusion_figure(np.array([[9, 1], [4, 6]]), ["a", "b"]).axes
    picture = matrix.images[0]
    for (column, row), text in texts(matrix).items():
        background = np.mean(picture.to_rgba(picture.get_array())[int(row), int(column), :3])
        assert abs(np.mean(to_rgb(text.get_color())) - background) > 0.4


def test_confusion_figure_of_many_classes_has_no_text():
    counts = np.eye(100, dtype=np.int64) * 3
    counts[7] = 0
    counts[7, 30] = 4
    counts[50] = 0  # a class without test images
    figure = confusion_figure(counts, [f"class {i}" for i in range(100)])
    matrix, bars = figure.axes
    assert not matrix.texts
    assert not bars.texts
    assert [label.get_text() for label in matrix.get_yticklabels()] == [f"class {i}" for i in range(0, 100, 5)]
    heights = np.array([bar.get_width() for bar in bars.patches])
    assert heights.tolist() == [0 if i in (7, 50) else 100 for i in range(100)]
    assert matrix.images[0].get_array()[7, 30] == 1
    assert bars.get_title().endswith("(all: 98.66 %)")  # 98 * 3 of 98 * 3 + 4


def test_render_returns_pixels():
    figure = confusion_figure(np.array([[1, 0], [0, 1]]), ["a", "b"])
    picture = render(figure)
    assert picture.dtype == np.uint8
    assert picture.shape == (700, 1225, 3)  # 7 by 12.25 inches at 100 dots
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture.std() > 10


# --- the samples


@pytest.mark.parametrize(("batch_size", "rows"), [(8, 1), (21, 2), (70, 8)])
def test_sample_grid_shows_the_images_of_the_next_epoch(noise, batch_size, rows):
    images = noise(train=80)
    data = DataModule(images, 0.0, 0, Augment(0, False, 0), batch_size, seed=5)
    picture = sample_grid(data.train_dataloader())
    assert picture.dtype == np.uint8
    assert picture.shape == (rows * 8 * 3, 8 * 8 * 3, 3)
    index = next(iter(data.train_dataloader())).index
    for place in range(8 * rows):
        top, left = 24 * (place // 8), 24 * (place % 8)
        tile = picture[top : top + 24, left : left + 24]
        expected = images.train_x[index[place]].permute(1, 2, 0).numpy()
        assert np.array_equal(tile, expected.repeat(3, axis=0).repeat(3, axis=1))


def test_sample_grid_of_a_batch_smaller_than_a_row(noise):
    data = DataModule(noise(), 0.0, 0, Augment(0, False, 0), batch_size=3, seed=5)
    assert sample_grid(data.train_dataloader()).shape == (24, 3 * 24, 3)


def test_sample_grid_shows_the_augmented_input(noise):
    data = DataModule(noise(), 0.0, 0, Augment(2, True, 4), 8, seed=5)
    loader = data.train_dataloader()
    first = next(iter(loader)).x[0]
    mean, std = (np.array(values) for values in data.images.mean_std)
    expected = (first.permute(1, 2, 0).numpy() * std + mean) * 255
    assert np.abs(sample_grid(loader)[:24:3, :24:3] - expected).max() < 0.51  # the mean colour is no whole number


STRANGE = ("$5_$10", "$_$ face", "$", "two\nlines", "\udcff\udcfe.png", "x" * 300, "", "a\x00b", "Hündin", "{0}")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_confusion_figure_draws_every_name_as_text():
    figure = confusion_figure(np.eye(10, dtype=np.int64), STRANGE)
    assert render(figure).std() > 10
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[:3] == ["$5_$10", "$_$ face", "$"]
    assert shown[3:6] == ["two\\nlines", "\\udcff\\udcfe.png", "x" * 21 + "..."]


def test_confusion_figure_of_a_class_without_images_shows_no_accuracy_of_it():
    figure = confusion_figure(np.array([[3, 1], [0, 0]]), ("cat", "dog"))
    assert [text.get_text() for text in figure.axes[1].texts] == ["75.0", "no images"]


def test_class_label_keeps_letters_of_all_scripts():
    assert [class_label(name) for name in ("Hündin", "犬", "a b")] == ["Hündin", "犬", "a b"]
