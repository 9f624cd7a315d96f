import io
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from kd.report.fidelity import figures
from kd.report.fidelity.figures import RIGHT, WRONG
from kd.report.fidelity.page import Pixels, named, write_page
from kd.report.fidelity.pixels import read
from kd.report.fidelity.study import collect, study
from tests.report.fidelity.made import LABELS, TEACHER, noisy, put

NAMES = ["ant", "bee", "cat", "$dog", "eel"]
PIXELS = np.random.default_rng(0).integers(0, 256, (len(LABELS), 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        put(root / f"s{seed}", "standard", seed, noisy(seed))
        put(root / f"l{seed}", "logits", seed, noisy(seed + 10, 0.5), TEACHER, knobs={"alpha": 0.1})
        put(root / f"m{seed}", "logits", seed, noisy(seed + 20, 0.2), TEACHER, knobs={"alpha": 0.9})
    return study(collect([root]))


def texts(figure):
    figure.savefig(io.BytesIO())  # so that all is laid out
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_bars_have_the_lengths_of_the_means(found):
    figure = figures.bars(found)
    agreement, wrong, kl, nll = figure.axes
    widths = [bar.get_width() for bar in agreement.patches]
    assert widths == pytest.approx([100 * student.spread("agreement").mean for student in found.students])
    assert [bar.get_width() for bar in wrong.patches] == pytest.approx(
        [100 * student.spread("agreement_wrong").mean for student in found.students]
    )
    assert len(kl.patches) == 2 * 3
    assert nll.patches[0].get_width() == pytest.approx(found.teacher_figures.nll)
    assert nll.patches[1].get_width() == pytest.approx(found.teacher_figures.nll_scaled)
    assert all(axes.get_xlim()[0] == 0 for axes in figure.axes)


def test_bars_have_their_value_where_the_deviation_goes_beyond_the_axis(tmp_path):
    """Ten images are wrong, of which the seeds share 10, 10 and 8 with the teacher."""
    labels = np.zeros(1000, dtype=np.int64)
    teacher = np.eye(2)[(np.arange(1000) < 10).astype(int)] * 9.0
    for seed, shared in enumerate((10, 10, 8)):
        logits = np.eye(2)[(np.arange(1000) < shared).astype(int)] * 9.0
        put(tmp_path / f"l{seed}", "logits", seed, logits, teacher, labels)
        put(tmp_path / f"s{seed}", "standard", seed, logits, labels=labels)
    figure = figures.bars(study(collect([tmp_path])))
    figure.savefig(io.BytesIO())
    values = [text for text in figure.axes[1].texts if text.get_text() == "93.3"]
    assert values
    assert all(value.xy[0] <= figure.axes[1].get_xlim()[1] for value in values)


def test_calibration_draws_teacher_and_students(found):
    figure = figures.calibration(found)
    labels = texts(figure)
    assert [name for name in ("teacher", "standard", "logits alpha=0.1", "logits alpha=0.9") if name in labels] == [
        axes.get_title(loc="left") for axes in figure.axes[::2]
    ]
    teacher = found.teacher_figures
    assert f"ECE {100 * teacher.ece:.2f} %\nscaled {100 * teacher.ece_scaled:.2f} %" in labels
    _, before, after = figure.axes[0].lines
    distance = [np.abs(line.get_xdata() - line.get_ydata()).mean() for line in (before, after)]
    assert distance[1] < distance[0]


def test_classes_are_sorted_by_gain_below_all_classes(found):
    figure = figures.classes(found, NAMES)
    (axes,) = figure.axes
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    gains = np.array([[difference.mean for difference in c.classes] for c in found.compared]).mean(axis=0)
    assert ticks == ["all classes", *(NAMES[i].replace("$", r"\$") for i in np.argsort(-gains))]
    dots = axes.collections[0].get_offsets()
    assert dots[0, 0] == pytest.approx(100 * found.compared[0].differences["accuracy"].mean)


def test_images_show_every_prediction(found):
    compared = found.compared[0]
    figure = figures.images(found, compared, PIXELS, NAMES)
    fixed, broken = compared.changes.fixed, compared.changes.broken
    assert len(figure.axes) == min(12, len(fixed)) + min(12, len(broken))
    assert np.array_equal(figure.axes[0].images[0].get_array(), PIXELS[fixed[0]])
    answers = [text for text in figure.texts if text.get_color() in (RIGHT, WRONG)]
    colours = [text.get_color() for text in answers]
    assert len(colours) == 3 * len(figure.axes)
    assert colours[1:3] == [WRONG, RIGHT]  # the baseline's and the student's answers to a fixed image
    assert any(f"{len(fixed)} image" in text for text in texts(figure))


def test_images_without_any_change_draws_none(found):
    compared = found.compared[0]
    none = np.array([], dtype=np.intp)
    figure = figures.images(
        found, compared._replace(changes=compared.changes._replace(fixed=none, broken=none)), PIXELS, NAMES
    )
    assert not figure.axes
    assert sum("0 images" in text for text in texts(figure)) == 2


def test_write_page_writes_and_links_every_picture(found, tmp_path):
    written = write_page(found, Pixels(PIXELS, NAMES), tmp_path)
    page = written[0].read_text("utf-8")
    assert len(written) == 2 + 3 + 2
    for path in written[2:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"]({path.name})" in page
    assert "nan" not in page
    assert len(write_page(found, named(found), tmp_path)) == 2 + 3


def test_classes_say_why_nothing_is_compared(tmp_path):
    for seed in range(4):
        put(tmp_path / f"s{seed}", "standard", seed, noisy(seed))
        put(tmp_path / f"l{seed}", "logits", seed, noisy(seed + 10, 0.5), TEACHER)
    put(tmp_path / "gone", "logits", 9, noisy(9), TEACHER, diverged=True, status="failed")
    (text,) = texts(figures.classes(study(collect([tmp_path])), NAMES))
    assert text == "Compared with standard: 1 of 9 runs diverged: no statement."


def test_pixels_of_grey_images_can_be_drawn(tmp_path):
    """Arrays have as many channels as they have."""
    x, y = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8), np.arange(6) % 2
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_images.npy", x)
        np.save(tmp_path / f"{split}_labels.npy", y)
    seen = read(tmp_path, SimpleNamespace(dataset=tmp_path.name, data=None, labels=y))
    assert seen.images.shape == (6, 8, 8, 3)
    assert (seen.images == x[..., None]).all()
    assert Image.fromarray(seen.images[1]).convert("L").getpixel((2, 0)) == x[1, 0, 2]
