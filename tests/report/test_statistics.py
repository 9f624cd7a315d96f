import subprocess
import sys

import numpy as np
import pytest
from scipy import optimize, special, stats

from kd.report.statistics import (
    Interval,
    binomial_interval,
    change_interval,
    corrected,
    difference,
    holm,
    images_interval,
    mcnemar,
    paired_differences,
    t_interval,
    t_test,
)

# Student's own data (1908), R's `sleep`: hours of sleep gained by ten patients with two drugs.
FIRST = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
SECOND = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
SLEEP = paired_differences(SECOND, FIRST)


def test_paired_differences_are_of_common_seeds_in_any_order():
    assert paired_differences({2: 0.9, 0: 0.8, 7: 0.1}, {0: 0.5, 1: 0.2, 2: 0.5}) == pytest.approx([0.3, 0.4])
    assert paired_differences({0: 0.5}, {1: 0.5}) == []


def test_t_test_and_t_interval_match_r_on_students_data():
    assert np.mean(SLEEP) == pytest.approx(1.58)
    # R: t.test(extra ~ group, data = sleep, paired = TRUE): p-value = 0.002833, interval 0.7001142 to 2.4598858
    assert t_test(SLEEP) == pytest.approx(0.002833, abs=5e-7)
    assert t_interval(SLEEP) == pytest.approx((0.7001142, 2.4598858), abs=5e-8)


@pytest.mark.parametrize("n", [3, 4, 10])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_t_test_and_t_interval_match_scipy(n, level):
    ours, theirs = np.random.default_rng(n).normal(0.8, 0.01, (2, n))
    reference = stats.ttest_rel(ours, theirs)
    assert t_test(list(ours - theirs)) == pytest.approx(reference.pvalue, rel=1e-9)
    assert t_interval(list(ours - theirs), level) == pytest.approx(
        tuple(reference.confidence_interval(level)), rel=1e-9
    )


@pytest.mark.parametrize(
    "values", [[], [0.3], [0.1, 0.3], [0.1] * 3, [0.82 - 0.80, 0.83 - 0.81, 0.02], [0.5] * 2 + [0.5 + 6e-8]]
)
def test_t_test_and_t_interval_are_none_of_few_values_or_without_a_spread(values):
    """Equal differences of few seeds would give t = infinity, and rounding errors a p of 1e-9."""
    assert t_interval(values) is None
    assert t_test(values) is None


def test_t_interval_covers_the_mean_at_its_level():
    samples = np.random.default_rng(0).normal(0.8, 0.003, (2000, 3))
    covered = np.mean([low <= 0.8 <= high for low, high in map(t_interval, samples)])
    assert covered == pytest.approx(0.95, abs=0.015)  # three of its own standard deviations


@pytest.mark.parametrize(
    ("correct", "of", "expected"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, Wilson's score method without continuity correction
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_binomial_interval_matches_published_values(correct, of, expected):
    assert binomial_interval(correct, of) == pytest.approx(expected, abs=5e-5)


def test_binomial_interval_matches_the_closed_form():
    low, high = binomial_interval(8000, 10_000)
    z, p, n = 1.959964, 0.8, 10_000
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    assert (low + high) / 2 == pytest.approx(middle, abs=1e-9)
    assert high - low == pytest.approx(2 * z * (p * (1 - p) / n) ** 0.5, rel=1e-3)
    assert all(isinstance(bound, float) for bound in Interval(low, high))


@pytest.mark.parametrize(("correct", "of"), [(11, 10), (-1, 10), (0, 0)])
def test_binomial_interval_refuses_impossible_counts(correct, of):
    with pytest.raises(ValueError, match=f"^{correct} of {of} is no share of test images$"):
        binomial_interval(correct, of)


@pytest.mark.parametrize(("gained", "lost", "of"), [(12, 2, 50), (2, 12, 50), (70, 100, 10_000), (3, 0, 40)])
def test_change_interval_ends_where_the_score_test_rejects(gained, lost, of):
    """With the likelihood's maximum, for a change of that size, searched for numerically."""
    for change, sign in zip(change_interval(gained, lost, of), (1, -1), strict=True):

        def unlikely(loss, change=change):
            same = 1 - 2 * loss - change
            return -special.xlogy([gained, lost, of - gained - lost], [loss + change, loss, same]).sum()

        bounds = (max(0.0, -change), (1 - change) / 2)
        loss = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        error = np.sqrt((2 * loss + change - change**2) / of)
        assert ((gained - lost) / of - change) / error == pytest.approx(sign * stats.norm.ppf(0.975), rel=1e-3)


def test_change_interval_without_a_change_reaches_as_far_as_the_images_can_tell():
    z = stats.norm.ppf(0.975)
    for count in (10, 10_000):
        reach = z**2 / (count + z**2)
        assert change_interval(0, 0, count) == pytest.approx((-reach, reach))


@pytest.mark.parametrize(("gained", "lost", "of"), [(1, 0, 1), (5, 0, 5), (0, 5, 5)])
def test_change_interval_ends_at_a_change_of_every_image(gained, lost, of):
    low, high = change_interval(gained, lost, of)
    assert -1 <= low < high <= 1
    assert (gained - lost) / of in (low, high)


@pytest.mark.parametrize("shares", [(0.02, 0, 100), (0.0002, 0, 10_000), (0.05, 0.02, 1000), (0.1, 0.3, 50)])
def test_change_interval_covers_the_change(shares):
    gain, loss, count = shares
    drawn = np.random.default_rng(0).multinomial(count, [gain, loss, 1 - gain - loss], 1000)
    intervals = {(g, b): change_interval(int(g), int(b), count) for g, b in {(g, b) for g, b, _ in drawn}}
    covered = [intervals[g, b].low <= gain - loss <= intervals[g, b].high for g, b, _ in drawn]
    assert 0.93 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_change_interval_refuses_counts_that_are_no_shares(counts):
    with pytest.raises(ValueError, match="no shares of test images"):
        change_interval(*counts)


def test_images_interval_matches_the_normal_approximation_and_scipy():
    """Against the normal approximation, which 10,000 images justify, and against scipy's resampling of few."""
    rng = np.random.default_rng(0)
    theirs = rng.random((3, 10_000)) < 0.8
    ours = theirs ^ (rng.random((2, 10_000)) < 0.1)[[0, 1, 1]]
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    reach = 1.959964 * differences.std(ddof=1) / 100
    found = images_interval(ours, theirs)
    assert found == pytest.approx((differences.mean() - reach, differences.mean() + reach), abs=4e-4)
    few = images_interval(ours[:, :30], theirs[:, :30])
    reference = stats.bootstrap((differences[:30],), np.mean, method="percentile", rng=rng).confidence_interval
    assert few == pytest.approx(tuple(reference), abs=0.012)
    assert images_interval(theirs, theirs) == (0, 0)


def test_images_interval_keeps_images_paired():
    """Two networks that err on the same images differ by less than the accuracy of either is uncertain."""
    theirs = np.arange(10_000)[None] < 8000
    low, high = images_interval(np.arange(10_000)[None] < 8010, theirs)
    assert high - low < 0.002
    assert 0 < low < 0.001 < high


@pytest.mark.parametrize("shape", [(1, 9), (10,)])
def test_images_interval_refuses_different_images(shape):
    with pytest.raises(ValueError, match="not the same images"):
        images_interval(np.ones((1, 10), bool), np.ones(shape, bool))


def answers(both, ours, theirs, none):
    first = [True] * both + [True] * ours + [False] * theirs + [False] * none
    return first, [True] * both + [False] * ours + [True] * theirs + [False] * none


def test_mcnemar_counts_disagreements_only():
    # (1 + 10) / 2^10, twice: nine of ten coins, or a more extreme number
    assert mcnemar(*answers(70, 9, 1, 20)) == pytest.approx(22 / 1024)
    assert mcnemar(*answers(7000, 9, 1, 2000)) == pytest.approx(22 / 1024)
    assert mcnemar(*answers(70, 1, 9, 20)) == pytest.approx(22 / 1024)
    assert mcnemar(*answers(70, 5, 5, 20)) == 1
    assert mcnemar(*answers(70, 0, 0, 30)) == 1


def test_mcnemar_pairs_images():
    """Equal numbers of right predictions, on different images: pairs count, not totals."""
    ours = np.arange(100) < 60
    assert mcnemar(ours, np.roll(ours, 20)) == 1
    assert mcnemar(ours, np.arange(100) < 50) == pytest.approx(2 / 1024)


@pytest.mark.parametrize("theirs", [[True], [[True, False]], []])
def test_mcnemar_refuses_different_images(theirs):
    with pytest.raises(ValueError, match="not the same images"):
        mcnemar([True, False], theirs)


def test_holm_matches_r():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_does_not_count_missing_tests():
    assert holm([None, 0.01, None, 0.03]) == [None, pytest.approx(0.02), None, pytest.approx(0.03)]


def test_tables_do_not_load_scipy_stats():
    code = "import kd.report.tables, sys; assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_verdict_names_every_outcome():
    assert difference({0: 0.9}, {1: 0.8}).verdict == "no common seed: no statement"
    assert difference({0: 0.9}, {0: 0.8}).verdict == "one seed: no statement"
    assert difference({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.8}).verdict == "two seeds: no statement"
    assert difference(dict.fromkeys(range(3), 0.9), dict.fromkeys(range(3), 0.8)).verdict == "no spread: no statement"
    assert difference({0: 0.81, 1: 0.82, 2: 0.83}, {0: 0.80, 1: 0.81, 2: 0.819}).verdict == "higher"
    assert difference({0: 0.80, 1: 0.81, 2: 0.819}, {0: 0.81, 1: 0.82, 2: 0.83}).verdict == "lower"
    assert difference({0: 0.80, 1: 0.81, 2: 0.82}, {0: 0.81, 1: 0.80, 2: 0.82}).verdict == "no difference seen"


def test_verdict_is_not_certain_where_only_the_correction_decides():
    """The interval, which is of one test, excludes 0, but the corrected p is not below 0.05."""
    alone = difference({0: 0.80, 1: 0.815, 2: 0.82}, {0: 0.79, 1: 0.80, 2: 0.80})
    assert alone.interval.low > 0
    assert 0.025 < alone.p < 0.05
    first, second = corrected([alone, alone])
    assert (alone.verdict, first.verdict, second.verdict) == ("higher", "not certain", "not certain")
