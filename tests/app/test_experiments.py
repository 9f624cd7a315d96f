"""Every file in conf/experiment composes; those with networks or methods of their own also run, on tiny networks."""

import csv
import io

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from kd.report.comparison import compare
from kd.report.rows import summarize
from kd.report.tables import to_csv
from kd.runs.results import collect, read
from tests.common import QUICK, ROOT, SMALL

SHORT = ("recipe.epochs=1", "teacher_recipe.epochs=1", "logger=none", "hydra.sweep.dir=sweep")
FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiment_composes(run, file):
    code, printed = run(f"experiment={file.stem}", "--cfg", "job", "--resolve")
    assert code == 0, printed
    composed = yaml.safe_load(printed)
    assert composed["recipe"]["epochs"] >= 1
    assert "_target_" in composed["student"]


def test_best_1m_has_under_1_1m_parameters():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["experiment=best_1m"])
    with torch.device("meta"):
        student = instantiate(cfg.student, num_classes=10, image_size=32)
    assert sum(p.numel() for p in student.parameters()) < 1_100_000
    assert (cfg.data.val_fraction, cfg.data.augment.cutout) == (0, 16)


def test_best_1m_runs(run, tmp_path):
    networks = [f"{role}.{size}" for role in ("teacher", "student") for size in ("depth=10", "widen=1")]
    short = ("recipe.epochs=1", "teacher_recipe.epochs=1", "trainer=cpu", "trainer.enable_progress_bar=false")
    digits = (
        "data=digits",
        "data.source.image_size=8",
        "data.augment.cutout=4",
        "logger=none",
        "hydra.sweep.dir=sweep",
    )
    code, printed = run("experiment=best_1m", *networks, *short, *digits)
    assert code == 0, printed
    records = [read(path) for path in sorted(tmp_path.glob("sweep/*/result.json"))]
    assert [(record.seed, record.method, record.status) for record in records] == [
        (seed, "logits", "done") for seed in range(3)
    ]
    assert {(record.student, record.teacher) for record in records} == {("wrn22_2", "wrn16_8")}
    assert len({record.teacher_id for record in records}) == 1
    assert len(list((tmp_path / "teachers").glob("*/entry.json"))) == 1
    assert all(record.val_acc is None for record in records)
    assert len({record.test_nll for record in records}) == 3


def test_seed_anomaly_trains_every_kind_of_mistake(run, tmp_path):
    """One mistake of each kind (the loss, the teacher's mode, the teacher's input) beside the correct method."""
    mistakes = ("Right", "LabelsOnly", "NoTSquared", "TeacherInTrainMode", "OtherView")
    code, printed = run("experiment=seed_anomaly", f"mistake={','.join(mistakes)}", "seed=0", *QUICK, *SHORT)
    assert code == 0, printed
    records = [read(path) for path in sorted(tmp_path.glob("sweep/*/result.json"))]
    assert [record.knobs["mistake"] for record in records] == list(mistakes)
    assert len({record.test_nll for record in records}) == len(mistakes)  # all of them differ
    assert {record.method for record in records} == {"logits"}


def test_seed_table_has_a_row_for_each_method(run, tmp_path):
    code, printed = run("experiment=seed_table", *SMALL, *SHORT)
    assert code == 0, printed
    rows = summarize(collect([tmp_path / "sweep"]).results).rows
    assert [row.label for row in rows] == ["teacher", "standard", "feature", "logits"]
    assert {row.n for row in rows} == {3}
    teacher, standard, *distilled = rows
    assert standard.first.teacher is None
    assert {row.first.teacher for row in distilled} == {"3 x cnn32"}
    assert teacher.first.teacher == "cnn32"
    assert len(list((tmp_path / "teachers").glob("*/entry.json"))) == 3  # those of the first row only
    # All students are measured against the same ensemble of three.
    assert len({round(row.teacher_acc, 6) for row in (standard, *distilled)}) == 1
    columns = csv.DictReader(io.StringIO(to_csv(rows, compare(rows)))).fieldnames
    assert {"method", "n", "params", "test_acc_mean", "test_acc_std", "teacher_test_acc", "retention"} <= set(columns)
    assert {"diff_vs_standard", "diff_low", "diff_high"} <= set(columns)
