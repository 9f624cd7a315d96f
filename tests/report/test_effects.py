import numpy as np
import pytest
from scipy import special, stats

from kd.report.effects import (
    FEWEST_BCA,
    bca_interval,
    better_probability,
    equal_size,
    equivalence_p,
    seeds_needed,
    sign_flip_p,
    smallest_detectable,
    spreads,
)
from kd.report.statistics import t_interval, t_test

SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
"""Student's own data (1908), R's `sleep`: the second drug's gain minus the first's."""
NO_STATEMENT = [[], [0.1], [0.1, 0.3], [0.1] * 5]
SWEEPS = 2000


def covered(intervals, true):
    """Return the share of simulated sweeps whose interval covers the true figure."""
    return np.mean([low <= true <= high for low, high in intervals])


@pytest.mark.parametrize("values", NO_STATEMENT)
def test_effects_are_none_of_few_values_or_without_a_spread(values):
    assert better_probability(values) is None
    assert equivalence_p(values, 0.5) is None
    assert sign_flip_p(values) is None


def test_better_probability_is_that_of_the_normal_distribution():
    found = better_probability(SLEEP)
    assert found.estimate == pytest.approx(stats.norm.cdf(np.mean(SLEEP) / np.std(SLEEP, ddof=1)))
    low, high = found.interval
    # At each bound, the t that was seen is a quantile of the noncentral t distribution.
    t = np.mean(SLEEP) / np.std(SLEEP, ddof=1) * np.sqrt(10)
    assert stats.nct.sf(t, 9, stats.norm.ppf(low) * np.sqrt(10)) == pytest.approx(0.025, rel=1e-4)
    assert stats.nct.cdf(t, 9, stats.norm.ppf(high) * np.sqrt(10)) == pytest.approx(0.025, rel=1e-4)


def test_better_probability_of_seeds_that_hardly_differ_is_certain_and_quick():
    """From t = 4e5 on, scipy's bounds take minutes, if they end."""
    assert better_probability([0.9, 0.9, 0.900002]) == (1.0, (1.0, 1.0))
    assert better_probability([-0.9, -0.9, -0.900002]) == (0.0, (0.0, 0.0))


def test_better_probability_is_one_half_without_a_difference_and_mirrors():
    assert better_probability([-1.0, 0.0, 1.0]).estimate == pytest.approx(0.5)
    ours, theirs = better_probability(SLEEP), better_probability([-value for value in SLEEP])
    assert theirs.estimate == pytest.approx(1 - ours.estimate)
    assert theirs.interval == pytest.approx((1 - ours.interval.high, 1 - ours.interval.low))


@pytest.mark.parametrize(("n", "effect"), [(3, 0.0), (3, 1.5), (6, 0.5), (6, 3.0)])
def test_better_probability_covers_at_its_level(n, effect):
    sweeps = np.random.default_rng(n).normal(effect, 1, (SWEEPS, n))
    share = covered((better_probability(list(sweep)).interval for sweep in sweeps), special.ndtr(effect))
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("margin", [0.5, 2.0, 3.0])
def test_equivalence_p_is_the_larger_of_two_one_sided_tests(margin):
    above = stats.ttest_1samp(SLEEP, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(SLEEP, margin, alternative="less").pvalue
    assert equivalence_p(SLEEP, margin) == pytest.approx(max(above, below))


def test_equivalence_p_is_below_a_twentieth_where_the_interval_of_90_percent_is_within_the_margin():
    low, high = t_interval(SLEEP, 0.9)
    assert equivalence_p(SLEEP, high) == pytest.approx(0.05)
    assert equivalence_p(SLEEP, high + 0.01) < 0.05 < equivalence_p(SLEEP, high - 0.01)
    assert low > 0  # so that it is the upper bound that decides


def test_equivalence_p_claims_equivalence_in_a_twentieth_of_the_sweeps_at_the_margin():
    sweeps = np.random.default_rng(0).normal(1.0, 0.4, (SWEEPS, 6))
    assert np.mean([equivalence_p(list(sweep), 1.0) < 0.05 for sweep in sweeps]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("margin", [0, -0.1, float("nan")])
def test_equivalence_p_refuses_a_margin_of_nothing(margin):
    with pytest.raises(ValueError, match="margin must be > 0"):
        equivalence_p(SLEEP, margin)


@pytest.mark.parametrize("n", [3, 5, 6, 10])
def test_sign_flip_p_matches_scipy(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    reference = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(list(values)) == pytest.approx(reference.pvalue)


def test_sign_flip_p_of_seeds_that_all_gained_is_the_smallest_possible():
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5]) == 2 / 2**5
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == 2 / 2**6


def test_sign_flip_p_of_many_seeds_is_drawn_and_never_0():
    values = list(np.random.default_rng(1).normal(0.5, 1, 20))
    assert sign_flip_p(values) == pytest.approx(t_test(values), abs=0.02)
    assert sign_flip_p([10.0 + i for i in range(20)]) >= 1e-5


def test_bca_interval_is_given_of_enough_seeds_only():
    values = np.random.default_rng(0).normal(0.8, 0.01, FEWEST_BCA)
    assert bca_interval(list(values[:-1])) is None
    assert bca_interval(list(values)) == pytest.approx(t_interval(list(values)), abs=5e-4)


def test_bca_interval_covers_at_its_level_from_where_it_is_given():
    """Fewer resamples than it takes, for time: 600 sweeps of 999."""
    rng = np.random.default_rng(0)
    sweeps = rng.normal(0, 1, (FEWEST_BCA, 600))
    found = stats.bootstrap((sweeps,), np.mean, n_resamples=999, method="BCa", rng=rng).confidence_interval
    assert 0.915 <= covered(zip(found.low, found.high, strict=True), 0) <= 0.97


@pytest.mark.parametrize("n", [3, 6, 20])
def test_smallest_detectable_is_found_with_the_power(n):
    effect = smallest_detectable(2.0, n)
    critical, nc = stats.t.ppf(0.975, n - 1), effect / 2.0 * np.sqrt(n)
    assert stats.nct.sf(critical, n - 1, nc) + stats.nct.cdf(-critical, n - 1, nc) == pytest.approx(0.8, abs=1e-4)
    sweeps = np.random.default_rng(n).normal(effect, 2.0, (SWEEPS, n))
    assert np.mean([t_test(list(sweep)) < 0.05 for sweep in sweeps]) == pytest.approx(0.8, abs=0.03)


def test_seeds_needed_is_the_first_number_that_finds_the_difference():
    # Cohen (1988), table 2.4: a paired effect of 0.5 standard deviations, power 0.80 at 0.05: 34 pairs
    assert seeds_needed(1.0, 0.5) == 34
    for std, effect in ((0.2, 0.1), (0.3, -0.5), (1.0, 0.05)):
        n = seeds_needed(std, effect)
        assert smallest_detectable(std, n) <= abs(effect)
        assert n == 3 or smallest_detectable(std, n - 1) > abs(effect)
    assert seeds_needed(0.1, 5.0) == 3
    assert seeds_needed(1.0, 0.0) is None


def test_spreads_tell_seeds_from_test_images():
    """Networks whose true accuracy varies by 1 point, and whose errors on single images vary on top of it."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        chance = rng.normal(0.8, 0.01, (6, 1)) + rng.choice([-0.1, 0.1], (1, 2000))
        found.append(spreads(rng.random((6, 2000)) < chance))
    seen, seeds, images = (np.sqrt(np.mean(np.square(each))) for each in zip(*found, strict=True))
    assert seeds == pytest.approx(0.01, rel=0.15)
    single = (0.9 * 0.1 + 0.7 * 0.3) / 2 / 2000
    assert seen == pytest.approx(np.sqrt(0.01**2 + single), rel=0.1)
    assert images == pytest.approx(np.sqrt((0.01 + single / 6 * 2000) / 2000), rel=0.1)


def test_spreads_match_the_covariance_over_all_pairs_of_images():
    right = np.random.default_rng(1).random((4, 6)) < np.array([[0.9], [0.9], [0.2], [0.2]])
    covariance = np.cov(right.T.astype(float))
    pairs = covariance[~np.eye(6, dtype=bool)].mean()
    assert spreads(right).seeds ** 2 == pytest.approx(pairs)
    assert pairs > 0


def test_spreads_need_three_seeds():
    assert spreads(np.ones((2, 10), bool)) is None
    assert spreads(np.ones((3, 1), bool)) is None


def test_equal_size_is_between_the_sizes_by_the_logarithm():
    sizes = {1_000_000: 0.8, 10_000: 0.6, 100_000: 0.7}
    assert equal_size(0.7, sizes) == pytest.approx(100_000)
    assert equal_size(0.65, sizes) == pytest.approx(31_623, abs=1)
    assert equal_size(0.599, sizes) is None
    assert equal_size(0.801, sizes) is None
    assert equal_size(0.7, {10_000: 0.6, 100_000: 0.75, 1_000_000: 0.7}) is None  # two sizes would do
