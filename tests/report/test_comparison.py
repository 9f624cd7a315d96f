from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from scipy import stats

from kd.errors import UserError
from kd.report.comparison import by_baseline, compare, comparison_notes, other_settings
from kd.report.statistics import Difference
from kd.report.summary import summarize
from kd.runs.results import Result
from tests.report.made import MUTUAL, changed

ALONE = Result(
    method="standard", seed=0, student="cnn", student_params=21_350, dataset="CIFAR-10", epochs=30, status="done"
)
TAUGHT = replace(ALONE, method="logits", teacher="resnet", teacher_params=1_070_000, teacher_test_acc=0.9)
TEACHER = replace(TAUGHT, method="teacher", student=None, student_params=None, teacher_test_acc=None)


def seeds(run, *accuracies, first=0, **changes):
    return [changed(run, seed=first + i, test_acc=acc, **changes) for i, acc in enumerate(accuracies)]


STANDARD = seeds(ALONE, 0.80, 0.81, 0.805, 0.80)


def comparisons(*results, name=None):
    return compare(summarize(results).rows, name)


def verdicts(*results, name=None):
    return {c.row.label: c.verdict for c in comparisons(*results, name=name)}


# Against the baseline


def test_compare_pairs_seeds():
    """The baseline's seeds differ by far more than the two rows do: only pairs show the difference."""
    base, ours = [0.70, 0.75, 0.80, 0.85], [0.712, 0.763, 0.811, 0.862]
    (comparison,) = comparisons(*seeds(ALONE, *base), *seeds(TAUGHT, *ours))
    reference = stats.ttest_rel(ours, base)
    assert stats.ttest_ind(ours, base).pvalue > 0.5
    assert (comparison.difference.n, comparison.baseline.label, comparison.row.label) == (4, "standard", "logits")
    assert comparison.difference.mean == pytest.approx(0.012)
    assert comparison.difference.p == pytest.approx(reference.pvalue)
    assert comparison.difference.interval == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert comparison.verdict == "better"


def test_compare_counts_common_seeds_only():
    (comparison,) = comparisons(*STANDARD, *seeds(TAUGHT, 0.82, 0.84, 0.99, first=2))
    assert comparison.difference.n == 2
    assert comparison.difference.mean == pytest.approx((0.82 - 0.805 + 0.84 - 0.80) / 2)


def test_verdict_names_every_outcome():
    rows = [
        seeds(TAUGHT, 0.83, 0.841, 0.834, 0.831, T=1.0),
        seeds(TAUGHT, 0.77, 0.782, 0.774, 0.771, T=2.0),
        seeds(TAUGHT, 0.79, 0.83, 0.80, 0.81, T=3.0),
        seeds(TAUGHT, 0.9, T=4.0),
        seeds(TAUGHT, 0.9, 0.9, first=7, T=5.0),
        seeds(TAUGHT, 0.9, 0.91, 0.905, T=6.0),
        seeds(TAUGHT, 0.9, None, T=7.0),
        seeds(TAUGHT, 0.83, 0.841, T=8.0),
    ]
    assert verdicts(*STANDARD, *chain(*rows)) == {
        "logits T=1": "better",
        "logits T=2": "worse",
        "logits T=3": "no difference seen",
        "logits T=4": "one seed: no statement",
        "logits T=5": "no common seed: no statement",
        "logits T=6": "no spread: no statement",
        "logits T=7": "one seed: no statement",
        "logits T=8": "two seeds: no statement",
    }


def test_compare_corrects_for_the_number_of_comparisons():
    """A difference with p = 1/40 is not significant among forty comparisons."""
    rng = np.random.default_rng(0)
    noise = [seeds(TAUGHT, *rng.normal(0.8, 0.01, 4), T=float(T)) for T in range(2, 40)]
    found = seeds(TAUGHT, 0.82, 0.826, 0.816, 0.816, T=1.0)
    (alone,) = comparisons(*STANDARD, *found)
    assert alone.verdict == "better"
    among = comparisons(*STANDARD, *found, *chain(*noise))
    assert among[0].verdict == "not certain"
    assert {c.verdict for c in among} == {"no difference seen", "not certain"}
    assert among[0].difference == alone.difference._replace(p=min(1, 39 * alone.difference.p))
    assert any("39 comparisons" in note for note in comparison_notes([], among))


def test_compare_does_not_count_comparisons_without_a_test():
    one_seed = [seeds(TAUGHT, 0.9, T=float(T)) for T in range(2, 40)]
    found = seeds(TAUGHT, 0.82, 0.826, 0.816, 0.816, T=1.0)
    (alone,) = comparisons(*STANDARD, *found)
    assert comparisons(*STANDARD, *found, *chain(*one_seed))[0].difference == alone.difference


def test_compare_states_nothing_about_two_seeds():
    """Student's t of two seeds is 12.7: the interval would be -609 to +520 points for differences of a few dozen."""
    (comparison,) = comparisons(*seeds(ALONE, 0.5, 0.5), *seeds(TAUGHT, 0.9, 0.01))
    assert comparison.difference == Difference(pytest.approx(-0.045), None, None, 2)
    assert comparison_notes([], [comparison])[1].startswith("Too few seeds for intervals and verdicts")


def test_compare_keeps_intervals_to_what_is_possible():
    (comparison,) = comparisons(*seeds(ALONE, 0.1, 0.9, 0.1), *seeds(TAUGHT, 0.9, 0.1, 0.9))
    assert comparison.difference.interval == (-1.0, 1.0)


def test_compare_does_not_compare_trials_of_different_size():
    alone = seeds(ALONE, 0.80, 0.81, 0.805, trial="tested on 10 of 100 images")
    same = seeds(TAUGHT, 0.83, 0.841, 0.834, trial="tested on 10 of 100 images")
    found = comparisons(*alone, *same, *seeds(TAUGHT, 0.9, 0.9, 0.9, T=1.0, trial="tested on 20 of 100 images"))
    assert [comparison.row.label for comparison in found] == ["logits"]
    assert [name for name, _ in by_baseline(found)] == ["standard (trial)"]


# Which baseline


def test_compare_leaves_out_teachers():
    rows = [*STANDARD, *seeds(TEACHER, 0.9, 0.91), *seeds(TAUGHT, 0.82, 0.83)]
    assert list(verdicts(*rows)) == ["logits"]
    with pytest.raises(UserError, match="'teacher' is not the name of a student"):
        comparisons(*rows, name="teacher")


def test_compare_takes_any_student_as_the_baseline():
    rows = [*STANDARD, *seeds(TAUGHT, 0.82, 0.83, T=1.0), *seeds(TAUGHT, 0.82, 0.83, T=4.0)]
    assert list(verdicts(*rows, name="logits T=4")) == ["standard", "logits T=1"]


def test_compare_takes_a_baseline_of_the_same_trial():
    short, less = ({"trial": trial} for trial in ("tested on 2000 of 10000 images", "1 batch an epoch"))
    both = [*seeds(ALONE, 0.8, 0.81, **short), *seeds(TAUGHT, 0.82, 0.84, **short)]
    both += [*seeds(ALONE, 0.5, 0.51, **less), *seeds(TAUGHT, 0.55, 0.56, **less)]
    found = comparisons(*both)
    assert [c.row.trial for c in found] == [c.baseline.trial for c in found]
    assert [c.difference.mean for c in found] == pytest.approx([0.025, 0.05], abs=1e-6)


def test_compare_without_a_name_needs_a_student_alone():
    taught = seeds(TAUGHT, 0.82, 0.83)
    assert comparisons(*taught) == []
    assert comparison_notes(summarize(taught).rows, []) == []


def test_compare_takes_of_several_students_alone_the_one_with_the_settings_of_the_row():
    wide, long = {"variant": "student.scale=8"}, {"epochs": 60, "variant": "epochs=60"}
    other = replace(ALONE, student="cnn4")
    alone = [*STANDARD, *seeds(ALONE, 0.7, 0.71, **wide), *seeds(ALONE, 0.85, 0.86, **long), *seeds(other, 0.6, 0.61)]
    taught = [
        *seeds(TAUGHT, 0.82, 0.83),
        *seeds(TAUGHT, 0.72, 0.75, variant="student.scale=8 ensemble=2 teacher_recipe.epochs=9"),
        *seeds(TAUGHT, 0.87, 0.88, **long),
        *seeds(replace(TAUGHT, student="cnn4"), 0.61, 0.62),
    ]
    lost = seeds(TAUGHT, 0.5, 0.6, variant="recipe.ema=0.999")
    rows = summarize([*alone, *taught, *lost]).rows
    for name in (None, "standard"):
        found = compare(rows, name)
        assert sorted(c.row.test_acc.mean - c.baseline.test_acc.mean for c in found) == pytest.approx(
            [0.01, 0.02, 0.02, 0.03], abs=0.006
        )
        assert all(other_settings(c) == [] for c in found)
    (note, *_) = comparison_notes(rows, compare(rows))
    assert note.startswith("Not compared, as no baseline, or several, have their settings: 'logits")
    assert "recipe.ema=0.999" in note
    assert len(by_baseline(found)) == 4
    unlike = summarize([*alone, *lost]).rows
    assert compare(unlike) == []
    assert "several rows could be the baseline" in comparison_notes(unlike, [])[0]
    with pytest.raises(UserError, match="'standard' is the name of 4 rows; give one of"):
        compare(unlike, "standard")


def test_compare_takes_no_student_taught_without_a_teacher_as_the_baseline():
    mutual = seeds(MUTUAL, 0.83, 0.841, 0.834, 0.831)
    assert verdicts(*STANDARD, *mutual) == {"dml": "better"}
    assert comparisons(*mutual, *seeds(TAUGHT, 0.82, 0.83)) == []


def test_compare_lists_candidates_for_a_name_of_none_or_several():
    rows = [*STANDARD, *seeds(TAUGHT, 0.82, T=1.0), *seeds(TAUGHT, 0.82, T=4.0)]
    with pytest.raises(UserError) as none:
        comparisons(*rows, name="logit")
    assert str(none.value) == (
        "baseline 'logit' is not the name of a student; give one of: 'standard', 'logits T=1', 'logits T=4'"
    )
    with pytest.raises(UserError) as several:
        comparisons(*rows, name="logits")
    assert str(several.value) == "baseline 'logits' is the name of 2 rows; give one of: 'logits T=1', 'logits T=4'"
    many = [run for T in range(100) for run in seeds(TAUGHT, 0.82, T=float(T))]
    with pytest.raises(UserError, match=r"'logits T=11' and 88 more$"):
        comparisons(*many, name="logits")


def test_compare_has_a_baseline_for_each_data_set():
    rows = [*STANDARD, *seeds(TAUGHT, 0.82, 0.83)]
    both = comparisons(
        *rows, *(replace(run, dataset="SVHN", test_acc=run.test_acc - 0.3) for run in rows), name="standard"
    )
    assert [c.difference.mean for c in both] == pytest.approx([0.02, 0.02])
    assert [baseline for baseline, _ in by_baseline(both)] == ["standard on CIFAR-10", "standard on SVHN"]
    with pytest.raises(UserError, match=r"give one of: 'logits', 'standard'$"):
        compare([c.row for c in both] + [c.baseline for c in both], "logit")


# Beyond the mean


GAINED = seeds(TAUGHT, 0.82, 0.831, 0.826, 0.818)


def test_compare_tells_how_sure_the_gain_is():
    (comparison,) = comparisons(*STANDARD, *GAINED)
    by_seed = np.array([0.02, 0.021, 0.021, 0.018])
    assert comparison.by_seed == pytest.approx(by_seed)
    assert comparison.probability.estimate == pytest.approx(stats.norm.cdf(by_seed.mean() / by_seed.std(ddof=1)))
    assert comparison.sign_flip == pytest.approx(2 / 2**4)
    assert 0 < comparison.detectable < 0.01
    assert comparison.seeds_needed is None  # it is settled


def test_compare_tells_how_many_seeds_would_settle_it():
    (comparison,) = comparisons(*STANDARD, *seeds(TAUGHT, 0.805, 0.81, 0.812, 0.802))
    assert comparison.verdict == "no difference seen"
    assert comparison.seeds_needed > comparison.difference.n
    assert comparison.detectable > comparison.difference.mean


def test_seeds_that_would_settle_it_are_more_than_there_are_whatever_else_is_compared():
    """Uncorrected, three seeds find this gain; with 19 others beside it they do not."""
    gained = seeds(TAUGHT, 0.81, 0.835, 0.815, 0.82)
    (alone,) = comparisons(*STANDARD, *gained)
    assert (alone.verdict, alone.seeds_needed) == ("better", None)
    others = [run for i in range(19) for run in seeds(TAUGHT, 0.805, 0.81, 0.812, 0.802, variant=f"a={i}")]
    among = next(c for c in comparisons(*STANDARD, *gained, *others) if not c.row.first.variant)
    assert among.verdict == "not certain"
    assert among.seeds_needed > among.difference.n == 4
    (once,) = comparisons(*STANDARD, *seeds(TAUGHT, 0.805, 0.81, 0.812, 0.802))
    assert among.difference.mean == alone.difference.mean
    assert (
        once.seeds_needed
        < next(c for c in comparisons(*STANDARD, *gained, *others) if c.row.first.variant).seeds_needed
    )


def test_compare_of_two_seeds_tells_nothing_beyond_the_mean():
    (comparison,) = comparisons(*STANDARD, *seeds(TAUGHT, 0.82, 0.83))
    assert [comparison.probability, comparison.sign_flip, comparison.detectable, comparison.seeds_needed] == [None] * 4


@pytest.mark.parametrize(
    ("accuracies", "margin", "verdict"),
    [
        ((0.8, 0.8102, 0.8048, 0.8003), 0.005, "equivalent: less than 0.5 points"),
        ((0.8, 0.8102, 0.8048, 0.8003), 0.0001, "no difference seen"),
        ((0.82, 0.831, 0.826, 0.818), 0.03, "better, by less than 3 points"),
        ((0.82, 0.831, 0.826, 0.818), 0.02, "better"),
        ((0.78, 0.789, 0.785, 0.781), 0.03, "worse, by less than 3 points"),
        ((0.82, 0.83), 0.03, "two seeds: no statement"),
    ],
)
def test_compare_calls_equivalent_what_is_within_the_margin(accuracies, margin, verdict):
    (comparison,) = compare(summarize([*STANDARD, *seeds(TAUGHT, *accuracies)]).rows, margin=margin)
    assert comparison.verdict == verdict


def test_compare_corrects_equivalence_for_the_number_of_comparisons():
    near = [run for T in range(5) for run in seeds(TAUGHT, 0.8005, 0.812, 0.803, 0.802, T=float(T))]
    alone = compare(summarize([*STANDARD, *near[:4]]).rows, margin=0.005)
    every = compare(summarize([*STANDARD, *near]).rows, margin=0.005)
    assert every[0].equivalence == pytest.approx(min(1, 5 * alone[0].equivalence))


def test_comparison_notes_tell_where_the_test_without_a_distribution_disagrees():
    rows = summarize([*STANDARD, *GAINED]).rows
    (note,) = [note for note in comparison_notes(rows, compare(rows)) if "sign-flip" in note]
    assert note.endswith("another verdict on logits. With so few seeds it cannot be below 0.125.")
    six = [0.80, 0.81, 0.805, 0.80, 0.803, 0.807]
    rows = summarize([*seeds(ALONE, *six), *seeds(TAUGHT, *(acc + 0.01 + i / 1e4 for i, acc in enumerate(six)))]).rows
    (note,) = [note for note in comparison_notes(rows, compare(rows)) if "sign-flip" in note]
    assert note.endswith("comes to the same verdicts.")


def test_comparison_notes_name_the_data_set_on_which_nothing_can_be_compared():
    gained = [changed(run, variant="recipe.ema=0.9") for run in GAINED]
    both = [*STANDARD, *seeds(replace(ALONE, student="cnn4"), 0.7, 0.71, 0.72), *gained]
    (note,) = comparison_notes(summarize(both).rows, comparisons(*both))
    assert note.startswith("Nothing is compared: several rows could be the baseline")
    apart = [*STANDARD, *(replace(run, dataset="SVHN") for run in STANDARD)]
    assert comparison_notes(summarize(apart).rows, comparisons(*apart)) == []
    tuned = [*seeds(TAUGHT, 0.8, 0.81, T=2.0), *seeds(TAUGHT, 0.82, 0.83, T=8.0)]
    rows = summarize([*tuned, *seeds(replace(TAUGHT, dataset="SVHN"), 0.8, T=2.0)]).rows
    (note, *_) = comparison_notes(rows, compare(rows, "logits T=8"))
    assert note.startswith("Nothing is compared on SVHN: no row, or several, could be the baseline")
    mixed = [*STANDARD, *GAINED, *(replace(run, dataset="SVHN") for run in both)]
    notes = comparison_notes(summarize(mixed).rows, comparisons(*mixed))
    assert notes[0].startswith("Nothing is compared on SVHN: several rows")
    assert len(notes) > 2


def test_comparison_notes_name_what_is_not_compared_with_a_baseline_that_was_named():
    """Not the baselines that no row needs; but students alone, which are compared with this method, too."""

    def sized(run, scale, *accuracies):
        return seeds(replace(run, variant=f"student.scale={scale}", student=f"cnn{scale}"), *accuracies)

    feature = replace(TAUGHT, method="feature")
    runs = [*sized(TAUGHT, 4, 0.7, 0.71), *sized(TAUGHT, 8, 0.8, 0.81), *sized(feature, 4, 0.72, 0.73)]
    rows = summarize(runs).rows
    assert not any(note.startswith("Not compared") for note in comparison_notes(rows, compare(rows, "logits")))
    rows = summarize([*runs, *sized(ALONE, 16, 0.9, 0.91)]).rows
    notes = comparison_notes(rows, compare(rows, "logits"))
    assert notes[0] == "Not compared, as no baseline, or several, have their settings: 'standard'."
    alone = [replace(run, dataset="SVHN") for scale in (4, 8) for run in sized(ALONE, scale, 0.9, 0.91)]
    rows = summarize([*seeds(TAUGHT, 0.7, 0.71), *seeds(feature, 0.72, 0.73), *alone]).rows
    assert not any(note.startswith("Nothing is") for note in comparison_notes(rows, compare(rows, "logits")))


# In what else rows differ


def other_settings_notes(*results):
    rows = summarize(results).rows
    return [note for note in comparison_notes(rows, compare(rows)) if note.startswith("Not the method alone")]


def test_comparison_notes_tell_of_settings_that_no_name_shows():
    """A student of a longer recipe, where the table has "standard" and "logits": the gain is not the method's."""
    longer = seeds(TAUGHT, 0.82, 0.83, 0.84, variant="recipe.epochs=40 ensemble=3", epochs=40)
    (note,) = other_settings_notes(*STANDARD, *longer)
    assert "logits (epochs 40 against 30)" in note
    part = seeds(TAUGHT, 0.82, 0.83, 0.84, variant="data.fraction=0.5 lr=0.1", epochs=240, train_images=25_000)
    whole = [replace(run, train_images=50_000, variant="recipe.batch_size=64") for run in STANDARD]
    (note,) = other_settings_notes(*whole, *part)
    assert "epochs 240 against 30, training images 25000 against 50000, data.fraction 0.5 against none" in note


def test_comparison_notes_do_not_repeat_what_names_show_or_teachers_have():
    equal = seeds(TAUGHT, 0.82, 0.83, 0.84, variant="teacher.scale=8 method.layers=2")
    chained = seeds(TAUGHT, 0.82, 0.83, 0.84, variant="chain=[{scale: 24}, {scale: 20}] recipe.epochs=30")
    assert other_settings_notes(*STANDARD, *chained) == []
    assert other_settings_notes(*STANDARD, *seeds(TAUGHT, 0.82, 0.83, train_images=45_000)) == []  # or not on record
    same = [replace(run, variant="lr=0.2") for run in STANDARD]
    assert other_settings_notes(*same, *seeds(TAUGHT, 0.82, 0.83, variant="recipe.optimizer.lr=0.2")) == []
    wide, narrow = (
        seeds(TAUGHT, 0.82, 0.83, 0.84, variant=f"student.scale={scale}", student=f"cnn{scale}") for scale in (8, 16)
    )
    assert other_settings_notes(*STANDARD, *equal) == []
    assert other_settings_notes(*STANDARD, *wide, *narrow) == []


def test_nothing_is_stated_of_rows_that_diverge_at_times():
    lost = seeds(TAUGHT, 0.1, first=3, diverged=True)
    good = seeds(TAUGHT, 0.851, 0.862, 0.854)
    (sound,), (refused,) = comparisons(*STANDARD, *good), comparisons(*STANDARD, *good, *lost)
    stated = [(c.probability, c.detectable, c.sign_flip) for c in (sound, refused)]
    assert None not in stated[0]
    assert stated[1] == (None, None, None)


def test_sign_flip_note_corrects_for_the_tests_that_were_made():
    """Six positive differences have p = 0.03 by both tests; one that is refused is no further test."""
    base = seeds(ALONE, *([0.80] * 6))
    ours = seeds(TAUGHT, 0.81, 0.82, 0.815, 0.812, 0.818, 0.811)
    other = replace(TAUGHT, method="dkd")
    refused = [*seeds(other, 0.81, 0.82, 0.83, 0.84, 0.85), *seeds(other, 0.1, first=5, diverged=True)]
    rows = summarize([*base, *ours, *refused]).rows
    assert any(note.endswith("comes to the same verdicts.") for note in comparison_notes(rows, compare(rows)))


def test_detectable_is_corrected_as_the_verdicts_are():
    differences = 0.010 + 0.002 * np.random.default_rng(0).standard_normal(6)
    first = seeds(TAUGHT, *(0.8 + differences))
    base = seeds(ALONE, *([0.8] * 6))
    (one,) = comparisons(*base, *first)
    two = comparisons(*base, *first, *seeds(replace(TAUGHT, method="dkd"), *(0.8 + differences[::-1])))
    # The power of a t test of a true difference as large, at half the level.
    shift = two[0].detectable / np.std(differences, ddof=1) * 6**0.5
    critical = stats.t.ppf(1 - 0.05 / 4, 5)
    assert 1 - stats.nct.cdf(critical, 5, shift) == pytest.approx(0.8, abs=1e-6)
    assert one.detectable < two[0].detectable
