from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from kd.report.contrasts import (
    Contrast,
    Measure,
    certainty,
    compared,
    each_teacher,
    gains_apart,
    gains_to_markdown,
    over_teachers,
    sources_to_markdown,
    to_markdown,
    variation,
)
from kd.report.crossed import components, crossed, sources
from kd.report.effects import smallest_detectable
from kd.report.numbers import p_value, percent
from kd.report.power import MOST_SHOWN, picture
from kd.report.statistics import holm, t_interval
from kd.report.summary import summarize
from tests.report.made import ALONE, DISTILLED, changed

ACCURACIES = {
    "standard": (0.80, 0.81, 0.82, 0.80, 0.81, 0.82),
    "logits": (0.81, 0.825, 0.83, 0.90, 0.91, 0.92),
    "feature": (0.812, 0.821, 0.833, 0.815, 0.82, 0.836),
}
FAMILY = (Contrast("soft", "logits", "standard", range(3)), Contrast("maps", "feature", "standard", range(3)))


@pytest.fixture
def rows():
    first = {"standard": ALONE, "logits": DISTILLED, "feature": replace(DISTILLED, method="feature")}
    runs = [
        changed(first[m], seed=s, test_acc=acc) for m, by_seed in ACCURACIES.items() for s, acc in enumerate(by_seed)
    ]
    return {row.label: row for row in summarize(runs).rows}


def cells(table):
    """The lines of a Markdown table below its headers, by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]
    return {line[0]: line[1:] for line in lines}


def test_compared_counts_the_named_seeds_only(rows):
    soft, maps = compared(rows, FAMILY)
    assert (soft.difference.n, soft.difference.mean) == (3, pytest.approx(0.035 / 3))
    (every,) = compared(rows, [Contrast("all seeds", "logits", "standard")])
    assert every.difference.n == 6
    assert every.difference.mean > 0.05
    pairs = [(ACCURACIES[name][:3], ACCURACIES["standard"][:3]) for name in ("logits", "feature")]
    p = sorted(stats.ttest_rel(*pair).pvalue for pair in pairs)
    assert sorted([soft.difference.p, maps.difference.p]) == pytest.approx([2 * p[0], max(2 * p[0], p[1])])


def test_table_of_contrasts_has_names_and_corrects_each_family_by_itself(rows):
    one, two = (cells(to_markdown(rows, *families)) for families in ([FAMILY], [FAMILY[:1], FAMILY[1:]]))
    assert [*one] == [*two] == ["soft", "maps"]
    assert one["soft"][:2] == ["3", "+1.17"]
    single = [
        stats.ttest_rel(ACCURACIES[name][:3], ACCURACIES["standard"][:3]).pvalue for name in ("logits", "feature")
    ]
    assert [line[3] for line in two.values()] == [f"{p:.3f}" for p in single]
    assert [line[3] for line in one.values()] == [f"{p:.3f}" for p in holm(single)]
    assert cells(to_markdown(rows, FAMILY, accuracy=True))["soft"][3].startswith("82.17 ±")


def test_certainty_has_a_column_for_each_comparison(rows):
    found = dict(zip(["soft", "maps"], compared(rows, FAMILY), strict=True))
    rng = np.random.default_rng(0)
    alone, soft = ((rng.random((3, 400)) < share).astype(float) for share in (0.5, 0.9))
    table = cells(certainty(found, [(soft, alone), (alone, alone)], margin=0.03))
    assert table["difference, points"] == ["+1.17", "+1.20"]
    assert table["n"] == ["3", "3"]
    low, high = map(float, table["95 % interval over test images"][0].split(" to "))
    assert low < 40 < high
    assert table["95 % interval over test images"][1] == "+0.00 to +0.00"
    assert table["seeds in which it is positive"] == ["3", "3"]
    assert table["p of the test for equivalence within ±3 points"] == [
        "0.004",
        "< 0.001",
    ]  # t = -11 with two degrees of freedom, one-sided


def test_variation_of_a_gain_is_that_of_the_differences():
    alone = np.tile([1.0, 0.0, 1.0, 0.0], (3, 25))
    ours = alone.copy()
    ours[:, 1] = 1  # one image more, for every seed
    table = cells(variation({"alone": alone, "gain": ours - alone}))
    assert table["alone"] == ["3", "0.00", "0.00", "5.03"]
    assert table["gain"] == ["3", "0.00", "0.00", "1.00"]


def test_power_falls_with_seeds_and_shows_what_was_seen(rows):
    found = compared(rows, FAMILY)
    (axes,) = picture(found, ["soft", "maps"], 0.5).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert [[*line.get_xdata()][-1] for line in lines] == [MOST_SHOWN, MOST_SHOWN]
    for line, comparison in zip(lines, found, strict=True):
        assert (np.diff(line.get_ydata()) < 0).all()
        assert line.get_ydata()[0] == pytest.approx(smallest_detectable(100 * np.std(comparison.by_seed, ddof=1), 3))
    seen = [line for line in axes.lines if line.get_marker() == "D"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in seen] == [
        (3, pytest.approx(100 * comparison.difference.mean)) for comparison in found
    ]


TAUGHT = np.array([[0.82, 0.83, 0.85], [0.81, 0.835, 0.84], [0.83, 0.84, 0.845]])
"""By teacher and seed."""


@pytest.fixture
def by_teacher():
    """A method of three teachers by name, and labels alone with the same seeds."""
    runs = [
        changed(
            DISTILLED,
            seed=s,
            test_acc=float(acc),
            test_nll=1 - float(acc),
            teacher_id=f"t{t}",
            variant=f"teacher_seed={t}",
        )
        for t, by_seed in enumerate(TAUGHT)
        for s, acc in enumerate(by_seed)
    ]
    alone = [changed(ALONE, seed=s, test_acc=0.8 + s / 100, test_nll=0.3) for s in range(3)]
    rows = summarize([*runs, *alone]).rows
    return {"logits": crossed(rows)[0]}, next(row for row in rows if row.first.method == ALONE.method)


def test_each_teacher_has_the_interval_of_its_own_seeds(by_teacher):
    minus = TAUGHT - [0.8, 0.81, 0.82]
    wanted = [
        f"{100 * m.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})" for m in minus for low, high in [t_interval(m)]
    ]
    assert cells(each_teacher(*by_teacher))["logits"] == wanted


def test_over_teachers_gives_differences_of_any_figure_with_intervals_over_both(by_teacher):
    measures = {"accuracy, %": Measure(lambda run: run.test_acc), "NLL": Measure(lambda run: run.test_nll, 1, 3)}
    found = cells(over_teachers(*by_teacher, measures))
    accuracy, nll = (components(figures) for figures in (100 * (TAUGHT - [0.8, 0.81, 0.82]), 0.7 - TAUGHT))
    assert found["accuracy, %"] == ["81.00", "{:+.2f} ({:+.2f} to {:+.2f})".format(accuracy.mean, *accuracy.interval)]
    assert found["NLL"] == ["0.300", "{:+.3f} ({:+.3f} to {:+.3f})".format(nll.mean, *nll.interval)]


def test_sources_have_a_line_of_points_each():
    rng = np.random.default_rng(0)
    right = (rng.random(200) > 0.9 * rng.random((3, 4, 200))).astype(float)  # easy images and hard ones
    mean, *deviations, seen, everything = cells(sources_to_markdown({"gain": right}))["gain"]
    assert mean == f"{100 * right.mean():.2f}"
    assert len(deviations) == 4
    narrow, wide = ([float(bound) for bound in interval.split(" to ")] for interval in (seen, everything))
    assert wide[0] < narrow[0] < float(mean) < narrow[1] < wide[1]


def test_gains_are_compared_seed_by_seed(rows):
    soft, maps = (Contrast(name, name, "standard") for name in ("logits", "feature"))
    (apart,) = gains_apart(rows, [("", soft, maps)])
    accuracies = [np.array(ACCURACIES[name]) for name in ("logits", "feature")]  # the baseline is common, so it cancels
    expected = stats.ttest_rel(*accuracies)
    assert (apart.n, apart.mean, apart.p) == (6, pytest.approx(0.043), pytest.approx(expected.pvalue))
    assert apart.interval == pytest.approx(tuple(expected.confidence_interval()))
    (same,) = gains_apart(rows, [("", soft, soft)])
    assert (same.mean, same.interval) == (0.0, None)
    (three,) = gains_apart(rows, [("", soft._replace(seeds=range(3)), maps)])
    assert three.n == 3
    gone = rows | {"feature": replace(rows["feature"], diverged=2)}
    (refused,) = gains_apart(gone, [("", soft, maps)])
    assert (refused.p, refused.in_words("more", "less")) == (None, "2 of 20 runs diverged: no statement")
    two = cells(gains_to_markdown(rows, [("up", soft, maps), ("down", maps, soft)]))
    assert two["up"][:2] == ["6", "+4.30"]
    assert two["down"][:2] == ["6", "-4.30"]
    assert two["up"][3] == f"{min(1, 2 * expected.pvalue):.3f}"


def test_certainty_has_the_tests_of_its_lines(rows):
    """Each against scipy, with more than three seeds, of which every figure differs."""
    (found,) = compared(rows, [Contrast("", "feature", "standard")])
    minus = np.array(ACCURACIES["feature"]) - ACCURACIES["standard"]
    table = cells(certainty({"maps": found}, [(np.ones((6, 8)), np.zeros((6, 8)))], margin=0.02))
    assert table["p, paired t test"] == [p_value(stats.ttest_1samp(minus, 0).pvalue)]
    flips = np.array(list(product((1, -1), repeat=6))) @ minus
    assert table["p, sign-flip test"] == [p_value(np.mean(np.abs(flips) >= abs(minus.sum()) - 1e-12))]
    for seeds, line in ((3, "smallest difference that one test of 3 seeds finds"), (6, "the same, 6 seeds")):
        effect = float(table[line][0]) / 100 / minus.std(ddof=1) * np.sqrt(seeds)
        t = stats.t.ppf(0.975, seeds - 1)
        assert stats.nct.sf(t, seeds - 1, effect) == pytest.approx(0.8, abs=0.01)


def test_sources_stand_in_their_columns():
    right = (np.random.default_rng(0).random((3, 4, 300)) < 0.7) * 1.0
    right[1] = right[0]  # two teachers alike
    found = sources(right)
    trained = found.trained
    line = cells(sources_to_markdown({"x": right}))["x"]
    figures = (trained.mean, trained.teacher, trained.seed, trained.rest, found.images)
    shown = [percent(figure) for figure in figures]
    shown[1] += f" (to {percent(trained.teacher_most)})"
    assert line[:5] == shown


def test_labels_alone_are_those_of_the_compared_seeds(by_teacher):
    """A baseline with further seeds: the mean beside a gain is that which it is a gain over."""
    methods, baseline = by_teacher
    accuracy = {"accuracy": Measure(lambda run: run.test_acc)}
    more = [changed(ALONE, seed=seed, test_acc=0.5) for seed in (7, 8)]
    with_more = replace(baseline, runs=(*baseline.runs, *more))
    assert over_teachers(methods, with_more, accuracy) == over_teachers(methods, baseline, accuracy)
