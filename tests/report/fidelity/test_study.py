import csv
import io
import shutil

import numpy as np
import pytest

from kd.errors import UserError
from kd.report.fidelity.measures import flipped
from kd.report.fidelity.page import named, to_page
from kd.report.fidelity.study import COMPARED, FAMILIES, collect, study
from kd.report.fidelity.tables import images_table, to_csv
from kd.report.statistics import holm, images_interval, mcnemar, paired_differences, t_test
from tests.report.fidelity.made import LABELS, TEACHER, noisy, put


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
