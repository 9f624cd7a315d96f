import itertools

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.metrics import accuracy_score, log_loss, recall_score
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from kd.report.fidelity.measures import (
    Bins,
    accuracy,
    agreement,
    averaged,
    cross_fitted,
    ece,
    expected_flips,
    flipped,
    flips_by_seed,
    kl,
    measure,
    missing,
    most,
    nll,
    reliability,
    spread,
    temperature,
)
from kd.runs.predictions import class_accuracy
from tests.report.fidelity.made import LABELS, LOGITS, TEACHER


def calibrated(images, classes, seed=0):
    """Return labels drawn from the softmax of logits, whose temperature is thus 1, and the logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, classes))
    cumulative = special.softmax(logits, axis=1).cumsum(axis=1)
    return (rng.random((images, 1)) > cumulative[:, :-1]).sum(axis=1), logits


def test_averaged_is_the_mean_of_probabilities_for_each_choice():
    labels = np.array([0, 1])
    sure, unsure, wrong = [[4.0, 0.0], [0.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]], [[0.0, 9.0], [9.0, 0.0]]
    logits = np.array([sure, unsure, wrong])
    assert [accuracy(labels, one) for one in averaged(logits, 1)] == [1, 0.5, 0]
    # sure and unsure: both right. sure and wrong, unsure and wrong: neither.
    assert [accuracy(labels, mean) for mean in averaged(logits, 2)] == [1, 0, 0]
    p = special.softmax(logits, axis=2)
    for mean, (a, b) in zip(averaged(logits, 2), itertools.combinations(p, 2), strict=True):
        assert special.softmax(mean, axis=1) == pytest.approx((a + b) / 2)


def test_measures_match_sklearn_and_torch():
    probabilities = special.softmax(LOGITS.astype(float), axis=1)
    assert accuracy(LABELS, LOGITS) == accuracy_score(LABELS, LOGITS.argmax(1))
    assert nll(LABELS, LOGITS) == pytest.approx(log_loss(LABELS, probabilities), rel=1e-9)
    assert class_accuracy(LABELS, LOGITS) == pytest.approx(recall_score(LABELS, LOGITS.argmax(1), average=None))
    batchmean = F.kl_div(
        *(torch.tensor(logits).log_softmax(1) for logits in (LOGITS, TEACHER)), reduction="batchmean", log_target=True
    )
    assert kl(TEACHER, LOGITS) == pytest.approx(batchmean.item(), rel=1e-5)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0, 60.0])
def test_ece_matches_torchmetrics(sharpness):
    """At 60, many confidences are exactly 1, for which torchmetrics has a further bin unless they are clamped."""
    probabilities = torch.tensor(sharpness * LOGITS).softmax(1).clamp(max=1 - 1e-6)
    reference = multiclass_calibration_error(probabilities, torch.tensor(LABELS), num_classes=5, n_bins=15)
    assert ece(LABELS, sharpness * LOGITS) == pytest.approx(reference.item(), abs=1e-5)  # it sums in fp32


def test_ece_of_three_images():
    """Two images with confidence 0.8, one of them right, and one with 0.6, right: 2/3 * 0.3 + 1/3 * 0.4."""
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    assert ece(np.array([0, 1, 0]), logits) == pytest.approx(2 / 3 * 0.3 + 1 / 3 * 0.4)
    bins = reliability(np.array([0, 1, 0]), logits)
    assert bins.share.sum() == pytest.approx(1)
    assert np.isnan(bins.accuracy).sum() == 13


@pytest.mark.parametrize(
    ("images", "share", "drawn"),
    [(10_000, 0.0019, False), (10_000, 0.002, True), (1000, 0.009, False), (1000, 0.01, True)],
)
def test_bins_of_a_few_images_are_not_drawn(images, share, drawn):
    assert Bins(np.array([share]), np.ones(1), np.ones(1)).drawn(images).tolist() == [drawn]


def test_class_accuracy_of_a_class_without_images_is_nan():
    found = class_accuracy(np.array([0, 0, 2]), np.eye(3)[[0, 1, 2]])
    assert found == pytest.approx([0.5, np.nan, 1.0], nan_ok=True)


def test_measure_of_a_copy_of_the_teacher_is_perfect_fidelity():
    teacher = cross_fitted(LABELS, TEACHER)
    copy = measure(LABELS, teacher, teacher)
    assert (copy.agreement, copy.agreement_right, copy.agreement_wrong, copy.kl, copy.kl_scaled) == (1, 1, 1, 0, 0)
    alone = measure(LABELS, teacher)
    assert (alone.accuracy, alone.agreement, alone.kl) == (copy.accuracy, None, None)


def test_kl_matches_the_closed_form():
    """KL of (3/4, 1/4) to (1/2, 1/2) is ln 2 less the entropy; the reverse differs."""
    teacher, student = np.log([[0.75, 0.25]]), np.log([[0.5, 0.5]])
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert kl(teacher, student) == pytest.approx(np.log(2) - entropy)
    assert kl(student, teacher) == pytest.approx(-np.log(2) - 0.5 * np.log(0.75 * 0.25))
    assert kl(np.array([[1e4, 0.0]]), np.array([[1e4, 0.0]])) == 0


def test_measure_splits_agreement_by_the_teachers_correctness():
    labels = np.tile([0, 0, 0, 0, 1], 4)
    teacher, student = np.eye(3)[[0, 0, 1, 2, 2] * 4], np.eye(3)[[0, 1, 1, 1, 1] * 4]
    found = measure(labels, cross_fitted(labels, student), cross_fitted(labels, teacher))
    assert found.errors == 12
    assert found.agreement == pytest.approx(2 / 5)
    assert found.agreement_right == pytest.approx(1 / 2)
    assert found.agreement_wrong == pytest.approx(1 / 3)  # right where the teacher is wrong is no agreement
    assert agreement(student, teacher, np.zeros(20, dtype=bool)) is None


@pytest.mark.parametrize("T", [0.5, 1.0, 3.0])
def test_temperature_recovers_the_scale_of_calibrated_logits(T):
    labels, logits = calibrated(8000, 10)
    honest = temperature(labels, logits)
    assert honest == pytest.approx(1, abs=0.05)
    assert temperature(labels, T * logits) == pytest.approx(T * honest, rel=1e-4)
    scaled = cross_fitted(labels, T * logits)
    assert nll(labels, scaled.scaled) == pytest.approx(nll(labels, logits), abs=1e-3)
    assert ece(labels, scaled.scaled) < 0.02


def test_cross_fitted_scales_each_half_by_the_other():
    labels, logits = calibrated(400, 4)
    before = cross_fitted(labels, logits)
    changed = labels.copy()
    changed[::2] = (changed[::2] + 1) % 4  # the even images' labels, which only the odd ones' temperature may follow
    after = cross_fitted(changed, logits)
    assert after.temperatures[0] == before.temperatures[0]
    assert after.temperatures[1] > before.temperatures[1]
    assert np.array_equal(after.scaled[::2], before.scaled[::2])
    assert before.scaled[::2] == pytest.approx(logits[::2] / temperature(labels[1::2], logits[1::2]))


def test_cross_fitted_changes_no_prediction_and_no_argument():
    kept = LOGITS.copy()
    assert accuracy(LABELS, cross_fitted(LABELS, LOGITS).scaled) == accuracy(LABELS, LOGITS)
    assert np.array_equal(LOGITS, kept)
    with pytest.raises(ValueError, match="two images"):
        cross_fitted(LABELS[:1], LOGITS[:1])


def almost_perfect(*wrong, scale=4.0):
    """Return logits that are right but for the images in `wrong`."""
    answers = LABELS.copy()
    answers[list(wrong)] = (answers[list(wrong)] + 1) % 5
    return scale * np.eye(5)[answers]


def test_cross_fitted_scales_no_network_with_too_few_errors():
    """All three errors have an odd index: the odd images' temperature, fitted on the even ones, is next to 0."""
    labels, logits = LABELS[:200], almost_perfect(1, 3, 5)[:200]
    odd, even = slice(1, None, 2), slice(0, None, 2)
    careless = logits.copy()
    careless[odd] /= temperature(labels[even], logits[even])
    assert nll(labels, careless) > 3 * nll(labels, logits)  # what was reported as temperature scaled
    outputs = cross_fitted(labels, logits)
    assert (outputs.scaled, outputs.temperatures) == (None, None)
    figures = measure(labels, outputs, cross_fitted(labels, TEACHER[:200]))
    assert (figures.nll_scaled, figures.ece_scaled, figures.temperature, figures.kl_scaled) == (None,) * 4
    assert missing([figures], "nll_scaled", figures) == "too few errors (3)"
    assert missing([figures], "nll", figures) == ""


def test_cross_fitted_needs_ten_errors_in_each_half():
    assert cross_fitted(LABELS, almost_perfect(*range(19))).scaled is None  # nine of them are odd
    assert cross_fitted(LABELS, almost_perfect(*range(20))).scaled is not None
    assert cross_fitted(LABELS, almost_perfect(*range(0, 60, 2))).scaled is None  # thirty, all of them even


def test_measure_refuses_agreement_on_a_handful_of_errors():
    student = cross_fitted(LABELS, LOGITS)
    for errors, known in ((9, False), (10, True)):
        teacher = cross_fitted(LABELS, almost_perfect(*range(errors)))
        found, own = measure(LABELS, student, teacher), measure(LABELS, teacher)
        assert (found.agreement_wrong is not None) == known
        assert missing([found], "agreement_wrong", own) == ("" if known else "too few errors (9)")
        assert missing([found], "kl_scaled", own) == f"too few errors ({errors})"


def test_spread_is_mean_and_sample_standard_deviation():
    shifted = [cross_fitted(LABELS, LOGITS + shift) for shift in (0, np.eye(5)[0])]
    figures = [measure(LABELS, outputs, cross_fitted(LABELS, TEACHER)) for outputs in shifted]
    mean, std = spread(figures, "nll")
    values = [seed.nll for seed in figures]
    assert (mean, std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert spread(figures[:1], "nll").std is None
    assert spread([measure(LABELS, shifted[0])], "kl") is None


# Images that flip

BEFORE = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0]], dtype=bool)
AFTER = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]], dtype=bool)


def test_flipped_by_hand():
    assert flipped(BEFORE, AFTER).tolist() == [0]
    assert flipped(AFTER, BEFORE).tolist() == [2]


def test_flipped_counts_most_of_many_seeds():
    assert [most(n) for n in (1, 2, 3, 4, 5, 6, 10)] == [1, 2, 3, 4, 4, 5, 8]
    seeds = np.arange(6)[:, None] < np.arange(7)  # image i is right in i of 6 seeds
    always = np.ones((6, 7), dtype=bool)
    assert flipped(~always, seeds).tolist() == [5, 6]
    assert flipped(seeds, always).tolist() == [0, 1]


@pytest.mark.parametrize("k", [1, 2])
def test_expected_flips_match_enumeration(k):
    rng = np.random.default_rng(k)
    before, after = rng.random((4, 60)) < 0.5, rng.random((5, 60)) < 0.6
    sets = [list(chosen) for chosen in itertools.combinations(range(4), k)]
    theirs = [list(chosen) for chosen in itertools.combinations(range(5), k)]
    counts = [len(flipped(before[a], after[b])) for a in sets for b in theirs]
    assert expected_flips(before, after, k) == pytest.approx(np.mean(counts))
    apart = [len(flipped(before[a], before[b])) for a in sets for b in sets if not set(a) & set(b)]
    assert flips_by_seed(before, k) == pytest.approx(np.mean(apart))


def test_expected_flips_refuse_more_seeds_than_there_are():
    with pytest.raises(ValueError, match="cannot choose 3"):
        expected_flips(BEFORE, AFTER, 3)
    with pytest.raises(ValueError, match="two sets of 2 of 3"):
        flips_by_seed(AFTER, 2)


def test_expected_flips_of_the_same_network_match_flips_by_seed():
    """A student that differs from the baseline by its seeds only flips no more than these explain."""
    chance = np.random.default_rng(0).random(4000)
    seeds = np.random.default_rng(1).random((8, 4000)) < chance
    assert expected_flips(seeds[:4], seeds[4:], 2) == pytest.approx(flips_by_seed(seeds[:4], 2), rel=0.1)
