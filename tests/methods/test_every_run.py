"""Every file of conf/method as the job of one multirun on digits, with its report."""

import csv
import math

import pytest
from safetensors import safe_open

import kd
from kd.methods.base import Method
from kd.runs.results import read
from tests import processes
from tests.common import QUICK, ROOT
from tests.conftest import call
from tests.methods.every import FILES, METHODS, class_of

NAMES = [file.stem for file in FILES]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Return the directory of each method's job, by name, and the folder of all of them."""
    folder = tmp_path_factory.mktemp("survey")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = (*QUICK, "epochs=1", "data.source.image_size=8", "speed.stored_logits=false", "hydra/launcher=cohort")
        small = (*small, "data.fraction=0.1", "batch_size=64")  # two steps, so that memories are read again
        code = call("-m", *small, f"method={','.join(NAMES)}", "hydra.sweep.dir=sweep")
    records = [path.parent for path in (folder / "sweep").glob("*/result.json")]
    return {read(path / "result.json").method: path for path in records}, folder, code


def test_multirun_trains_with_every_method(jobs):
    found, _, code = jobs
    failed = {name: (found[name] / "train.log").read_text()[-500:] for name in NAMES if read_of(found, name) != "done"}
    assert not failed, failed
    assert code == 0


def read_of(found, name):
    return read(found[name] / "result.json").status if name in found else "missing"


@pytest.mark.parametrize("name", NAMES)
def test_run_ends_with_a_record(name, jobs):
    record = read(jobs[0][name] / "result.json")
    assert record.status == "done"
    assert record.test_acc is not None
    assert math.isfinite(record.test_nll)
    assert (record.agreement is not None) == (record.taught and record.teacher is not None)
    header = (jobs[0][name] / "metrics.csv").read_text().partition("\n")[0].split(",")
    assert "train/loss" in header


@pytest.mark.parametrize("name", METHODS)
def test_student_is_kept_without_the_layers_of_the_method(name, jobs):
    path = jobs[0][name] / "student.safetensors"
    plain = jobs[0]["standard"] / "student.safetensors"
    with safe_open(path, "pt") as ours, safe_open(plain, "pt") as theirs:
        if class_of(name).inference_net is Method.inference_net:
            assert set(ours.keys()) == set(theirs.keys())
            kd.load(jobs[0][name])
        else:
            assert set(ours.keys()) != set(theirs.keys())


def test_report_has_a_row_for_every_method(jobs):
    _, folder, _ = jobs
    done = processes.run(ROOT / "scripts" / "report.py", "sweep", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with open(next(folder.rglob("results.csv"))) as file:
        assert {row["method"] for row in csv.DictReader(file)} >= {*NAMES} - {"teacher"}
