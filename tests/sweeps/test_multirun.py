"""Sweeps as they are typed."""

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


def test_what_fails_or_is_impossible_stops_nothing(sweep):
    grid = ("method=feature", "alpha=0.5,0.8", "beta=0.3", "method.stages=[-1],[7]")
    code, said, directory = sweep(*grid)
    assert code == 1
    assert said.index("refused alpha=0.8") < said.index("done    alpha=0.5")  # told before anything runs
    assert "alpha + beta must be in [0, 1], got alpha=0.8 and beta=0.3" in said
    assert "error: 1 done, 1 failed, 2 refused; what is missing is tried again by: python train.py -m" in said
    assert {name: record.status for name, record in records(directory).items()} == {"0": "done", "1": "failed"}
    assert "stages must be in [-2, 1]" in records(directory)["1"].error


def test_given_again_it_runs_what_is_missing(sweep):
    code, said, directory = sweep("method=logits", "T=1,4")
    assert (code, said.count("done    T=")) == (0, 2)
    before = {name: (directory / name / "result.json").stat().st_mtime_ns for name in "01"}
    # Cut short, a record is no result; the grid has grown, and asks for the same run twice.
    (directory / "1" / "result.json").write_text("{")
    code, said, _ = sweep("method=logits", "T=4,2,1,1.0")
    assert code == 0
    assert "skipped T=1: done before" in said
    assert "skipped T=1.0: the same as T=1" in said
    assert (directory / "0" / "result.json").stat().st_mtime_ns == before["0"]
    assert {name: (record.knobs["T"], record.status) for name, record in records(directory).items()} == {
        "0": (1, "done"), "1": (4, "done"), "2": (2, "done")
    }  # fmt: skip


def test_another_teacher_in_the_same_file_is_another_run(sweep, run, tmp_path):
    for seed in (0, 1):
        assert run(*QUICK, "method=teacher", f"seed={seed}", f"hydra.run.dir=teacher{seed}")[0] == 0
    weights = tmp_path / "weights.safetensors"
    for seed, done in ((0, 1), (0, 0), (1, 1)):
        weights.write_bytes((tmp_path / f"teacher{seed}" / "teacher.safetensors").read_bytes())
        code, said, directory = sweep("method=logits", f"teacher_weights={weights}")
        assert (code, said.count("done    the run")) == (0, done)
    assert len(records(directory)) == 2


def test_a_directory_of_ones_own(sweep):
    _, _, directory = sweep("method=standard", "seed=0,1", "hydra.sweep.subdir=seed${seed}")
    assert {name: record.seed for name, record in records(directory).items()} == {"seed0": 0, "seed1": 1}


def test_a_nested_directory_is_refused(sweep):
    code, said, directory = sweep("method=standard", "seed=0,1", "hydra.sweep.subdir=a/${seed}")
    assert (code, records(directory)) == (1, {})
    assert "error: hydra.sweep.subdir=a/0: jobs lie side by side in hydra.sweep.dir; give a single name" in said


def test_who_has_no_teacher_is_trained_once_whatever_the_teachers(sweep):
    code, said, directory = sweep("method=standard", "teacher.scale=2,3", "ensemble=1,2")
    assert (code, len(records(directory))) == (0, 1)
    assert "skipped teacher.scale=3 ensemble=2: the same as teacher.scale=2 ensemble=1" in said
    assert records(directory)["0"].variant == "epochs=2 student.scale=2"


def test_nothing_but_mistakes_is_one_mistake(sweep):
    code, said, directory = sweep("T=0,-1")
    assert code == 1
    assert said.strip().splitlines()[-1] == "error: T must be in (0, inf), got 0"
    assert not records(directory)


def test_a_full_disk_fails_what_needs_it_and_loses_nothing(sweep, run, tmp_path):
    assert run(*QUICK, "method=teacher", "hydra.run.dir=teacher")[0] == 0
    grid = (*QUICK, "hydra.sweep.dir=sweep", "method=logits", "T=1,2", "speed.stored_logits=false")
    command = [sys.executable, str(ROOT / "train.py"), "-m", *grid]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **limit)
    assert done.returncode == 1
    assert done.stdout.count("cannot save the run: File too large; once there is space") >= 2
    assert "error: 2 failed; what is missing is tried again by" in done.stderr
    code, said, directory = sweep("method=logits", "T=1,2,4", "speed.stored_logits=false")
    assert (code, said.count("done    T=")) == (0, 3)
    assert [record.knobs["T"] for record in records(directory).values()] == [1, 2, 4]


@pytest.mark.parametrize("deaths", [1, 9])
def test_jobs_that_a_dying_launcher_takes_with_it_are_launched_again(sweep, monkeypatch, deaths):
    # Hydra loads its plugins itself: what an import here finds is another class.
    launcher = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    launch, left = launcher.launch, [None] * deaths

    def die(self, job_overrides, initial_job_idx):
        if left:
            left.pop()
            raise RuntimeError("a worker was killed")
        return launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(launcher, "launch", die)
    code, said, _ = sweep("method=standard")
    assert "the launcher failed: a worker was killed" in said
    assert ("done    the run" in said, code) == ((True, 0) if deaths == 1 else (False, 1))
    assert deaths == 1 or "its launcher died" in said


class TestACohort:
    GRID = ("speed.stored_logits=false", "epochs=2", "method=standard,logits,feature", "seed=0,1")

    def test_gives_each_job_what_it_would_have_been_alone(self, run, tmp_path):
        shared = (*QUICK, *self.GRID, "data.order_seed=7")
        assert run("-m", *shared, "hydra.sweep.dir=alone")[0] == 0
        code, said = run("-m", *shared, "hydra/launcher=cohort", "hydra.sweep.dir=together")
        assert (code, said.count("done    method=")) == (0, 6)
        alone, together = records(tmp_path / "alone"), records(tmp_path / "together")
        timing = {"date": "", "train_seconds": None, "images_per_second": None}
        for name in alone:
            assert alone[name].train_seconds > 0
            assert together[name].train_seconds is None  # who of them took it cannot be told
            mine, theirs = (replace(found[name], **timing) for found in (alone, together))
            assert mine == replace(theirs, command=mine.command, variant=mine.variant)
            assert same_files(tmp_path, name, "student.safetensors", "metrics.csv")
            log = (tmp_path / "together" / name / "train.log").read_text()
            assert log.count("training the student") == 1
            assert f"method {mine.method}, seed {mine.seed}" in log

    def test_tells_of_what_fails(self, run, tmp_path):
        grid = ("logger=tensorboard", "method=feature", "method.stages=[-1],[7]", "hydra.sweep.dir=sweep")
        code, said = run("-m", *QUICK, *grid, "hydra/launcher=cohort")
        assert code == 1
        assert "failed  method.stages=[7]: stages must be in [-2, 1]" in said
        assert "done    method.stages=[-1]" in said


def same_files(folder, run, *names):
    """Weights and curves to the bit."""
    weights, curves = names
    left, right = (load_file(folder / kind / run / weights) for kind in ("alone", "together"))
    equal = left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    return equal and len({(folder / kind / run / curves).read_text() for kind in ("alone", "together")}) == 1


def test_a_sweep_that_is_killed_again_and_again_ends_with_the_right_results():
    """Three kills here; `python tests/kill_sweep.py` for twenty."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "sweeps" / "kill_sweep.py", "--kills=3"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "exactly the 12 right results"
