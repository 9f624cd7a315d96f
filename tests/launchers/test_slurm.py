"""`hydra/launcher=slurm` on a Slurm of one node: `pytest -m slurm`; skipped where Slurm is not installed."""

import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

QUICK = ("data=digits", "epochs=2", "teacher.scale=2", "trainer.enable_progress_bar=false")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")


@pytest.fixture
def sweep(sweep, slurm):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return lambda *arguments: sweep(*SLURM, *QUICK, *arguments, **slurm, PYTHONPATH=path)


@pytest.fixture
def call_slurm(slurm, monkeypatch):
    """Calls one of Slurm's programs."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    return lambda *command: subprocess.check_output(command, text=True).strip()


def test_slurm_launcher_runs_a_grid(run, sweep, records, distance, tmp_path):
    single = ("trainer=cpu", "student.scale=2")
    process = sweep(*single, "method=logits,feature", "T=1,2")
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed
    assert {name: (record.method, record.knobs["T"], record.status) for name, record in records().items()} == {
        "0": ("logits", 1, "done"), "1": ("logits", 2, "done"), "2": ("feature", 1, "done"), "3": ("feature", 2, "done")
    }  # fmt: skip
    assert all(record.device.endswith("(1 threads)") for record in records().values())
    assert len(list(tmp_path.glob("teachers/*/teacher.safetensors"))) == 1  # all four requested it at the same time
    assert run(*QUICK, *single, "logger=none", "method=logits", "T=2", "hydra.run.dir=here")[0] == 0
    assert distance("here", "sweep/1") == 0


def test_slurm_launcher_with_two_tasks_trains_the_student_of_one_process(
    run, sweep, records, distance, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where plain.py is
    # Neither BatchNorm nor dropout: they treat half a batch otherwise than a whole one.
    student = ("student._target_=plain.Plain", "student.activation=elu", "student.scale=4", "student.conv_dropout=0")
    recipe = (
        "student.head_dropout=0",
        "method=logits",
        "T=2",
        "batch_size=16",
        "epochs=1",
        "trainer.precision=32-true",
    )
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
    process = sweep("hydra.launcher.tasks_per_node=2", *two, *student, *recipe)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed
    (together,) = records().values()
    assert together.status == "done"
    assert len(list(tmp_path.glob("sweep/**/*.safetensors"))) == 1

    for name, more in {"one": (), "otherwise": ("data.order_seed=1",)}.items():
        code, _ = run(*QUICK, "logger=none", "trainer=cpu", *student, *recipe, *more, f"hydra.run.dir={name}")
        assert code == 0
    assert distance("one", "sweep/0") < 0.01
    assert distance("one", "otherwise") > 0.1  # what another order of the images would have come to
    assert together.test_acc > 0.5


@pytest.mark.parametrize("preemption", ["by signal", "by another job"])
def test_slurm_launcher_resumes_an_interrupted_job(run, sweep, call_slurm, records, distance, tmp_path, preemption):
    longer = ("trainer=cpu", "student.scale=2", "method=logits", "recipe.epochs=15")
    assert run(*QUICK, "logger=none", *longer, "hydra.run.dir=whole")[0] == 0
    process = sweep(*longer)
    curve = tmp_path / "sweep" / "0" / "metrics.csv"
    lengths = []

    def epochs() -> int:
        return len(curve.read_text().splitlines()) - 1 if curve.exists() else 0

    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if not lengths and epochs() >= 2:
            job = call_slurm("squeue", "--noheader", "--format", "%i")
            if preemption == "by signal":  # as before the end of its time
                call_slurm("scancel", "--signal=USR2", job)
            else:
                call_slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
        lengths += [epochs()] if epochs() >= 2 or lengths else []
        time.sleep(0.02)
    printed, _ = process.communicate(timeout=10)
    assert process.returncode == 0, printed
    assert "Restarts=1 " in call_slurm("scontrol", "show", "job", job)
    assert lengths[0] < 15
    assert lengths == sorted(lengths)  # it did not start again
    assert [record.status for record in records().values()] == ["done"]
    assert distance("whole", "sweep/0") == 0
    assert curve.read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
