"""Every file in conf/experiment composes; those with networks or methods of their own also run, on tiny networks."""

import copy
import csv
import io
import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd.app.check import check_command
from kd.app.compose import compose as composed_command
from kd.app.compose import plain
from kd.app.identity import fingerprint
from kd.report.comparison import compare
from kd.report.summary import summarize
from kd.report.tables import to_csv
from kd.runs.results import collect, read
from tests.common import CONF, QUICK, ROOT, SMALL

SHORT = ("recipe.epochs=1", "teacher_recipe.epochs=1", "logger=none", "hydra.sweep.dir=sweep")
FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiment_composes(run, file):
    code, printed = run(f"experiment={file.stem}", "--cfg", "job", "--resolve")
    assert code == 0, printed
    composed = yaml.safe_load(printed)
    assert composed["recipe"]["epochs"] >= 1
    assert "_target_" in composed["student"]


@pytest.mark.parametrize(
    ("experiment", "student", "parameters"),
    [
        ("best_1m", "se_resnet56", 862_889),
        ("best_1m", "densenet_bc_100_12", 769_162),
        ("best_100k", "densenet_bc_46_8", 99_006),
    ],
)
def test_best_student_is_below_its_limit_and_learns_as_described(experiment, student, parameters):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"experiment={experiment}", f"student={student}"])
    with torch.device("meta"):
        net = instantiate(cfg.student, num_classes=10, image_size=32)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert parameters < {"best_1m": 1_100_000, "best_100k": 100_000}[experiment]
    assert (cfg.recipe.epochs, cfg.recipe.ema, cfg.ensemble, cfg.data.val_fraction) == (300, 0.999, 3, 0)
    assert (cfg.data.augment.policy, cfg.data.augment.cutmix) == ("trivialaugment", 1)


@pytest.fixture
def best(run):
    """Runs an experiment on tiny networks; a student's settings are those of its family."""
    networks = ("teacher.depth=10", "teacher.widen=1")
    short = ("recipe.epochs=1", "teacher_recipe.epochs=1", "trainer=cpu", "trainer.enable_progress_bar=false")
    digits = ("data=digits", "data.source.image_size=8", "data.fraction=0.2", "logger=none")
    sizes = {"best_1m": ("student.depth=8", "student.stem=4"), "best_100k": ("student.depth=10", "student.growth=2")}

    def best(experiment, *more):
        return run(f"experiment={experiment}", *networks, *sizes[experiment], *short, *digits, *more)

    return best


def test_best_1m_runs_in_parts(best, tmp_path):
    """One teacher alone, then one student, then the rest by the same command; nothing is trained twice."""
    code, printed = best("best_1m", "method=teacher", "seed=1")
    assert code == 0, printed
    code, printed = best("best_1m", "seed=0")
    assert code == 0, printed
    assert printed.count("training the teacher, to be kept") == 2
    code, printed = best("best_1m")
    assert code == 0, printed
    assert "seed=0: done before" in printed
    assert "training the teacher" not in printed
    records = [read(path) for path in sorted(tmp_path.glob("multirun/best_1m/*/result.json"))]
    students = [record for record in records if record.method == "logits"]
    assert sorted(record.seed for record in students) == [0, 1, 2]
    assert {(record.student, record.teacher) for record in students} == {("se_resnet56", "3 x wrn16_8")}
    assert len({record.teacher_id for record in students}) == 1
    assert len(list((tmp_path / "teachers").glob("*/entry.json"))) == 3
    assert all(record.val_acc is None for record in records)
    assert len({record.test_nll for record in students}) == 3
    code, printed = best("best_100k", "seed=0")  # the teachers are the same
    assert code == 0, printed
    assert "training the teacher" not in printed
    (record,) = [read(path) for path in tmp_path.glob("multirun/best_100k/*/result.json")]
    assert (record.student, record.teacher_id, record.status) == ("densenet_bc_46_8", students[0].teacher_id, "done")


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


def test_method_survey_teaches_every_method_by_one_teacher(run, tmp_path):
    methods = ("standard", "srd", "sp")
    code, printed = run("experiment=method_survey", *SMALL, *SHORT, f"method={','.join(methods)}", "seed=0")
    assert code == 0, printed
    records = [read(path) for path in sorted(tmp_path.glob("sweep/*/result.json"))]
    assert [record.method for record in records] == list(methods)
    assert len({record.teacher_id for record in records if record.taught}) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_jobs_pass_the_check(path):
    params = composed_command([f"experiment={path.stem}"]).hydra.sweeper.params
    grid = [[f"{name}={choice.strip()}" for choice in str(choices).split(",")] for name, choices in params.items()]
    first = next(itertools.product(*grid))

    def counts(job):
        """Whether it has the first seed, or differs by its seed alone from the first job: others say nothing new."""
        new = {setting.partition("=")[0] for setting in set(job) - set(first)}
        return "seed" not in new or new == {"seed"}

    @cache
    def composed(*files):
        return composed_command([f"experiment={path.stem}", *files])

    def command_of(job):
        """What is composed for its choices of files, with its single values set in a copy."""
        files = [setting for setting in job if (CONF / setting.partition("=")[0]).is_dir()]
        command, values = composed(*files), [setting for setting in job if setting not in files]
        cfg = copy.deepcopy(command.cfg)
        for name, _, value in (setting.partition("=") for setting in values):
            OmegaConf.update(cfg, name, yaml.safe_load(value))
        return replace(command, cfg=cfg, overrides=(*command.overrides, *values))

    jobs = [job for job in itertools.product(*grid) if counts(job)]
    assert plain(command_of(jobs[-1]).cfg) == plain(composed(*jobs[-1]).cfg)
    seen = set()
    for job in jobs:
        command = command_of(job)
        check_command(command)
        seen.add(fingerprint(plain(command.cfg)))
    assert len(seen) == len(jobs)
