import csv
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from safetensors.numpy import save_file

from kd.errors import UserError
from kd.report.fidelity import figures
from kd.report.fidelity.measures import flipped
from kd.report.fidelity.metadata import read as read_metadata
from kd.report.fidelity.page import named, to_page
from kd.report.fidelity.study import COMPARED, FAMILIES, collect, study
from kd.report.fidelity.tables import images_table, to_csv
from kd.report.statistics import holm, images_interval, mcnemar, paired_differences, t_test
from kd.runs.results import read, write
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


def test_page_splits_what_varies_into_seeds_and_test_images(runs):
    """Here seeds differ by noise on single images alone: nothing of it is left on all images of their kind."""
    found = study(collect([runs]))
    table = to_page(found, named(found), []).partition("## What varies")[2].partition("| run ")[2].splitlines()
    line = table[2].strip("| ").split(" | ")
    correct = found.baseline.correct
    assert line[:2] == ["standard", str(len(correct))]
    seen, seeds, images = map(float, line[2:])
    assert seen == pytest.approx(100 * correct.mean(axis=1).std(ddof=1), abs=0.006)
    assert seeds <= seen
    assert images == pytest.approx(100 * correct.mean(axis=0).std() / len(found.labels) ** 0.5, abs=0.006)


def test_to_page_makes_no_statement_from_one_seed(tmp_path):
    put(tmp_path / "s", "standard", 0, noisy(0))
    put(tmp_path / "l", "logits", 0, noisy(1, 0.5), TEACHER)
    found = study(collect([tmp_path]))
    page = to_page(found, named(found), [])
    assert "What varies" not in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| logits")]
    following, *differences, images, _, changes = rows
    assert {d.verdict for d in found.compared[0].differences.values()} == {"one seed: no statement"}
    assert found.compared[0].changes.k == 0
    assert following[7] == ""  # agreement between seeds
    assert len(differences) == len(COMPARED)
    assert {line[-1] for line in differences} == {"one seed: no statement |"}
    assert images[2] == "1"  # pair of seeds, for McNemar's test
    assert changes[3:] == ["", "", "", " |"]
    for word in ("higher", "lower", "nan"):
        assert word not in page


def almost_perfect(errors):
    answers = LABELS.copy()
    answers[:errors] = (answers[:errors] + 1) % 5
    return (6 * np.eye(5)[answers]).astype(np.float32)


def test_study_refuses_what_rests_on_a_handful_of_errors(tmp_path):
    for seed in range(3):
        put(tmp_path / f"s{seed}", "standard", seed, noisy(seed))
        put(tmp_path / f"l{seed}", "logits", seed, noisy(seed + 10, 0.5), almost_perfect(3))
    found = study(collect([tmp_path]))
    verdicts = {name: d.verdict for name, d in found.compared[0].differences.items()}
    refused = {name for name, verdict in verdicts.items() if verdict == "too few errors (3)"}
    assert refused == {"agreement_wrong", "kl_scaled"}
    assert found.compared[0].differences["agreement"].p is not None
    page = to_page(found, named(found), [])
    assert "It is wrong on 3 of them (0.10 %)." in page
    assert "where it is right (2,997 images), % | where it is wrong (3), %" in page
    assert "| teacher |  | 0.0" in page
    assert "nan" not in page
    assert "None" not in page
    rows = {(line["run"], line["figure"]): line for line in csv.DictReader(io.StringIO(to_csv(found, "abcde")))}
    assert rows["logits", "agreement_wrong"]["verdict"] == "too few errors (3)"
    assert rows["logits", "agreement_wrong"]["mean"] == rows["logits", "agreement_wrong"]["pairs"] == ""
    for draw in (figures.bars, figures.calibration):
        shown = [text.get_text() for text in draw(found).findobj(matplotlib.text.Text)]
        assert any("too few errors (3)" in text for text in shown)


def test_study_refuses_a_class_with_a_handful_of_errors(tmp_path):
    rare = LABELS == 4
    rare[np.flatnonzero(rare)[:8]] = False  # eight images of the class can be wrong
    right = 50 * np.eye(5)[LABELS] * rare[:, None]
    for seed in range(3):
        put(tmp_path / f"s{seed}", "standard", seed, noisy(seed) + right)
        put(tmp_path / f"l{seed}", "logits", seed, noisy(seed + 10, 0.5) + right, TEACHER)
    found = study(collect([tmp_path]))
    *others, last = found.compared[0].classes
    assert last[:4] == (None, None, None, 0)
    assert last.verdict.startswith("too few errors (")
    assert all(not d.refused and d.n == 3 for d in others)
    raw = [t_test(paired_differences(by_seed(s), by_seed(b))) for s, b in zip(*columns(found), strict=True)]
    assert [d.p for d in others] == holm(raw[:4])  # the fifth is none of the family
    shown = [text.get_text() for text in figures.classes(found, "abcde").findobj(matplotlib.text.Text)]
    assert f"e\n{last.verdict}" in shown


def columns(found):
    return found.compared[0].student.class_accuracy.T, found.baseline.class_accuracy.T


def by_seed(column):
    return dict(enumerate(map(float, column)))


def test_to_page_names_networks_that_scaling_makes_worse(runs):
    found = study(collect([runs]))
    assert "Scaling makes" not in to_page(found, named(found), [])
    worse = found._replace(teacher_figures=replace(found.teacher_figures, nll_scaled=9.0))
    assert "- Scaling makes the NLL of teacher worse:" in to_page(worse, named(found), [])


def test_to_page_names_an_ensemble(tmp_path):
    put(tmp_path / "s", "standard", 0, noisy(0))
    put(tmp_path / "l", "logits", 0, noisy(1, 0.5), TEACHER)
    record = tmp_path / "l" / "result.json"
    write(replace(read(record), teacher="3 x cnn32"), record)
    found = study(collect([tmp_path]))
    page = to_page(found, named(found), [])
    assert "Teacher of all comparisons: 3 x cnn32, the ensemble of 3 teachers." in page
    assert page.count("| ensemble of 3 teachers |") == 2


def test_study_leaves_out_trials_unless_there_is_nothing_else(runs):
    trial = {"trial": "tested on 3,000 of 9,000 images"}
    put(runs / "t", "logits", 9, noisy(1), TEACHER, **trial)
    found = study(collect([runs]))
    assert found.compared[0].student.n == 4
    assert found.notes == ["1 trial run left out: tested on 3,000 of 9,000 images."]
    for path in runs.glob("[lns]*"):
        shutil.rmtree(path)
    put(runs / "s", "standard", 9, noisy(2), **trial)
    assert study(collect([runs])).dataset == "CIFAR-10 (trial: tested on 3,000 of 9,000 images)"


# Names of classes


def weigh(directory, classes, size=8):
    metadata = {"classes": json.dumps(classes), "image_size": json.dumps(size)}
    save_file({"w": np.zeros(1, np.float32)}, directory / "student.safetensors", metadata)


def test_study_reads_names_of_classes_from_weights(runs):
    weigh(runs / "l0", ["ant", "b|e", "c\x1bt", "$5_$10", "eel"], 12)
    (runs / "l1" / "student.safetensors").write_bytes(b"cut")
    save_file({"w": np.zeros(1, np.float32)}, runs / "l2" / "student.safetensors")  # of another program
    found = study(collect([runs]))
    assert found.data == (("ant", "b|e", r"c\x1bt", "$5_$10", "eel"), 12)
    assert list(named(found).classes) == list(found.data.classes)
    lines = [line for line in to_page(found, named(found), []).splitlines() if line.startswith(r"| \$5\_\$10 |")]
    assert len(lines) == 1
    figures.classes(found, found.data.classes).savefig(io.BytesIO())


def test_study_numbers_classes_without_weights(runs):
    assert list(named(study(collect([runs]))).classes) == [f"class {i}" for i in range(5)]


def test_study_refuses_runs_on_different_classes(runs):
    weigh(runs / "l0", ["1", "10", "2", "3", "4"])
    weigh(runs / "n0", ["1", "2", "3", "4", "10"])
    with pytest.raises(UserError, match="on different classes, '10' and '2'"):
        study(collect([runs]))


def test_reading_names_of_classes_loads_no_torch(runs):
    weigh(runs / "l0", list("abcde"))
    code = (
        "import sys; from pathlib import Path; from kd.report.fidelity import metadata; "
        "assert metadata.read(Path(sys.argv[1])).image_size == 8; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, runs / "l0" / "student.safetensors"], check=True)


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


def test_collect_leaves_out_hostile_files_and_reads_the_others(runs):
    """Each of them used to end or to block the whole report."""
    put(runs / "x0", "logits", 20, noisy(1), TEACHER, test_images=7)
    for name in ("x1", "x2", "x3"):
        put(runs / name, "logits", 21, noisy(1), TEACHER)
        (runs / name / "predictions.npz").unlink()
    os.mkfifo(runs / "x1" / "predictions.npz")
    with zipfile.ZipFile(runs / "x2" / "predictions.npz", "w") as file:
        file.writestr("labels.npy", b"-" * 100_000)
        file.writestr("logits.npy", b"")
    (runs / "x3" / "predictions.npz").mkdir()
    (runs / "x4").mkdir()
    os.mkfifo(runs / "x4" / "result.json")
    found = collect([runs])
    assert len(found.results) == 12
    assert [note.removeprefix(f"Skipped {runs}")[:20] for note in found.notes] == [
        "/x0/predictions.npz ",
        "/x1/predictions.npz ",
        "/x2/predictions.npz ",
        "/x3/predictions.npz ",
        "/x4/result.json: can",
    ]


def test_collect_refuses_more_than_fits_into_memory(runs, monkeypatch):
    monkeypatch.setattr("kd.report.fidelity.study.MOST_BYTES", 500_000)
    with pytest.raises(UserError, match="give the directories of fewer runs"):
        collect([runs])


@pytest.mark.parametrize(
    ("metadata", "known"),
    [
        ({"classes": '["a"]', "image_size": "8"}, (("a",), 8)),
        ({"classes": '["a\\u001b[31m"]', "image_size": "8"}, ((r"a\x1b[31m",), 8)),
        ({"classes": "[" * 100_000, "image_size": "8"}, None),
        ({"classes": "[[]]", "image_size": "8"}, None),
        ({"classes": '["a"]', "image_size": "1e999"}, None),
        ({"classes": '["a"]', "image_size": "-1"}, None),
        ({"classes": '["a"]', "image_size": "true"}, None),
        ({"classes": '["a"]', "image_size": "[8, 12]"}, (("a",), [8, 12])),
        ({"classes": '["a"]', "image_size": "[8]"}, None),
        ({"classes": '["a"]', "image_size": "[8, 0]"}, None),
        ({"classes": '["a"]', "image_size": "9" * 5000}, None),
    ],
)
def test_metadata_read_takes_nothing_hostile(tmp_path, metadata, known):
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "w", metadata)
    assert read_metadata(tmp_path / "w") == known


@pytest.mark.parametrize("kind", ["fifo", "header of gigabytes"])
def test_metadata_read_takes_no_other_file(tmp_path, kind):
    if kind == "fifo":
        os.mkfifo(tmp_path / "w")
    else:
        (tmp_path / "w").write_bytes(b"\xff" * 7 + b"\0" + b"x" * 100)
    assert read_metadata(tmp_path / "w") is None


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


@pytest.mark.parametrize("status", ["done", "failed"])
def test_study_says_nothing_of_a_method_that_diverged(runs, status):
    """As the report; what it measured is still there. A run that failed for it has no predictions."""
    put(runs / "gone", "logits", 9, noisy(9), TEACHER, diverged=True, status=status)
    if status == "failed":
        (runs / "gone" / "predictions.npz").unlink()
    found = study(collect([runs]))
    taught, untaught = found.compared
    why = "1 of 9 runs diverged: no statement"
    assert {difference.verdict for difference in taught.differences.values()} == {why}
    assert {difference.verdict for difference in taught.classes} == {why}
    assert taught.differences["accuracy"].p is None
    assert why not in {difference.verdict for difference in untaught.differences.values()}
