import math
from dataclasses import replace

import numpy as np
import pytest

from kd.report.figures import accuracy, curves, looks
from kd.report.style import literal
from kd.report.summary import summarize
from tests.report.made import EPOCHS, drawn, few, runs, teacher


def sweep():
    cells = [runs("logits", 0.75 + T / 200, T=float(T), alpha=alpha / 10) for T in range(12) for alpha in range(5)]
    return summarize([*teacher(), *(run for cell in cells for run in cell)])


def without_validation(run):
    return replace(run, epoch_val_loss=[], epoch_val_acc=[])


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


LONG = (
    "teacher_recipe.batch_size={0} teacher_recipe.optimizer.lr=0.{0} teacher_weights=a/path/to/weights/{1}.safetensors"
)


def long_names():
    """Two methods' worth of rows whose settings take several lines."""
    names = {64: "cnn32_of_many_epochs", 128: "cnn32_of_few_epochs"}
    rows = [runs("logits", 0.7, variant=LONG.format(size, name)) for size, name in names.items()]
    return summarize([*teacher(), *(run for row in rows for run in row)])


def test_legend_of_long_names_is_within_the_picture():
    figure = drawn(curves(long_names()))
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
    assert box.y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert " ".join(" ".join(texts(figure)).split()).count(LONG.format(64, "cnn32_of_many_epochs")) == 1


def test_label_of_a_bar_has_the_end_of_a_long_path():
    (axes,) = drawn(accuracy(long_names())).axes
    ticks = " ".join(tick.get_text() for tick in axes.get_xticklabels())
    assert "teacher_weights=.../cnn32_of_many_epochs.safetensors" in ticks
    assert "teacher_weights=.../cnn32_of_few_epochs.safetensors" in ticks


# Accuracies


def test_accuracy_has_a_bar_per_row_with_its_mean():
    summary = few()
    (axes,) = drawn(accuracy(summary)).axes
    means = [100 * row.test_acc.mean for row in summary.rows]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(means)
    assert [label.get_text() for label in axes.texts] == [f"{mean:.2f}" for mean in means]
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["teacher\nn = 1", "standard\nn = 3", "at\nn = 3", "logits\nn = 3"]
    assert axes.get_title("left") == "Test accuracy on CIFAR-10"


def test_accuracy_has_error_bars_over_several_seeds():
    summary = few()
    (axes,) = accuracy(summary).axes
    (container,) = axes.containers[1:]
    (bars,) = container.lines[2]
    spans = [(low[1], high[1]) for low, high in bars.get_segments()]
    expected = [(row.test_acc.mean, row.test_acc.std) for row in summary.rows if row.n > 1]
    assert len(spans) == 3
    assert spans == [pytest.approx((100 * (mean - std), 100 * (mean + std))) for mean, std in expected]


def test_accuracy_has_no_error_bar_for_one_seed():
    (axes,) = drawn(accuracy(summarize(runs("standard", 0.8, seeds=1)))).axes
    assert len(axes.containers) == 1


def test_accuracy_has_a_dot_per_seed():
    summary = few()
    dots = accuracy(summary).axes[0].collections
    (seeds,) = [points for points in dots if points.get_label() == "one seed"]
    assert list(seeds.get_offsets()[:, 1]) == pytest.approx(
        [100 * run.test_acc for row in summary.rows for run in row.runs]
    )
    assert np.abs(seeds.get_offsets()[:, 0] - [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]).max() < 0.36


def test_accuracy_has_a_dashed_line_at_the_teacher():
    figure = accuracy(summarize([*runs("logits", 0.83), *runs("standard", 0.8, teacher_acc=None)]))
    (line,) = [lines for lines in figure.axes[0].collections if lines.get_label().startswith("teacher")]
    assert line.get_label() == "teacher, 92.00"
    assert line.get_segments()[0].tolist() == [[0.5, 92.0], [1.5, 92.0]]  # the first bar's student had no teacher
    assert "teacher, 92.00" in texts(figure)


def test_accuracy_does_not_call_an_ensemble_a_teacher():
    """The dashed line is three teachers' ensemble, the bar is the mean of three single ones."""
    single = runs("teacher", 0.86, teacher_acc=None, student_params=None, teacher_params=1_070_000)
    figure = drawn(accuracy(summarize([*single, *runs("logits", 0.83, teacher="3 x cnn32", teacher_acc=0.872)])))
    assert "ensemble of 3 teachers, 87.20" in texts(figure)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["teacher\nmean of n = 3", "logits\nn = 3"]


def test_accuracy_stays_within_a_hundred_percent():
    accuracies = iter([1.0, 0.98, 0.97])
    perfect = [replace(run, test_acc=next(accuracies)) for run in runs("logits", 0.9, teacher_acc=0.8)]
    (axes,) = drawn(accuracy(summarize(perfect))).axes
    (segment,) = axes.containers[1].lines[2][0].get_segments()
    mean, std = 100 * np.mean([1.0, 0.98, 0.97]), 100 * np.std([1.0, 0.98, 0.97], ddof=1)
    assert mean + std > 99.8
    assert segment[:, 1] == pytest.approx([mean - std, min(100, mean + std)])
    assert max(axes.get_yticks()) <= 100
    assert axes.get_ylim()[0] < 80  # the line of its teacher is in the picture


def test_accuracy_has_a_line_for_each_rows_own_teacher():
    figure = accuracy(summarize([*runs("at", 0.83, teacher_acc=0.9), *runs("logits", 0.83, teacher_acc=0.94)]))
    lines = [lines.get_segments()[0][0][1] for lines in figure.axes[0].collections if hasattr(lines, "get_segments")]
    assert {90.0, 94.0} <= set(lines)
    assert {"teacher, 90.00", "teacher, 94.00"} <= set(texts(figure))
    many = [run for i in range(4) for run in runs(f"m{i}", 0.83, teacher_acc=0.9 + i / 100)]
    assert texts(accuracy(summarize(many))).count("the row's teacher") == 1


@pytest.mark.parametrize(("final", "lowest"), [(0.8, 70), (0.12, 0), (0.91, 85)])
def test_accuracy_labels_the_beginning_of_the_axis(final, lowest):
    (axes,) = accuracy(summarize(runs("logits", final))).axes
    assert axes.get_ylim()[0] == lowest
    assert ("begins" in axes.get_ylabel()) == bool(lowest)
    assert str(lowest) in axes.get_ylabel() or not lowest
    assert axes.get_ylim()[1] > 92


def test_accuracy_shows_every_seed():
    """Six alike and one at chance: the bar's deviation does not reach down to it."""
    accs = [0.85, 0.85, 0.85, 0.85, 0.85, 0.85, 0.1]
    seeds = [replace(run, test_acc=acc) for run, acc in zip(runs("a", 0.8, seeds=7), accs, strict=True)]
    (axes,) = accuracy(summarize(seeds)).axes
    assert axes.get_ylim()[0] < 10


def test_accuracy_has_no_bar_without_a_test_accuracy():
    figure = drawn(accuracy(summarize([*runs("a", 0.8), *runs("b", 0.8, test_acc=None)])))
    assert len(figure.axes[0].patches) == 1
    empty = drawn(accuracy(summarize(runs("b", 0.8, test_acc=None))))
    assert "No run has a test accuracy." in [text.get_text() for text in empty.texts]


# Learning curves


def test_curves_have_a_line_per_row_with_its_band():
    summary = few()
    figure = drawn(curves(summary))
    left, right = figure.axes
    for axes, name, scale in ((left, "epoch_val_acc", 100), (right, "epoch_val_loss", 1)):
        assert len(axes.lines) == 4
        assert len(axes.collections) == 3  # bands; the teacher has one seed
        for line, row in zip(axes.lines, summary.rows, strict=True):
            assert line.get_xdata().tolist() == list(range(1, EPOCHS + 1))
            assert line.get_ydata() == pytest.approx(scale * np.mean([getattr(run, name) for run in row.runs], axis=0))
    band = left.collections[0].get_paths()[0].vertices
    values = [100 * run.epoch_val_acc[-1] for run in summary.rows[1].runs]
    last = band[band[:, 0] == EPOCHS][:, 1]
    assert (last.min(), last.max()) == pytest.approx(
        (np.mean(values) - np.std(values, ddof=1), np.mean(values) + np.std(values, ddof=1))
    )
    assert left.get_title("left") == "validation accuracy, %"
    assert right.get_title("left") == "validation loss (NLL)"
    assert texts(figure) == ["teacher (n = 1)", "standard (n = 3)", "at (n = 3)", "logits (n = 3)"]


def test_curves_without_validation_show_and_name_the_training_split():
    summary = summarize(map(without_validation, runs("logits", 0.8)))
    figure = drawn(curves(summary))
    left, right = figure.axes
    assert "training split (these runs have no validation split)" in figure.get_suptitle()
    assert left.get_title("left") == "training accuracy, %"
    assert right.get_title("left") == "training loss (each method's own objective)"
    assert left.lines[0].get_ydata() == pytest.approx(
        100 * np.mean([run.epoch_train_acc for run in summary.rows[0].runs], axis=0)
    )


def test_curves_do_not_mix_splits():
    figure = drawn(curves(summarize([*runs("a", 0.8), *map(without_validation, runs("b", 0.8))])))
    assert len(figure.axes[0].lines) == 1
    assert "rows without one are not shown: 1 of 2" in figure.get_suptitle()


def test_curves_of_unequal_length_and_with_nan():
    long, short, diverged = runs("logits", 0.8)
    short = replace(short, epoch_val_acc=short.epoch_val_acc[:7])
    diverged = replace(diverged, epoch_val_loss=[math.nan] * EPOCHS)
    left, right = drawn(curves(summarize([long, short, diverged]))).axes
    assert len(left.lines[0].get_xdata()) == 7
    assert np.isnan(right.lines[0].get_ydata()).all()


def test_curves_of_a_short_training_and_whole_bands_are_within_the_axes():
    short = [replace(run, epoch_val_acc=[0.1], epoch_val_loss=[9.0]) for run in runs("logits", 0.1)]
    flat = [
        replace(run, epoch_val_acc=[acc] * EPOCHS) for run, acc in zip(runs("a", 0.8), (0.7, 0.8, 0.9), strict=True)
    ]
    left, right = drawn(curves(summarize([*flat, *short]))).axes
    assert left.get_ylim()[0] < 10
    assert left.get_ylim()[1] > 90  # 80 and a deviation of 10
    assert right.get_ylim()[1] > 9


def test_curves_of_a_negative_objective_have_their_band():
    bare = {"epoch_val_acc": [], "epoch_val_loss": []}
    falling = [
        replace(run, epoch_train_acc=[0.5] * 3, epoch_train_loss=[loss] * 3, **bare)
        for run, loss in zip(runs("vid", 0.8), (-1.0, -2.0, -3.0), strict=True)
    ]
    _, right = drawn(curves(summarize(falling))).axes
    band = right.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((-3, -1))


def test_curves_of_one_epoch_are_points():
    single = [replace(run, epoch_val_acc=[0.1], epoch_val_loss=[2.3]) for run in runs("logits", 0.1, seeds=1)]
    assert drawn(curves(summarize(single))).axes[0].lines[0].get_marker() == "o"


def test_curves_without_any_show_a_message():
    bare = runs("logits", 0.1, epoch_val_acc=[], epoch_val_loss=[], epoch_train_acc=[], epoch_train_loss=[])
    assert "No run has learning curves." in [text.get_text() for text in drawn(curves(summarize(bare))).texts]


# Both


def test_looks_are_the_same_in_both_pictures():
    summary = few()
    bars = [bar.get_facecolor()[:3] for bar in accuracy(summary).axes[0].patches]
    lines = [line.get_color() for line in curves(summary).axes[0].lines]
    assert bars == pytest.approx(np.array(lines))
    assert len(set(lines)) == 4


def test_looks_of_one_method_are_shades_of_its_hue():
    summary = summarize([*runs("logits", 0.8, T=1.0), *runs("logits", 0.8, T=2.0), *runs("logits", 0.8, T=4.0)])
    light, plain, dark = (sum(look.colour) for look in looks(summary.rows))
    assert light > plain > dark
    assert looks(summary.rows)[1] == looks(summarize(runs("logits", 0.8)).rows)[0]


def test_looks_of_many_methods_are_distinct():
    rows = summarize([run for i in range(25) for run in runs(f"m{i}", 0.8, seeds=1)]).rows
    assert len(set(looks(rows))) == 25


def test_accuracy_and_curves_of_a_sweep_stay_readable():
    summary = sweep()
    assert len(summary.rows) == 61
    bars, lines = drawn(accuracy(summary)), curves(summary)
    assert {tick.get_rotation() for tick in bars.axes[0].get_xticklabels()} == {90.0}
    assert bars.get_figwidth() > 2 * accuracy(few()).get_figwidth()
    assert len(lines.axes[0].lines) == 61
    ends = [100 * np.mean([run.epoch_val_acc[-1] for run in row.runs]) for row in summary.rows[1:]]
    highest = summary.rows[1 + int(np.argmax(ends))].label
    assert texts(lines) == ["teacher (n = 1)", f"{highest} (n = 3), the highest of 60 at the end"]
    assert "thin: the other rows" in lines.get_suptitle()


def test_accuracy_and_curves_escape_dollar_signs():
    variants = ["lr=${x}^2 decay=${y}", r"lr=$\frac decay=1"]
    summary = summarize([run for variant in variants for run in runs("logits", 0.8, variant=variant)])
    drawn(accuracy(summary))
    drawn(curves(summary))


def test_literal_is_text_that_fits_and_has_a_place_in_the_legend():
    assert literal("$a$\n_b") == "\\$a\\$\n_b"
    assert literal("_b") == " _b"
    assert [len(line) for line in literal("a" * 1000 + "\nb").split("\n")] == [160, 1]
