from dataclasses import replace

import numpy as np
import pytest
import scipy
from scipy import stats

from kd.report.comparison import compare
from kd.report.crossed import across, against, components, crossed, sources
from kd.report.page import to_page
from kd.report.rows import Role
from kd.report.summary import summarize
from tests.report.made import ALONE, DISTILLED, changed, seeds

RNG = np.random.default_rng(0)


def taught(table, **changes):
    """Make runs of one method: a row of the table is a teacher, a column a seed."""
    return [
        changed(
            DISTILLED, seed=seed, test_acc=float(acc), teacher_id=f"t{t}", variant=f"a=1 teacher_seed={t}", **changes
        )
        for t, row in enumerate(table)
        for seed, acc in enumerate(row)
    ]


TABLE = 0.85 + RNG.normal(0, 0.003, (4, 1)) + RNG.normal(0, 0.002, (1, 5)) + RNG.normal(0, 0.001, (4, 5))
BASE = seeds(ALONE, *(0.84 + RNG.normal(0, 0.002, 5)))


def test_lines_of_several_data_sets_name_them():
    there = taught(TABLE, dataset="SVHN")
    assert [line.label for line in across(summarize(taught(TABLE)).rows)] == ["logits"]
    assert [line.label for line in across(summarize([*taught(TABLE), *there]).rows)] == [
        "logits on CIFAR-10",
        "logits on SVHN",
    ]
    elsewhere = seeds(replace(ALONE, dataset="SVHN"), 0.8)  # whose reader must not take the line for one of SVHN
    assert [line.label for line in across(summarize([*taught(TABLE), *elsewhere]).rows)] == ["logits on CIFAR-10"]


def test_components_match_an_analysis_of_variance_by_hand():
    """Of [[1, 2, 6], [3, 5, 7], [5, 8, 9]]: grand mean 46/9, means of rows 3, 5, 22/3, of columns 3, 5, 22/3."""
    found = components(np.array([[1.0, 2, 6], [3, 5, 7], [5, 8, 9]]))
    total = 1 + 4 + 36 + 9 + 25 + 49 + 25 + 64 + 81 - 46**2 / 9
    factor = 3 * (9 + 25 + (22 / 3) ** 2) - 46**2 / 9  # the sum of squares of either
    rest = (total - 2 * factor) / 4
    assert found.mean == pytest.approx(46 / 9)
    assert found.rest == pytest.approx(rest**0.5)
    assert found.teacher == found.seed == pytest.approx(((factor / 2 - rest) / 3) ** 0.5)


def test_components_recover_what_varies():
    """Means over 300 sweeps of their squares, which are without bias."""
    squares = []
    for _ in range(300):
        parts = RNG.normal(0, 3, (6, 1)) + RNG.normal(0, 2, (1, 8)) + RNG.normal(0, 1, (6, 8))
        found = components(parts)
        squares.append(np.square([found.teacher, found.seed, found.rest]))
    assert np.mean(squares, axis=0) == pytest.approx([9, 4, 1], rel=0.15)


@pytest.mark.parametrize("spread", [(3, 1, 0.5), (1, 1, 1), (0.3, 1, 1), (1, 0.3, 0.3)])
def test_components_interval_covers_the_mean_of_new_teachers_and_seeds(spread):
    teacher, seed, rest = spread
    covered = []
    for _ in range(2000):
        parts = RNG.normal(0, teacher, (4, 1)) + RNG.normal(0, seed, (1, 5)) + RNG.normal(0, rest, (4, 5))
        low, high = components(parts).interval
        covered.append(low <= 0 <= high)
    assert 0.93 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("spread", [(3, 1, 0.5), (1, 1, 1), (0.3, 1, 1)])
def test_upper_end_of_what_is_between_teachers_is_seldom_too_low(spread):
    """It is the upper one of two ends, so that a fortieth of sweeps have more between teachers."""
    teacher, seed, rest = spread
    above = []
    for _ in range(2000):
        parts = RNG.normal(0, teacher, (4, 1)) + RNG.normal(0, seed, (1, 5)) + RNG.normal(0, rest, (4, 5))
        found = components(parts)
        assert found.teacher_most >= found.teacher
        above.append(found.teacher_most >= teacher)
    assert 0.965 <= np.mean(above) <= 0.985


@pytest.mark.parametrize("spread", [(1, 0.3, 5, 3), (0.1, 0.3, 5, 5), (0.3, 0.3, 5, 10)])
def test_interval_of_all_sources_covers_the_mean_with_new_images_too(spread):
    """Of figures on 100 images, which one image's own level and the luck of each network on it decide."""
    teacher, seed, image, luck = spread
    covered, narrow, rng = [], [], np.random.default_rng(0)
    for _ in range(1000):
        networks = rng.normal(0, teacher, (4, 1, 1)) + rng.normal(0, seed, (1, 5, 1))
        figures = networks + rng.normal(0, image, 100) + rng.normal(0, luck, (4, 5, 100))
        found = sources(figures)
        covered.append(found.interval.low <= 0 <= found.interval.high)
        narrow.append(found.trained.interval.low <= 0 <= found.trained.interval.high)
    assert 0.93 <= np.mean(covered) <= 0.98
    assert np.mean(narrow) < np.mean(covered) - 0.02


def test_sources_of_images_alone_match_their_standard_error():
    right = np.broadcast_to(RNG.integers(0, 2, 500).astype(float), (3, 4, 500))
    found = sources(right)
    error = stats.sem(right[0, 0])
    assert found.images == pytest.approx(error)
    assert found.interval == pytest.approx(stats.t.interval(0.95, 499, right.mean(), error))


def test_components_p_agrees_with_the_interval_and_equivalence_with_two_one_sided_tests():
    found = components(TABLE - 0.85)
    for level in (0.9, 0.95, 0.99):
        low, high = components(TABLE - 0.85, level).interval
        assert (found.p < 1 - level) == (not low <= 0 <= high)
    error, t = found.error, scipy.stats.t(found.freedom)
    assert found.p == pytest.approx(2 * t.sf(abs(found.mean) / error))
    margin = 0.01
    one_sided = (t.sf((found.mean + margin) / error), t.cdf((found.mean - margin) / error))
    assert found.equivalence_p(margin) == pytest.approx(max(one_sided))
    low, high = components(TABLE - 0.85, 0.9).interval
    assert (found.equivalence_p(margin) < 0.05) == (-margin < low and high < margin)
    assert (components(np.full((3, 3), 0.1)).p, components(np.full((3, 3), 0.1)).equivalence_p(0.1)) == (None, None)


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_components_find_what_is_not_there_in_a_twentieth_of_sweeps_at_most(mean):
    """A difference where the mean is 0; equivalence where it is the margin."""
    found = []
    for _ in range(2000):
        parts = mean + RNG.normal(0, 0.3, (4, 1)) + RNG.normal(0, 0.3, (1, 5)) + RNG.normal(0, 0.3, (4, 5))
        sweep = components(parts)
        found.append((sweep.equivalence_p(0.5) if mean else sweep.p) < 0.05)
    assert 0.005 < np.mean(found) < 0.065


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)])
def test_components_refuse_two_teachers_or_seeds(shape):
    with pytest.raises(ValueError, match="at least 3 of each are needed"):
        components(np.zeros(shape))


def test_crossed_takes_rows_that_differ_in_the_teachers_seed_alone():
    others = taught(TABLE + 0.01, T=9.0)
    rows = summarize([*BASE, *taught(TABLE), *others]).rows
    first, second = crossed(rows)
    assert (first.label, len(first.rows), first.seeds) == ("logits T=4", 4, (0, 1, 2, 3, 4))
    assert first.accuracies == pytest.approx(TABLE)
    assert second.label == "logits T=9"
    assert second.accuracies == pytest.approx(TABLE + 0.01)


def test_crossed_keeps_common_seeds_and_needs_three_teachers():
    runs = taught(TABLE)
    (found,) = crossed(summarize([*BASE, *runs[1:]]).rows)  # the first teacher lacks seed 0
    assert found.seeds == (1, 2, 3, 4)
    assert crossed(summarize([*BASE, *taught(TABLE[:2])]).rows) == []
    same = [changed(run, teacher_id="t0") for run in runs]  # given weights, whatever the seed says
    assert crossed(summarize(same).rows) == []


def test_across_compares_with_the_same_seeds_of_the_baseline():
    rows = summarize([*BASE, *taught(TABLE)]).rows
    (line,) = across(rows, compare(rows))
    minus = TABLE - np.array([run.test_acc for run in BASE])
    assert line.difference.mean == pytest.approx(minus.mean())
    assert line.difference.interval == pytest.approx(components(minus).interval)
    assert (line.teachers, line.seeds) == (4, 5)
    fewer = summarize([*BASE[:4], *taught(TABLE)]).rows
    (line,) = across(fewer, compare(fewer))
    assert (line.difference, line.p, line.verdict) == (None, None, "")


def test_across_has_no_accuracy_above_all_images():
    (line,) = across(summarize(taught([[0.97] * 3, [0.99] * 3, [1.0] * 3])).rows)
    assert line.accuracy.interval.high == 1.0
    assert line.accuracy.interval.low == pytest.approx(0.949, abs=0.001)


def test_across_corrects_p_for_the_number_of_methods_and_tests_for_equivalence():
    base = np.array([run.test_acc for run in BASE])
    near = base + 0.0002 * np.arange(4)[:, None] - 0.0001 * np.arange(5)
    methods = [*taught(TABLE), *taught(near, T=9.0), *taught(TABLE + 0.02, T=16.0)]
    rows = summarize([*BASE, *methods]).rows
    lines = {line.label: line for line in across(rows, compare(rows, margin=0.005))}
    alone = {label: line.difference for label, line in lines.items()}
    assert lines["logits T=16"].p == pytest.approx(3 * alone["logits T=16"].p)
    assert lines["logits T=4"].p == pytest.approx(2 * alone["logits T=4"].p)
    assert lines["logits T=9"].p == pytest.approx(alone["logits T=9"].p)
    assert lines["logits T=9"].equivalence == pytest.approx(3 * alone["logits T=9"].equivalence_p(0.005))
    assert lines["logits T=16"].verdict == "better"
    assert lines["logits T=9"].verdict == "equivalent: less than 0.5 points"


def test_page_shows_new_teachers_where_there_are_several():
    summary = summarize([*BASE, *taught(TABLE)])
    page = to_page(summary, compare(summary.rows), [])
    (line,) = [line for line in page.split("## New teachers and new seeds")[1].splitlines() if line.startswith("| log")]
    assert line.startswith("| logits | 4 | 5 | ")
    assert line.endswith("| better |")
    assert "New teachers" not in to_page(summarize([*BASE, *taught(TABLE[:1])]), [], [])


def test_against_compares_the_same_teachers_and_seeds_and_corrects_for_the_number_of_methods():
    rng = np.random.default_rng(0)
    near = TABLE + rng.normal(0, 0.001, TABLE.shape)
    far = TABLE + 0.01 + rng.normal(0, 0.002, TABLE.shape)
    tables = {"logits": TABLE, "near": near, "far": far}
    groups = {name: crossed(summarize(taught(table, method=name)).rows)[0] for name, table in tables.items()}
    lines = against([groups["near"], groups["far"]], groups["logits"], margin=0.005)
    alone = [components(table - TABLE) for table in (near, far)]
    assert [line.difference for line in lines] == alone
    assert lines[1].p == pytest.approx(2 * alone[1].p)
    assert [line.verdict for line in lines] == ["equivalent: less than 0.5 points", "better"]


@pytest.mark.parametrize("change", [{"student": "cnn8"}, {"teacher": "wrn"}, {"epochs": 60}], ids=str)
def test_crossed_keeps_networks_and_lengths_apart(change):
    found = crossed(summarize([*taught(TABLE), *taught(TABLE - 0.05, **change)]).rows)
    assert [len(method.rows) for method in found] == [4, 4]


def test_crossed_needs_another_teacher_in_each_row():
    """Two rows of one teacher are no two teachers, also where there are three others."""
    runs = [changed(run, teacher_id="t1") if run.teacher_id == "t0" else run for run in taught(TABLE)]
    assert len({run.teacher_id for run in runs}) == 3
    assert crossed(summarize(runs).rows) == []


def test_method_that_diverged_is_not_called_better_with_new_teachers():
    """The protocol's rule: what is left of it are the lucky runs."""
    gone = changed(taught(TABLE + 0.1)[0], seed=9, diverged=True)
    rows = summarize([*BASE, *taught(TABLE + 0.1), gone]).rows
    (line,) = across(rows, compare(rows))
    assert (line.verdict, line.p) == ("1 of 26 runs diverged: no statement", None)
    assert [c.verdict for c in compare(rows)].count("1 of 11 runs diverged: no statement") == 1


def test_a_baseline_that_diverged_is_compared_with_nothing():
    rows = summarize([*BASE, changed(BASE[0], seed=9, diverged=True), *taught(TABLE)]).rows
    (line,) = across(rows, compare(rows))
    assert (line.verdict, line.p) == ("1 of 26 runs diverged: no statement", None)


def test_a_baseline_of_one_teacher_is_none_of_new_teachers():
    """Against a single teacher's students, intervals for new teachers would have its own row at exactly 0."""
    rows = summarize([*BASE, *taught(TABLE)]).rows
    one = next(row for row in rows if row.role is Role.DISTILLED)
    (line,) = across(rows, compare(rows, one.label))
    assert (line.difference, line.p, line.verdict) == (None, None, "")
