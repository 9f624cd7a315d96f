from dataclasses import replace
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from kd.report.page import report
from kd.report.summary import summarize
from kd.report.tuning import budgets, cells, expected_of_best, picture
from tests.report.made import ALONE, DISTILLED, TEACHER, changed

RNG = np.random.default_rng(0)


def tried(run, count, knob="T"):
    """Make runs of one seed, each of another configuration."""
    return [
        changed(run, val_acc=float(RNG.uniform(0.7, 0.8)), test_acc=float(RNG.uniform(0.7, 0.8)), **{knob: float(i)})
        for i in range(count)
    ]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_expected_of_best_is_the_mean_over_all_choices(k):
    val, test = list(RNG.random(7)), list(RNG.random(7))
    choices = list(combinations(range(7), k))
    assert expected_of_best(val, val)[k - 1] == pytest.approx(fmean(max(val[i] for i in c) for c in choices))
    chosen = fmean(test[max(c, key=lambda i: val[i])] for c in choices)
    assert expected_of_best(val, test)[k - 1] == pytest.approx(chosen)


def test_expected_of_best_of_equals_is_their_mean():
    assert expected_of_best([0.5, 0.5], [0.1, 0.3]) == pytest.approx([0.2, 0.2])


def test_expected_of_best_is_unbiased():
    """Of small samples of a known population, the expected best of three matches that of the population."""
    samples = RNG.random((4000, 5))
    assert np.mean([expected_of_best(list(s), list(s))[2] for s in samples]) == pytest.approx(3 / 4, abs=0.01)


def test_budgets_take_methods_with_enough_validated_configurations():
    rows = summarize([*tried(DISTILLED, 6), *tried(replace(DISTILLED, method="dkd"), 4), ALONE, TEACHER]).rows
    (found,) = budgets(rows)
    assert (found.method, len(found.val)) == ("logits", 6)
    assert found.val == sorted(found.val)
    unseen = [replace(run, test_acc=None) for run in tried(DISTILLED, 5)]
    assert budgets(summarize(unseen).rows)[0].test == []


def test_expected_of_best_of_thousands_is_finite_and_quick():
    """Of numbers whose counts of choices have more digits than a float."""
    values = list(np.random.default_rng(0).random(3000))
    found = expected_of_best(values, values)
    assert found == sorted(found)
    assert (found[0], found[-1]) == pytest.approx((np.mean(values), max(values)))
    assert found[1] == pytest.approx(np.mean([max(a, b) for i, a in enumerate(values) for b in values[:i]]))


def test_budgets_of_other_networks_are_others():
    """A larger student is no configuration that a search has found."""

    def of(size, run, place):
        return replace(run, student=f"cnn{size}", group=f"{size} {place}", fingerprint=f"{size} {place}")

    of_sizes = [of(size, run, place) for size in (4, 8) for place, run in enumerate(tried(DISTILLED, 5))]
    rows = summarize(of_sizes).rows
    one, other = budgets(rows)
    assert (len(one.val), len(other.val), one.method) == (5, 5, "logits")
    assert {one.label.partition(" of ")[0], other.label.partition(" of ")[0]} == {"logits, cnn4", "logits, cnn8"}
    sizes = [of(place, run, 0) for place, run in enumerate(tried(DISTILLED, 6))]
    assert budgets(summarize(sizes).rows) == []


def test_budget_table_has_equal_budgets_in_a_column():
    rows = summarize([*tried(DISTILLED, 6), *tried(replace(DISTILLED, method="dkd"), 12)]).rows
    head, _, *lines = cells(budgets(rows)).to_markdown().splitlines()
    assert head == "| method | tried | one | best of 2 | best of 5 | best of 10 |"
    by_method = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines}
    assert len(by_method["dkd"]) == 6
    assert "best of 10" not in by_method["logits"]
    assert by_method["logits"][-1].strip() != by_method["dkd"][-1].strip()


def test_report_tells_of_tuning_where_methods_were_tuned():
    summary = summarize([*tried(DISTILLED, 6), *tried(replace(DISTILLED, method="dkd"), 6)])
    made = report(summary)
    assert "## Tuning" in made.texts["results.md"]
    assert "budget.png" in [picture.name for picture in made.pictures]
    one = report(summarize([*tried(DISTILLED, 6)]))
    assert "## Tuning" not in one.texts["results.md"]


def test_budgets_count_configurations_that_a_search_has_ended():
    """Without them a search that prunes half of its trials would seem to have drawn good ones only."""
    runs = [replace(run, group=f"g{i}") for i, run in enumerate(tried(DISTILLED, 5))]
    pruned = [replace(run, status="pruned", val_acc=None, epoch_val_acc=[0.3, 0.5], test_acc=None) for run in runs]
    pruned = [replace(run, knobs={"T": 20.0 + i}, group=f"p{i}", fingerprint=f"p{i}") for i, run in enumerate(pruned)]
    lost = replace(pruned[0], group="lost", fingerprint="lost", status="failed", diverged=True)
    summary = summarize([*runs, *pruned, lost])
    (found,) = budgets(summary.rows, summary.cut_short)
    finished = [run.val_acc for run in runs]
    assert found.val == pytest.approx(expected_of_best([*finished, *[0.5] * 5, 0.0], [*finished, *[0.5] * 5, 0.0]))
    assert (len(found.val), found.test) == (11, [])
    seeds = [replace(lost, seed=seed, fingerprint=f"lost{seed}") for seed in range(3)]  # of one configuration
    (found,) = budgets(summary.rows, [*pruned, *seeds])
    assert len(found.val) == 11
    again = [replace(run, group=runs[0].group) for run in pruned]  # ended once, and run to its end later
    (found,) = budgets(summary.rows, again)
    assert len(found.val) == 5


def test_budgets_count_seeds_that_diverged_as_0_also_beside_sound_ones():
    """The lucky seed of a configuration that fails most of the time is no choice to make."""
    runs = [changed(DISTILLED, T=float(i), val_acc=0.7 + i / 100, test_acc=0.7) for i in range(1, 5)]
    runs += [changed(DISTILLED, T=5.0, val_acc=0.75, test_acc=0.7)]
    runs += [changed(DISTILLED, T=5.0, seed=seed, diverged=True, status="failed") for seed in (1, 2)]
    summary = summarize(runs)
    (found,) = budgets(summary.rows, summary.cut_short)
    assert found.val[-1] == pytest.approx(0.74)
    assert found.test == []


def test_picture_of_budgets_tells_the_networks_of_a_method_apart():
    rows = summarize([*tried(DISTILLED, 6), *tried(replace(DISTILLED, student="resnet20"), 6)]).rows
    figure = picture(rows, budgets(rows))
    first, second = figure.axes[0].lines
    assert first.get_color() != second.get_color()
