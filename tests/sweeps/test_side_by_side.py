"""Jobs side by side in one process, from the command line: `train.py -m hydra/launcher=cohort`."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from kd.runs.results import read
from tests.common import QUICK
from tests.sweeps.test_multirun import records


@pytest.fixture
def cohort(run, tmp_path):
    return lambda *arguments: (
        *run("-m", *QUICK, "hydra/launcher=cohort", "hydra.sweep.dir=sweep", *arguments),
        tmp_path / "sweep",
    )


def test_bug_in_own_code_is_named_with_its_type_and_its_place_is_in_the_log(cohort, monkeypatch):
    monkeypatch.setattr("kd.methods.logits.soft_loss", lambda *_: {}["missing"])
    code, printed, directory = cohort("method=logits", "seed=0")
    assert code == 1
    assert re.search(r"failed  the run: KeyError: 'missing' \(test_side_by_side.py:\d+\)", printed)
    assert re.fullmatch(
        r"KeyError: 'missing' \(test_side_by_side.py:\d+\)", read(directory / "0" / "result.json").error
    )
    log = (directory / "0" / "train.log").read_text()
    assert "Traceback" in log
    assert "test_side_by_side.py" in log


@pytest.mark.parametrize("logging", ["none", "disabled", "stdout"])
def test_jobs_side_by_side_take_any_logging_of_hydra(cohort, logging):
    grid = ("method=standard", "seed=0,1", "+trainer.fast_dev_run=true", f"hydra/job_logging={logging}")
    code, printed, directory = cohort(*grid)
    assert code == 0, printed
    assert len(records(directory)) == 2


class TestCohort:
    GRID = ("speed.stored_logits=false", "epochs=2", "method=standard,logits,feature", "seed=0,1")

    def test_cohort_gives_each_job_the_result_of_a_single_run(self, run, tmp_path, cohorts):
        shared = (*QUICK, *self.GRID, "data.order_seed=7")
        assert run("-m", *shared, "hydra.sweep.dir=alone")[0] == 0
        code, printed = run("-m", *shared, "hydra/launcher=cohort", "hydra.sweep.dir=together")
        assert (code, printed.count("done    method="), cohorts) == (0, 6, [6])
        alone, together = records(tmp_path / "alone"), records(tmp_path / "together")
        timing = {"date": "", "train_seconds": None, "images_per_second": None}
        for name in alone:
            assert alone[name].train_seconds > 0
            assert together[name].train_seconds is None  # the time of one of them cannot be measured
            mine, theirs = (replace(found[name], **timing) for found in (alone, together))
            assert mine == replace(theirs, command=mine.command, variant=mine.variant)
            assert same_files(tmp_path, name, "student.safetensors", "metrics.csv")
            assert "# cnn16 on digits" in (tmp_path / "together" / name / "README.md").read_text()
            log = (tmp_path / "together" / name / "train.log").read_text()
            assert log.count("training the student") == 1
            assert f"method {mine.method}, seed {mine.seed}" in log

    def test_cohort_writes_what_a_job_says_at_its_end_into_its_own_log(self, run, tmp_path):
        grid = ("method=standard", "epochs=1", "seed=0,1,2", "data.order_seed=0", "+trainer.limit_train_batches=1")
        code, printed = run("-m", *QUICK, *grid, "hydra/launcher=cohort", "hydra.sweep.dir=sweep")
        assert code == 0, printed
        logs = [(tmp_path / "sweep" / name / "train.log").read_text() for name in "012"]
        assert [log.count("this is a trial") for log in logs] == [1, 1, 1]

    def test_cohort_prints_refused_jobs(self, run, tmp_path):
        grid = ("logger=tensorboard", "method=feature", "method.stages=[-1],[7]", "hydra.sweep.dir=sweep")
        code, printed = run("-m", *QUICK, *grid, "hydra/launcher=cohort")
        assert code == 1
        assert "refused method.stages=[7]: method.stages must be in [-2, 1]" in printed
        assert "done    method.stages=[-1]" in printed

    def test_cohort_keeps_to_each_jobs_directory(self, run, tmp_path):
        grid = ("method=standard", "epochs=1", "seed=0,1", "hydra.job.chdir=true", "hydra.sweep.dir=sweep")
        assert run("-m", *QUICK, *grid, "hydra/launcher=cohort")[0] == 0
        assert {name: record.seed for name, record in records(tmp_path / "sweep").items()} == {"0": 0, "1": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


def same_files(folder, run, *names):
    """Return whether weights and curves of a run are bitwise equal."""
    weights, curves = names
    left, right = (load_file(folder / kind / run / weights) for kind in ("alone", "together"))
    equal = left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    return equal and len({(folder / kind / run / curves).read_text() for kind in ("alone", "together")}) == 1
