import io
from dataclasses import replace
from itertools import chain, product

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from kd.report.axes import geometric, logarithmic, sizes, sweeps
from kd.report.figures import accuracy, curves
from kd.report.page import report
from kd.report.summary import summarize
from kd.report.sweeps import pictures
from kd.runs.results import Result
from tests.report.made import changed

ALONE = Result(
    method="standard",
    seed=0,
    student="cnn16",
    student_params=1_071_066,
    dataset="CIFAR-10",
    epochs=30,
    val_acc=0.75,
    test_acc=0.74,
    status="done",
)
TAUGHT = changed(
    ALONE, method="logits", alpha=0.1, T=4.0, teacher="cnn32", teacher_params=4_271_530, teacher_test_acc=0.82
)
FEATURE = changed(TAUGHT, method="feature", beta=0.3)
TEACHER = changed(
    TAUGHT, method="teacher", T=None, alpha=None, student=None, student_params=None, teacher_test_acc=None
)


def run(base=TAUGHT, val=0.75, seeds=2, **changes):
    """Return seeds with validation accuracies within a point of `val`, and test accuracies in the reverse order."""
    accs = [val] if seeds == 1 else [val - 0.01 + 0.02 * seed / (seeds - 1) for seed in range(seeds)]
    return [changed(base, seed=i, val_acc=acc, test_acc=1 - acc, **changes) for i, acc in enumerate(accs)]


def found(*results):
    return sweeps(summarize(chain(*results)).rows)


def drawn(*results):
    """Return the pictures by name, drawn, as warnings are errors."""
    drawn_pictures = pictures(summarize(chain(*results)))
    for picture in drawn_pictures:
        picture.figure.savefig(io.BytesIO(), dpi=30)
    return {picture.name: picture.figure for picture in drawn_pictures}


def cells(axes):
    return {(text.get_position(), text.get_text()) for text in axes.texts}


def over_t(base=TAUGHT, values=(1, 2, 4, 8)):
    return chain(*(run(base, 0.7 + T / 100, T=float(T)) for T in values))


# What was swept


def test_sweeps_finds_one_swept_knob():
    (sweep,) = found(over_t(), run(ALONE))
    assert sweep.axes == ("T",)
    (line,) = sweep.lines
    assert (line.name, line.method) == ("logits", "logits")
    assert list(line.points) == [(1,), (2,), (4,), (8,)]
    assert [row.first.knobs["T"] for row in line.points.values()] == [1, 2, 4, 8]
    assert sweep.left_out == 0


@pytest.mark.parametrize("results", [[run()], [run(), run(FEATURE), run(ALONE)], [run(T=4.0), run(FEATURE, T=2.0)]])
def test_sweeps_ignores_differences_between_methods(results):
    """Methods have defaults of their own."""
    assert found(*results) == []
    assert drawn(*results) == {}


def test_sweeps_joins_methods_that_swept_the_same():
    (sweep,) = found(over_t(), over_t(FEATURE), run(ALONE))
    assert [line.name for line in sweep.lines] == ["feature", "logits"]
    first, second = found(over_t(), chain(*(run(FEATURE, beta=beta) for beta in (0.1, 0.2))))
    assert {first.axes, second.axes} == {("T",), ("beta",)}


def test_sweeps_finds_a_knob_that_only_the_records_know_of():
    results = [run(val=0.7 + warmup / 100, warmup=warmup, layers=[1, 2]) for warmup in (0, 10, 20)]
    (sweep,) = found(*results)
    assert sweep.axes == ("warmup",)
    assert list(sweep.lines[0].points) == [(0,), (10,), (20,)]
    axes = drawn(*results)["sweep_warmup.png"].axes[0]
    assert axes.get_xlabel() == "warmup"
    assert list(axes.lines[0].get_xdata()) == [0, 10, 20]


def test_sweeps_takes_numbers_written_as_text_but_no_booleans_and_no_lists():
    (sweep,) = found(*(run(margin=margin) for margin in ("1e-1", "0.5")))
    assert list(sweep.lines[0].points) == [(0.1,), (0.5,)]
    for values in ((True, False), ([1], [1, 2])):
        assert found(*(run(knob=value) for value in values)) == []
    (sweep,) = found(*(run(T=T, knob=value) for T, value in product((1.0, 4.0), (True, [1, 2]))))
    assert [line.name for line in sweep.lines] == ["logits knob=[1,2]", "logits knob=true"]


def test_sweeps_takes_overrides_as_knobs():
    variants = [f"recipe.epochs=50 +recipe.optimizer.lr={lr}" for lr in ("1e-1", "0.05", ".2")]
    (sweep,) = found(*(run(ALONE, variant=variant) for variant in variants))
    assert sweep.axes == ("recipe.optimizer.lr",)
    assert list(sweep.lines[0].points) == [(0.05,), (0.1,), (0.2,)]


def test_sweeps_counts_rows_without_the_override_as_left_out():
    results = [run(ALONE), *(run(ALONE, variant=f"recipe.clip_norm={norm}") for norm in ("1", "2", "null"))]
    (sweep,) = found(*results)
    assert list(sweep.lines[0].points) == [(1,), (2,)]
    assert sweep.left_out == 2
    assert "2 without a place here left out" in drawn(*results)["sweep_recipe.clip_norm.png"].axes[0].get_title("left")


def test_sweeps_separates_lines_by_text_settings():
    combinations = product((1.0, 4.0), ("sgd", "adamw"))
    (sweep,) = found(*(run(T=T, variant=f"recipe/optimizer={name}") for T, name in combinations))
    assert [line.name for line in sweep.lines] == ["logits recipe/optimizer=adamw", "logits recipe/optimizer=sgd"]
    assert all(list(line.points) == [(1,), (4,)] for line in sweep.lines)


def test_sweeps_takes_the_two_knobs_with_the_most_values_as_axes():
    grid = product((1.0, 2.0, 4.0), (0.1, 0.5), (0.1, 0.2, 0.3))
    (sweep,) = found(*(run(FEATURE, T=T, alpha=alpha, beta=beta) for T, alpha, beta in grid))
    assert sweep.axes == ("beta", "T")
    assert [line.name for line in sweep.lines] == ["feature alpha=0.1", "feature alpha=0.5"]
    assert [len(line.points) for line in sweep.lines] == [9, 9]


def test_sweeps_takes_no_seed_as_an_axis():
    assert found(*(run(variant=f"teacher_seed={seed}") for seed in range(3))) == []


def test_sweeps_name_lines_by_a_value_that_has_blanks():
    chains = [f"chain=[{{scale: {scale}}}]" for scale in (8, 16)]
    (sweep,) = found(*(run(T=T, variant=chain) for T in (1.0, 4.0) for chain in chains))
    assert sweep.axes == ("T",)
    assert {line.name for line in sweep.lines} == {f"logits {chain}" for chain in chains}


def test_sweeps_does_not_average_rows_at_one_place():
    (sweep,) = found(over_t(), run(T=1.0, group="other"))
    assert [row.n for row in sweep.lines[0].points.values()] == [2, 2, 2, 2]
    assert sweep.left_out == 1


def test_sweeps_counts_teachers_where_there_are_no_students():
    teachers = [run(TEACHER, epochs=epochs) for epochs in (10, 20)]
    (sweep,) = found(*teachers)
    assert sweep.axes == ("epochs",)
    assert found(*teachers, run()) == []


def sized(base=ALONE, scales=((4, 70_000), (8, 270_000), (16, 1_071_066)), **changes):
    each = [run(base, 0.7 + s / 100, student_params=n, variant=f"student.scale={s}", **changes) for s, n in scales]
    return list(chain(*each))


def test_sizes_takes_the_settings_of_the_students_size():
    results = [sized(), sized(TAUGHT, T=1.0), sized(TAUGHT, T=4.0), run(TEACHER)]
    rows = summarize(chain(*results)).rows
    (sweep,) = sizes(rows)
    assert [line.name for line in sweep.lines] == ["standard", "logits T=1", "logits T=4"]
    assert [list(line.points) for line in sweep.lines] == [[(70_000,), (270_000,), (1_071_066,)]] * 3
    (sweep,) = sweeps(rows)
    assert sweep.axes == ("T",)
    assert [line.name for line in sweep.lines] == [f"logits student.scale={scale}" for scale in (4, 8, 16)]
    assert sizes(summarize(chain(over_t(), run(ALONE), run(TEACHER))).rows) == []


def test_sweeps_takes_a_student_setting_that_changes_no_size():
    (sweep,) = found(*(run(variant=f"student.head_dropout={p}") for p in (0, 0.2, 0.5)))
    assert sweep.axes == ("student.head_dropout",)


# Drawn


def test_pictures_draws_one_knob_as_a_curve_with_a_band():
    figure = drawn(over_t(), over_t(FEATURE), run(ALONE))["sweep_T.png"]
    (axes,) = figure.axes
    _, logits, standard = axes.lines
    assert list(logits.get_xdata()) == [1, 2, 4, 8]
    assert list(logits.get_ydata()) == pytest.approx([71, 72, 74, 78])
    band = axes.collections[1].get_paths()[0].vertices
    at_four = band[band[:, 0] == 4][:, 1]
    assert (at_four.min(), at_four.max()) == pytest.approx((74 - 2**0.5, 74 + 2**0.5))
    assert list(standard.get_ydata()) == pytest.approx([75, 75])
    assert standard.get_linestyle() == "--"
    assert axes.get_ylabel() == "validation accuracy, %"
    assert axes.get_xlabel() == "T"
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["feature (n = 2)", "logits (n = 2)", "standard (n = 2)"]


def test_pictures_and_accuracy_share_the_methods_colours():
    summary = summarize(chain(run(ALONE), run(FEATURE), over_t()))
    (picture,) = pictures(summary)
    lines = {line.get_label().split()[0]: line for line in picture.figure.axes[0].lines}
    standard, feature, *logits = (to_hex(bar.get_facecolor()) for bar in accuracy(summary).axes[0].patches)
    assert to_hex(lines["standard"].get_color()) == standard
    # The only line of the third method has its hue itself, of which its bars have shades.
    assert to_hex(lines["logits"].get_color()) == to_hex("#009E73")
    assert len({standard, feature, *logits}) == 6


def test_pictures_label_the_test_accuracy_where_there_is_no_validation():
    figure = drawn(chain(*(run(T=T, val=0.7) for T in (1.0, 4.0))))["sweep_T.png"]
    assert figure.axes[0].get_ylabel() == "validation accuracy, %"
    bare = [replace(result, val_acc=None) for result in over_t()]
    figure = drawn(bare)["sweep_T.png"]
    assert figure.axes[0].get_ylabel() == "test accuracy, %"
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([29, 28, 26, 22])
    mixed = [replace(result, val_acc=None) if result.knobs["T"] == 2 else result for result in over_t()]
    axes = drawn(mixed)["sweep_T.png"].axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 4, 8]
    assert "1 without a place here left out" in axes.get_title("left")


GRID = [(T, alpha) for T in (1.0, 4.0, 8.0) for alpha in (0.1, 0.5) if (T, alpha) != (8.0, 0.5)]


def test_pictures_draws_two_knobs_as_a_map_with_gaps():
    results = [run(val=0.7 + T / 100 - alpha / 10, T=T, alpha=alpha) for T, alpha in GRID]
    feature = [run(FEATURE, T=T, alpha=alpha) for T, alpha in GRID]
    figure = drawn(*results, *feature, run(ALONE))["sweep_alpha_T.png"]
    feature_axes, axes, bar = figure.axes
    assert (feature_axes.get_title("left"), axes.get_title("left")) == ("feature", "logits")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("T", "alpha")
    assert cells(axes) == {
        ((0, 0), "70.00"), ((1, 0), "73.00"), ((2, 0), "77.00"), ((0, 1), "66.00"), ((1, 1), "69.00"),
    }  # fmt: skip
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "8"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.1", "0.5"]
    (mark,) = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    assert mark.get_xy() == (1.5, -0.5)
    assert bar.get_ylabel() == "validation accuracy, %"
    assert "standard: 75.00" in figure.get_suptitle()


def test_pictures_mark_no_best_cell_by_the_test_split():
    bare = [replace(result, val_acc=None) for T, alpha in GRID for result in run(T=T, alpha=alpha)]
    figure = drawn(bare)["sweep_alpha_T.png"]
    assert all(patch.get_fill() for patch in figure.axes[0].patches)
    assert "marked" not in figure.get_suptitle()
    assert figure.axes[1].get_ylabel() == "test accuracy, %"


def test_pictures_draws_a_random_search_as_dots():
    results = [run(val=0.7 + i / 1000, T=1 + i / 7, alpha=(i * 37 % 41) / 41, seeds=1) for i in range(40)]
    figure = drawn(*results)["sweep_alpha_T.png"]
    dots, mark = figure.axes[0].collections
    assert len(dots.get_offsets()) == 40
    assert tuple(mark.get_offsets()[0]) == pytest.approx((1 + 39 / 7, 39 * 37 % 41 / 41))
    assert not figure.axes[0].texts


def test_sweeps_puts_a_random_search_of_three_numbers_on_one_line():
    """Each trial would be a line of its own otherwise; a setting in words still distinguishes lines."""
    results = [
        run(T=1 + i / 7, alpha=(i * 37 % 41) / 41, variant=f"lr={0.01 * (1 + i):.2f} a=x{i % 2}", seeds=1)
        for i in range(40)
    ]
    (sweep,) = found(*results)
    assert sweep.axes == ("alpha", "T")
    assert [(line.name, len(line.points)) for line in sweep.lines] == [("logits a=x0", 20), ("logits a=x1", 20)]


def test_pictures_draws_sizes_over_parameters_with_the_teacher():
    figure = drawn(sized(), sized(TAUGHT), run(TEACHER, 0.9))["sizes.png"]
    (axes,) = figure.axes
    standard, logits, teacher = axes.lines
    assert axes.get_xscale() == "log"
    assert list(standard.get_xdata()) == list(logits.get_xdata()) == [70_000, 270_000, 1_071_066]
    assert (list(teacher.get_xdata()), list(teacher.get_ydata())) == ([4_271_530], pytest.approx([90]))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["70.0 k", "270.0 k", "1.07 M", "4.27 M"]


def test_pictures_draws_one_tick_for_two_close_sizes():
    figure = drawn(sized(scales=((4, 70_000), (5, 71_000), (16, 1_071_066))))["sizes.png"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["70.0 k", "1.07 M"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 4, 8], True),
        ([0.01, 0.02, 0.05, 0.1, 0.2], True),
        ([0.1, 0.3, 0.5, 0.7, 0.9], False),
        ([0, 1, 10, 100], False),
        ([1, 10], False),
    ],
)
def test_geometric_finds_equal_ratios(values, expected):
    assert geometric(values) is expected


def test_logarithmic_axes_are_those_of_equal_ratios_sizes_and_wide_searches():
    (doubled,), (two,), (size,) = found(over_t()), found(over_t(values=(1, 16))), sizes(summarize(sized()).rows)
    assert [logarithmic(sweep.axes, sweep.lines) for sweep in (doubled, two, size)] == [[True], [False], [True]]
    searched = (run(T=T, alpha=alpha) for T, alpha in ((1.0, 0.1), (10.0, 0.2), (100.0, 0.3), (1000.0, 0.4)))
    (sweep,) = found(*searched)
    assert (sweep.axes, logarithmic(sweep.axes, sweep.lines)) == (("alpha", "T"), [False, True])


def test_pictures_keeps_the_highest_of_too_many_lines():
    grid = product((1.0, 4.0, 8.0), range(20))
    results = [run(val=0.5 + i / 100, T=T, variant=f"data.augment=a{i}") for T, i in grid]
    figure = drawn(*results)["sweep_T.png"]
    (axes,) = figure.axes
    assert [line.get_label().split("=a")[1].split()[0] for line in axes.lines] == [str(i) for i in range(8, 20)]
    assert "the highest 12 of 20 combinations" in axes.get_title("left")


def test_pictures_draws_each_data_set_separately():
    svhn = [replace(result, dataset="SVHN (32/32)") for result in over_t()]
    names = [picture.name for picture in report(summarize([*over_t(), *svhn])).pictures]
    assert names[2::3] == ["sweep_T_CIFAR-10.png", "sweep_T_SVHN_32_32.png"]


def test_pictures_names_files_without_special_characters():
    names = drawn(*(run(variant=f"a/b@$x={value} c=$y_{{{value}}}") for value in (1, 2, 3)))
    assert list(names) == ["sweep_a_b_x.png"]


def test_report_writes_and_links_sweep_pictures(tmp_path):
    summary = summarize(chain(over_t(), sized(), run(TEACHER)))
    written = report(summary).write(tmp_path)
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert [path.name for path in written[4:]] == ["sweep_T.png", "sizes.png"]
    for path in written[2:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"({path.name})" in page
    assert "best by validation accuracy" in page
    before = {path.name: path.read_bytes() for path in written}
    assert {path.name: path.read_bytes() for path in report(summary).write(tmp_path)} == before


def test_accuracy_and_curves_of_hundreds_of_rows_show_a_few():
    curve = [0.5, 0.6, 0.7]
    curves_of = {"epoch_val_acc": curve, "epoch_val_loss": curve}
    grid = product(range(1, 17), range(10))
    results = [run(val=0.5 + (T + a) / 1000, T=float(T), alpha=a / 20, **curves_of) for T, a in grid]
    summary = summarize(chain(run(ALONE, 0.1, **curves_of), *results))
    assert len(summary.rows) == 161
    bars = accuracy(summary)
    assert len(bars.axes[0].patches) == 24
    assert bars.axes[0].get_xticklabels()[0].get_text().startswith("standard")
    assert "24 of 161 rows, the best of each method and of the rest" in bars.axes[0].get_title("left")
    assert bars.get_figwidth() < 14
    lines = curves(summary)
    assert 24 <= len(lines.axes[0].lines) <= 26
    assert "24 of 161 rows" in lines.get_suptitle()
