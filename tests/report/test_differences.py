import pytest

from kd.report.comparison import compare
from kd.report.differences import differences
from kd.report.summary import summarize
from tests.report.made import drawn, runs


def test_differences_are_ranked_and_coloured_by_verdict():
    rows = summarize(
        [
            *runs("standard", 0.8, seeds=4, teacher_acc=None),
            *runs("better", 0.85, seeds=4),
            *runs("worse", 0.7, seeds=4),
            *runs("lone", 0.9, seeds=1),
        ]
    ).rows
    compared = compare(rows)
    axes = drawn(differences(compared)).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["worse (n = 4)", "better (n = 4)", "lone (n = 1)"]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    means = sorted(100 * c.difference.mean for c in compared)
    assert [line.get_xdata()[0] for line in diamonds] == pytest.approx(means)
    assert [line.get_color() for line in diamonds] == ["#D55E00", "#0072B2", "#595959"]
    lines = [line for line in axes.lines if line.get_linestyle() == "-" and len(set(line.get_ydata())) == 1]
    by_label = {c.row.label: c for c in compared}
    for line, label in zip(lines, ("worse", "better"), strict=True):
        assert line.get_xdata() == pytest.approx([100 * end for end in by_label[label].difference.interval])


def test_differences_within_a_margin_keep_the_colour_of_their_verdict():
    rows = summarize(
        [
            *runs("standard", 0.8, seeds=6, teacher_acc=None),
            *runs("better", 0.85, seeds=6),
            *runs("worse", 0.7, seeds=6),
            *runs("same", 0.8, seeds=6),
        ]
    ).rows
    compared = compare(rows, margin=0.2)
    assert {c.row.label: c.verdict.partition(" ")[0] for c in compared} == {
        "better": "better,", "worse": "worse,", "same": "equivalent:"
    }  # fmt: skip
    figure = drawn(differences(compared))
    diamonds = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert [line.get_color() for line in diamonds] == ["#D55E00", "#595959", "#0072B2"]
    assert "equivalent, no difference seen" in figure.legends[0].get_texts()[-1].get_text()


def test_differences_take_names_and_a_title_in_place_of_the_rows_own():
    rows = summarize(
        [*runs("standard", 0.8, seeds=4, teacher_acc=None), *runs("a", 0.85, seeds=4), *runs("b", 0.7)]
    ).rows
    figure = drawn(differences(compare(rows), ["up", "down"], "What each adds"))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["down (n = 3)", "up (n = 4)"]
    assert figure.get_suptitle().startswith("What each adds\n")


def test_differences_draw_an_outlier_as_an_arrow():
    rows = summarize(
        [
            *runs("standard", 0.8, seeds=3, teacher_acc=None),
            *(run for name, acc in (("a", 0.81), ("b", 0.79), ("chance", 0.1)) for run in runs(name, acc)),
        ]
    ).rows
    axes = drawn(differences(compare(rows))).axes[0]
    assert [line.get_marker() for line in axes.lines].count("<") == 1
    assert axes.get_xlim()[0] > -20
    (chance,) = (c for c in compare(rows) if c.row.label == "chance")
    assert f"{100 * chance.difference.mean:+.2f}" in [text.get_text() for text in axes.texts]
    near = drawn(differences([c for c in compare(rows) if c.row.label != "chance"])).axes[0]
    assert not any(line.get_marker() in "<>" for line in near.lines)
