import csv
import io
import itertools
import shutil

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.metrics import accuracy_score, log_loss, recall_score
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from kd.errors import UserError
from kd.report.fidelity.measures import (
    accuracy,
    agreement,
    class_accuracy,
    cross_fitted,
    ece,
    expected_flips,
    flipped,
    flips_by_seed,
    kl,
    measure,
    most,
    nll,
    reliability,
    spread,
    temperature,
)
from kd.report.fidelity.page import named, to_page
from kd.report.fidelity.study import COMPARED, FAMILIES, collect, study
from kd.report.fidelity.tables import images_table, to_csv
from kd.report.statistics import holm, images_interval, mcnemar, paired_differences, t_test
from kd.runs.predictions import Predictions, write
from kd.runs.results import Result
from kd.runs.results import write as write_result

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 3000)
LOGITS = (RNG.normal(0, 2, (3000, 5)) + 2.5 * np.eye(5)[LABELS]).astype(np.float32)
TEACHER = (RNG.normal(0, 2, (3000, 5)) + 4 * np.eye(5)[LABELS]).astype(np.float32)


def calibrated(images, classes, seed=0):
    """Return labels drawn from the softmax of logits, whose temperature is thus 1, and the logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, classes))
    cumulative = special.softmax(logits, axis=1).cumsum(axis=1)
    return (rng.random((images, 1)) > cumulative[:, :-1]).sum(axis=1), logits


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
    labels = np.array([0, 0, 0, 0, 1])
    teacher, student = np.eye(3)[[0, 0, 1, 2, 2]], np.eye(3)[[0, 1, 1, 1, 1]]
    found = measure(labels, cross_fitted(labels, student), cross_fitted(labels, teacher))
    assert found.agreement == pytest.approx(2 / 5)
    assert found.agreement_right == pytest.approx(1 / 2)
    assert found.agreement_wrong == pytest.approx(1 / 3)  # right where the teacher is wrong is no agreement
    assert agreement(student, teacher, np.zeros(5, dtype=bool)) is None


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
    perfect = cross_fitted(LABELS, np.eye(5)[LABELS])  # the lower T, the better, until the NLL is 0
    assert 0.01 <= max(perfect.temperatures) < 0.03
    with pytest.raises(ValueError, match="two images"):
        cross_fitted(LABELS[:1], LOGITS[:1])


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


# The study

TAUGHT = {"teacher": "cnn32", "teacher_params": 4_000_000, "teacher_id": "a", "knobs": {"T": 4.0}}


def put(directory, method, seed, logits, teacher=None, labels=LABELS, **changes):
    directory.mkdir(parents=True)
    predictions = Predictions(labels, logits.astype(np.float32), teacher)
    write(predictions, directory / "predictions.npz")
    about = {
        **{"student": "cnn16", "student_params": 1_000_000, "dataset": "CIFAR-10", "epochs": 30, "status": "done"},
        **{"test_acc": float(predictions.correct.mean())},
        **(TAUGHT if teacher is not None else {}),
        **changes,
    }
    write_result(Result(method=method, seed=seed, **about), directory / "result.json")


def noisy(seed, towards=0.0):
    rng = np.random.default_rng(seed + 100)
    return LOGITS + rng.normal(0, 0.7, LOGITS.shape) + towards * TEACHER


@pytest.fixture
def runs(tmp_path):
    for seed in range(4):
        put(tmp_path / f"s{seed}", "standard", seed, noisy(seed))
        put(tmp_path / f"l{seed}", "logits", seed, noisy(seed + 10, 0.5), TEACHER)
        put(tmp_path / f"n{seed}", "null", seed, noisy(seed + 20), TEACHER)
    return tmp_path


def test_study_separates_a_taught_student_from_an_untaught_one(runs):
    found = study(collect([runs]))
    taught, untaught = found.compared
    assert [student.label for student in found.students] == ["standard", "logits", "null"]
    assert taught.differences["agreement"].verdict == "higher"
    assert taught.differences["agreement_wrong"].verdict == "higher"
    assert taught.differences["kl_scaled"].verdict == "lower"
    assert {untaught.differences[name].verdict for name in COMPARED} == {"no difference seen"}
    # By chance, the interval of a class may exclude 0.
    assert {difference.verdict for difference in untaught.classes} <= {"no difference seen", "not certain"}
    assert taught.changes.fixed_k > 2 * taught.changes.by_seed_k
    assert untaught.changes.fixed_k == pytest.approx(untaught.changes.by_seed_k, rel=0.15)
    assert all(taught.changes.better)


def test_to_csv_has_every_knob_of_every_student(tmp_path):
    put(tmp_path / "s", "standard", 0, noisy(0))
    put(tmp_path / "l", "logits", 0, noisy(1, 0.5), TEACHER, knobs={"mean": True, "alpha": 0.1})
    lines = list(csv.DictReader(io.StringIO(to_csv(study(collect([tmp_path])), "abcde"))))
    assert list(lines[0])[:7] == ["run", "method", "T", "alpha", "beta", "knob_mean", "variant"]
    assert {(line["run"], line["alpha"], line["knob_mean"]) for line in lines} == {
        ("teacher", "", ""), ("standard", "", ""), ("logits", "0.1", "true"),
    }  # fmt: skip


def test_study_orders_fixed_images_and_corrects_mcnemar(runs):
    found = study(collect([runs]))
    compared, base = found.compared[0], found.baseline
    fixed = compared.changes.fixed
    assert sorted(fixed) == flipped(base.correct, compared.student.correct).tolist()
    gain = compared.student.confidence(fixed, found.labels) - base.confidence(fixed, found.labels)
    assert np.all(np.diff(gain) <= 1e-12)
    raw = [mcnemar(a, b) for x in found.compared for a, b in zip(x.student.correct, base.correct, strict=True)]
    given = [p for x in found.compared for p in x.changes.p]
    assert all(p >= q for p, q in zip(given, raw, strict=True))
    assert min(given) == pytest.approx(min(1.0, len(raw) * min(raw)))


def test_images_table_counts_significant_seeds(runs):
    for seed in range(2):  # one worse and one better student than the baseline, two seeds each
        put(runs / f"w{seed}", "worse", seed, noisy(seed) - 2 * np.eye(5)[LABELS], TEACHER)
    found = study(collect([runs]))
    lines = [line.strip("| ").split(" | ") for line in images_table(found).splitlines()[2:]]
    assert [line[0] for line in lines] == ["logits", "null", "worse"]
    assert [line[2:] for line in lines] == [["4", "4", "0", "0"], ["4", "0", "0", "4"], ["2", "0", "2", "0"]]
    worse = found.compared[-1].student.correct
    low, high = images_interval(worse, found.baseline.correct)
    assert lines[-1][1] == f"{100 * low:+.2f} to {100 * high:+.2f}"


def test_study_corrects_each_family_of_figures_separately(runs):
    found = study(collect([runs]))
    for family in FAMILIES:
        tested = [(compared, name) for name in family for compared in found.compared]
        raw = [t_test(paired_differences(c.student.by_seed(name), found.baseline.by_seed(name))) for c, name in tested]
        assert [c.differences[name].p for c, name in tested] == holm(raw)


def test_collect_does_not_list_teachers_as_left_out(runs):
    put(runs / "t0", "teacher", 0, TEACHER, student=None, student_params=None, teacher_params=4_000_000)
    (runs / "t0" / "predictions.npz").unlink()
    assert study(collect([runs])).notes == []


def test_study_takes_another_baseline(runs):
    assert study(collect([runs]), "null").baseline.label == "null"
    with pytest.raises(UserError, match="give one of"):
        study(collect([runs]), "nobody")


def test_study_compares_a_student_taught_without_a_teacher_with_the_teacher_of_the_rest(runs):
    for seed in range(4):
        put(runs / f"d{seed}", "dml", seed, noisy(seed + 30, 0.5), taught=True)
    found = study(collect([runs]))
    assert found.baseline.label == "standard"
    mutual = next(c for c in found.compared if c.student.label == "dml")
    assert mutual.differences["agreement"].verdict == "higher"
    for path in runs.glob("[ln]*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="no run with a teacher"):
        study(collect([runs]))


def test_to_page_makes_no_statement_from_one_seed(tmp_path):
    put(tmp_path / "s", "standard", 0, noisy(0))
    put(tmp_path / "l", "logits", 0, noisy(1, 0.5), TEACHER)
    found = study(collect([tmp_path]))
    page = to_page(found, named(found), [])
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| logits")]
    following, *differences, images, _, changes = rows
    assert {d.verdict for d in found.compared[0].differences.values()} == {"one seed: no statement"}
    assert found.compared[0].changes.k == 0
    assert following[6] == ""  # agreement between seeds
    assert len(differences) == len(COMPARED)
    assert {line[-1] for line in differences} == {"one seed: no statement |"}
    assert images[2] == "1"  # pair of seeds, for McNemar's test
    assert changes[3:] == ["", "", "", " |"]
    for word in ("higher", "lower", "nan"):
        assert word not in page


def test_collect_lists_what_is_left_out(runs):
    put(runs / "f", "logits", 9, noisy(1), TEACHER, status="failed")
    put(runs / "b", "logits", 10, noisy(1), TEACHER)
    (runs / "b" / "predictions.npz").unlink()
    put(runs / "c", "logits", 11, noisy(1), TEACHER)
    (runs / "c" / "predictions.npz").write_bytes(b"PK")
    put(runs / "d", "logits", 12, noisy(1), TEACHER, test_acc=0.2)
    put(runs / "report" / "e", "logits", 13, noisy(1), TEACHER)
    (runs / "again").symlink_to(runs)
    found = collect([runs, runs / "s0"])
    assert len(found.results) == 12
    assert found.notes[0] == "Runs left out: 1 failed, 1 without predictions.npz."
    assert "does not hold whole predictions" in found.notes[1]
    assert "the record says 20.00 %" in found.notes[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digits"}, "several data sets"),
        ({"teacher_id": "b"}, "2 different teachers"),
        ({"labels": np.roll(LABELS, 1), "test_acc": None}, "not tested on the same images"),
    ],
)
def test_study_refuses_runs_that_do_not_belong_together(runs, changes, message):
    put(runs / "x", "logits", 9, noisy(1), TEACHER, **changes)
    with pytest.raises(UserError, match=message):
        study(collect([runs]))


def test_study_refuses_runs_without_anything_to_compare(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        collect([tmp_path / "x"])
    with pytest.raises(UserError, match=r"no result\.json"):
        collect([tmp_path])
    put(tmp_path / "s", "standard", 0, noisy(0))
    predictions = tmp_path / "s" / "predictions.npz"
    predictions.rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"no finished run with its predictions\.npz: 1 without"):
        collect([tmp_path])
    (tmp_path / "kept").rename(predictions)
    with pytest.raises(UserError, match="only one row"):
        study(collect([tmp_path]))
    put(tmp_path / "t", "smooth", 0, noisy(1))
    with pytest.raises(UserError, match="name the one to compare with by --baseline"):
        study(collect([tmp_path]))
    with pytest.raises(UserError, match="no run with a teacher"):
        study(collect([tmp_path]), "standard")
