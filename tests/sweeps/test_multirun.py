"""Sweeps from the command line, `train.py -m`."""

import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hydra.core.plugins import Plugins
from safetensors.torch import load_file

from kd.runs.results import read
from tests.common import ROOT, SMALL

QUICK = (*SMALL, "logger=none")


def records(sweep):
    return {path.parent.name: read(path) for path in sorted(sweep.glob("*/result.json"))}


@pytest.fixture
def sweep(run, tmp_path):
    return lambda *arguments: (*run("-m", *QUICK, "hydra.sweep.dir=sweep", *arguments), tmp_path / "sweep")


def test_multirun_continues_past_failed_and_refused_jobs(sweep):
    grid = ("method=feature", "alpha=0.5,0.8", "beta=0.3", "method.stages=[-1],[7]")
    code, printed, directory = sweep(*grid)
    assert code == 1
    assert printed.index("refused alpha=0.8") < printed.index("done    alpha=0.5")  # printed before anything runs
    assert "alpha + beta must be in [0, 1], got alpha=0.8 and beta=0.3" in printed
    assert "error: 1 done, 1 failed, 2 refused; what is missing is tried again by: python train.py -m" in printed
    assert {name: record.status for name, record in records(directory).items()} == {"0": "done", "1": "failed"}
    assert "stages must be in [-2, 1]" in records(directory)["1"].error


def test_multirun_resumes_with_the_missing_jobs(sweep):
    code, printed, directory = sweep("method=logits", "T=1,4")
    assert (code, printed.count("done    T=")) == (0, 2)
    before = {name: (directory / name / "result.json").stat().st_mtime_ns for name in "01"}
    # Cut short, a record is no result; the grid has grown, and has the same run twice.
    (directory / "1" / "result.json").write_text("{")
    code, printed, _ = sweep("method=logits", "T=4,2,1,1.0")
    assert code == 0
    assert "skipped T=1: done before" in printed
    assert "skipped T=1.0: the same as T=1" in printed
    assert (directory / "0" / "result.json").stat().st_mtime_ns == before["0"]
    assert {name: (record.knobs["T"], record.status) for name, record in records(directory).items()} == {
        "0": (1, "done"), "1": (4, "done"), "2": (2, "done")
    }  # fmt: skip


def test_fingerprint_depends_on_the_content_of_teacher_weights(sweep, run, tmp_path):
    for seed in (0, 1):
        assert run(*QUICK, "method=teacher", f"seed={seed}", f"hydra.run.dir=teacher{seed}")[0] == 0
    weights = tmp_path / "weights.safetensors"
    for seed, done in ((0, 1), (0, 0), (1, 1)):
        weights.write_bytes((tmp_path / f"teacher{seed}" / "teacher.safetensors").read_bytes())
        code, printed, directory = sweep("method=logits", f"teacher_weights={weights}")
        assert (code, printed.count("done    the run")) == (0, done)
    assert len(records(directory)) == 2


def test_sweep_subdir_names_the_directories(sweep):
    _, _, directory = sweep("method=standard", "seed=0,1", "hydra.sweep.subdir=seed${seed}")
    assert {name: record.seed for name, record in records(directory).items()} == {"seed0": 0, "seed1": 1}


def test_sweep_subdir_refuses_nesting(sweep):
    code, printed, directory = sweep("method=standard", "seed=0,1", "hydra.sweep.subdir=a/${seed}")
    assert (code, records(directory)) == (1, {})
    assert "error: hydra.sweep.subdir=a/0: jobs lie side by side in hydra.sweep.dir; give a single name" in printed


def test_multirun_trains_a_method_without_a_teacher_once(sweep):
    code, printed, directory = sweep("method=standard", "teacher.scale=2,3", "ensemble=1,2")
    assert (code, len(records(directory))) == (0, 1)
    assert "skipped teacher.scale=3 ensemble=2: the same as teacher.scale=2 ensemble=1" in printed
    assert records(directory)["0"].variant == "epochs=2 student.scale=2"


def test_multirun_of_refused_jobs_only_is_one_error(sweep):
    code, printed, directory = sweep("T=0,-1")
    assert code == 1
    assert printed.strip().splitlines()[-1] == "error: T must be in [0.001, 1e6], got 0"
    assert not records(directory)


def test_multirun_on_a_full_disk_fails_jobs_and_resumes(sweep, run, tmp_path):
    assert run(*QUICK, "method=teacher", "hydra.run.dir=teacher")[0] == 0
    grid = (*QUICK, "hydra.sweep.dir=sweep", "method=logits", "T=1,2", "speed.stored_logits=false")
    command = [sys.executable, str(ROOT / "train.py"), "-m", *grid]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **limit)
    assert done.returncode == 1
    assert done.stdout.count("cannot save the run: File too large; once there is space") >= 2
    assert "error: 2 failed; what is missing is tried again by" in done.stderr
    code, printed, directory = sweep("method=logits", "T=1,2,4", "speed.stored_logits=false")
    assert (code, printed.count("done    T=")) == (0, 3)
    assert [record.knobs["T"] for record in records(directory).values()] == [1, 2, 4]


@pytest.mark.parametrize("deaths", [1, 9])
def test_sweeper_retries_jobs_of_a_failed_launcher(sweep, monkeypatch, deaths):
    # Hydra loads its plugins itself: what an import here finds is another class.
    launcher = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    launch, left = launcher.launch, [None] * deaths

    def die(self, job_overrides, initial_job_idx):
        if left:
            left.pop()
            raise RuntimeError("a worker was killed")
        return launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(launcher, "launch", die)
    code, printed, _ = sweep("method=standard")
    assert "the launcher failed: a worker was killed" in printed
    assert ("done    the run" in printed, code) == ((True, 0) if deaths == 1 else (False, 1))
    assert deaths == 1 or "its launcher died" in printed


class TestCohort:
    GRID = ("speed.stored_logits=false", "epochs=2", "method=standard,logits,feature", "seed=0,1")

    def test_cohort_gives_each_job_the_result_of_a_single_run(self, run, tmp_path):
        shared = (*QUICK, *self.GRID, "data.order_seed=7")
        assert run("-m", *shared, "hydra.sweep.dir=alone")[0] == 0
        code, printed = run("-m", *shared, "hydra/launcher=cohort", "hydra.sweep.dir=together")
        assert (code, printed.count("done    method=")) == (0, 6)
        alone, together = records(tmp_path / "alone"), records(tmp_path / "together")
        timing = {"date": "", "train_seconds": None, "images_per_second": None}
        for name in alone:
            assert alone[name].train_seconds > 0
            assert together[name].train_seconds is None  # the time of one of them cannot be measured
            mine, theirs = (replace(found[name], **timing) for found in (alone, together))
            assert mine == replace(theirs, command=mine.command, variant=mine.variant)
            assert same_files(tmp_path, name, "student.safetensors", "metrics.csv")
            log = (tmp_path / "together" / name / "train.log").read_text()
            assert log.count("training the student") == 1
            assert f"method {mine.method}, seed {mine.seed}" in log

    def test_cohort_prints_failed_jobs(self, run, tmp_path):
        grid = ("logger=tensorboard", "method=feature", "method.stages=[-1],[7]", "hydra.sweep.dir=sweep")
        code, printed = run("-m", *QUICK, *grid, "hydra/launcher=cohort")
        assert code == 1
        assert "failed  method.stages=[7]: stages must be in [-2, 1]" in printed
        assert "done    method.stages=[-1]" in printed


def same_files(folder, run, *names):
    """Return whether weights and curves of a run are bitwise equal."""
    weights, curves = names
    left, right = (load_file(folder / kind / run / weights) for kind in ("alone", "together"))
    equal = left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    return equal and len({(folder / kind / run / curves).read_text() for kind in ("alone", "together")}) == 1


def test_multirun_killed_repeatedly_ends_with_the_right_results():
    """Three kills here; `python tests/sweeps/kill_sweep.py` for twenty."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "sweeps" / "kill_sweep.py", "--kills=3"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "exactly the 12 right results"
