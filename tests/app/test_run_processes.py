"""What starts a run, how many processes it has, and what stops it."""

import os
import shutil
import signal
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file

from kd.data.digits import digits
from kd.runs import predictions
from kd.runs.results import read
from kd.training.modules import Classifier
from tests import processes
from tests.common import ROOT, SMALL, metric_rows, same_weights
from tests.conftest import call

LAUNCHED = {
    "torchrun": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "1"},
    "srun": {
        **{"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_LOCALID": "3"},
        **{"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "packed", "SLURM_NNODES": "1", "SLURM_NODEID": "0"},
    },
}


@pytest.mark.parametrize(("environment", "status"), [({"SUBMITIT_EXECUTOR": "slurm"}, "done"), ({}, "interrupted")])
def test_sigterm_is_left_to_submitit_in_its_jobs(run, tmp_path, monkeypatch, request, environment, status):
    """Which passes over it and queues the job again at a signal of its own; a job that ends by itself stays ended."""
    passed, before = [], signal.signal(signal.SIGTERM, lambda *_: passed.append("by Submitit"))
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    monkeypatch.setattr("kd.app.cli.signal", Mock())  # Submitit calls the job, and not the program
    start = Classifier.on_train_epoch_start
    monkeypatch.setattr(
        Classifier, "on_train_epoch_start", lambda module: (start(module), os.kill(os.getpid(), signal.SIGTERM))
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, printed = run(*SMALL, "method=standard", "logger=none", "hydra.run.dir=run")
    assert (code, read(tmp_path / "run" / "result.json").status) == (0 if environment else 130, status), printed
    assert passed


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_run_on_one_device_is_whole_whatever_launched_it(tmp_path, finished, launcher):
    shutil.copytree(finished / "teachers", tmp_path / "teachers")
    environment = {**os.environ, **LAUNCHED[launcher]}
    done = processes.run(
        ROOT / "train.py", *SMALL, "method=logits", "T=2", "hydra.run.dir=run", cwd=tmp_path, env=environment
    )
    printed = done.stdout
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in printed
    assert same_weights(tmp_path / "run" / "student.safetensors", finished / "run" / "student.safetensors")
    for path in (".lock", "checkpoints/last.ckpt", "metrics.csv", "predictions.npz"):
        assert (tmp_path / "run" / path).exists(), path
    (events, _) = (tmp_path / "run" / "tensorboard").rglob("events*")
    assert events.stat().st_size > 1000
    again = read(tmp_path / "run" / "result.json")
    assert (again.status, again.test_acc) == ("done", read(finished / "run" / "result.json").test_acc)


def test_ddp_refuses_batches_that_devices_cannot_share_before_a_teacher_is_trained(run, tmp_path):
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
    small = [setting for setting in SMALL if setting != "trainer=cpu"]
    code, printed = run(*small, *ddp, "method=logits", "recipe.batch_size=33", "hydra.run.dir=run")
    assert code == 1
    assert "error: batch_size must be a multiple of the 2 devices, got 33\n" in printed
    assert not list(tmp_path.iterdir())


def test_ddp_trains_the_student_of_one_process(run, tmp_path, finished):
    shutil.copytree(finished / "teachers", tmp_path / "teachers")
    # Neither BatchNorm nor dropout: they treat half a batch otherwise than a whole one.
    plain = ("student._target_=tests.launchers.plain.Plain", "student.activation=elu", "method=logits", "T=2")
    student = (*plain, "recipe.epochs=4", "recipe.optimizer.lr=0.1")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
    small = [setting for setting in SMALL if setting != "trainer=cpu"]
    done = processes.run(ROOT / "train.py", *small, *ddp, *student, "hydra.run.dir=run", cwd=tmp_path)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    record = read(tmp_path / "run" / "result.json")
    assert record.status == "done"
    kept = predictions.read(tmp_path / "run" / "predictions.npz")
    (alone,) = (predictions.read(path) for path in (tmp_path / "teachers").glob("*/predictions.npz"))
    assert kept.labels.tolist() == alone.labels.tolist()  # in the order that one process has them in
    assert kept.correct.mean() == pytest.approx(record.test_acc, abs=1.5 / len(kept.labels))
    assert printed.count("test accuracy") == 1  # one of the two processes prints
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # the teacher and the student, each once
    assert len(list((tmp_path / "teachers").iterdir())) == len(list((finished / "teachers").iterdir()))

    alone = (*SMALL, *student, "logger=none")
    assert run(*alone, "hydra.run.dir=alone")[0] == 0
    assert run(*alone, "data.order_seed=1", "hydra.run.dir=otherwise")[0] == 0
    together, alone, otherwise = (
        load_file(tmp_path / name / "student.safetensors") for name in ("run", "alone", "otherwise")
    )
    assert distance(together, alone) < 0.01  # rounded to half precision in other places
    assert distance(together, otherwise) > 0.03  # as another order of the images comes to
    # Its record is that of a whole run, and its curves are those of all images.
    single = read(tmp_path / "alone" / "result.json")
    assert (record.trial, record.train_images) == (None, single.train_images)
    assert (tmp_path / "run" / "README.md").exists()
    assert record.epoch_train_loss == pytest.approx(single.epoch_train_loss, rel=0.02)


def distance(left, right):
    """Return the largest difference between two students' tensors, relative to the tensor's length."""
    return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in right)


LONGER = (*SMALL, "epochs=12", "data.val_fraction=0.7", "logger=none")
"""More epochs, which are short."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A folder with such a run in whole/ and its teacher in teachers/; not to be changed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(*LONGER, "hydra.run.dir=whole") == 0
    return folder


@pytest.mark.parametrize(
    ("teacher_phase", "stop"), [(False, signal.SIGINT), (True, signal.SIGTERM)], ids=["student", "teacher"]
)
def test_resume_gives_the_result_of_an_uninterrupted_run(run, tmp_path, uninterrupted, teacher_phase, stop):
    if not teacher_phase:
        shutil.copytree(uninterrupted / "teachers", tmp_path / "teachers")
    process = processes.start(ROOT / "train.py", *LONGER, "hydra.run.dir=broken", cwd=tmp_path, merged=True)
    checkpoints = "teachers/*.partial/checkpoints/last.ckpt" if teacher_phase else "broken/checkpoints/last.ckpt"
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(checkpoints)) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(stop)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "resume=" in printed
    assert "Traceback" not in printed
    interrupted = read(tmp_path / "broken" / "result.json")
    assert interrupted.status == "interrupted"
    assert interrupted.data_id == digits(16).id  # so that it is not continued with other images

    assert run("resume=broken")[0] == 0
    finished = uninterrupted / "whole"
    assert same_weights(tmp_path / "broken" / "student.safetensors", finished / "student.safetensors")
    assert metric_rows(tmp_path / "broken") == metric_rows(finished)
    timing = {"train_seconds": None, "images_per_second": None, "date": ""}
    broken, whole = (replace(read(path / "result.json"), **timing) for path in (tmp_path / "broken", finished))
    same = {name: getattr(broken, name) for name in ("command", "variant", "cwd")}  # typed otherwise, in another folder
    assert broken == replace(whole, **same)
