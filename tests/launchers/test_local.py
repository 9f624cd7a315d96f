"""Launchers on one machine, and the jobs that none of them can start."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import joblib
import pytest

from tests.common import QUICK, ROOT, SMALL

GRID = (*QUICK, "method=feature", "method.stages=[7],[-1]")
"""Two jobs, of which the first is refused, as the network has two stages."""


def test_joblib_launcher_divides_the_cores(sweep, records):
    process = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *GRID)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    found = records()
    assert {name: record.status for name, record in found.items()} == {"1": "done"}, printed
    assert "refused method.stages=[7]: method.stages must be in [-2, 1]" in printed
    assert found["1"].device.endswith(f"({max(1, joblib.cpu_count() // 2)} threads)")


def test_joblib_launcher_leaves_no_job_running_after_ctrl_c(sweep, records, tmp_path):
    """Its workers are killed before they can record that they were interrupted."""
    grid = (*SMALL, "epochs=5000", "method=standard", "seed=0,1", "threads=1")
    process = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *grid)
    curves = [tmp_path / "sweep" / name / "metrics.csv" for name in "01"]
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in curves) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert {name: record.status for name, record in records().items()} == dict.fromkeys("01", "interrupted"), printed
    assert "\ncontinue with: python train.py --multirun logger=none hydra/launcher=joblib" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "parallel"), ("slurm", "slurm")])
def test_launcher_that_is_not_installed_names_the_extra(tmp_path, launcher, extra):
    """Hydra finds its plugins in the folders of the namespace package `hydra_plugins`: here in this repository only."""
    code = "import sys, hydra_plugins; hydra_plugins.__path__ = [sys.argv.pop(1)]; from kd.app.cli import main; main()"
    command = [sys.executable, "-c", code, str(ROOT / "hydra_plugins"), "-m", f"hydra/launcher={launcher}", "T=1,2"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: this launcher is not installed: pip install -e '.[{extra}]'\n"
    assert not list(tmp_path.iterdir())


def test_slurm_launcher_without_slurm_is_one_line(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, printed = run("-m", *SMALL, "hydra/launcher=slurm", "method=standard", "seed=0,1", "hydra.sweep.dir=sweep")
    assert (code, printed.count("\n")) == (1, 1)
    assert printed.startswith('error: hydra/launcher=slurm could not start a job: Could not detect "srun"')


def test_local_launcher_respects_max_batch_size(sweep, records, tmp_path):
    process = sweep("hydra/launcher=local", "hydra.sweeper.max_batch_size=1", "threads=1", *GRID)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    found = records()
    assert {name: record.status for name, record in found.items()} == {"1": "done"}, printed
    assert found["1"].device.endswith("(1 threads)")
    results = sorted(tmp_path.glob("sweep/.submitit/*/*_result.pkl"), key=lambda path: path.stat().st_mtime)
    assert datetime.fromisoformat(found["1"].date).timestamp() >= int(results[0].stat().st_mtime)
    assert len(list(tmp_path.glob("sweep/.submitit/*/*_result.pkl"))) == 2


@pytest.mark.parametrize("devices", [("trainer=ddp",), ("trainer=cpu", "trainer.devices=2")], ids=["ddp", "devices"])
@pytest.mark.parametrize("launcher", ["basic", "joblib", "local", "cohort"])
def test_launcher_refuses_several_processes_for_one_job(run, tmp_path, launcher, devices):
    code, printed = run(
        "-m", "data=digits", f"hydra/launcher={launcher}", *devices, "seed=0,1", "hydra.sweep.dir=sweep"
    )
    assert code == 1
    assert "hydra/launcher=slurm" in printed.splitlines()[-1]
    assert not list(tmp_path.glob("sweep/*/result.json"))


def test_local_launcher_has_a_timeout_of_months(run):
    _, printed = run("hydra/launcher=local", "--cfg", "hydra", "-p", "hydra.launcher.timeout_min")
    assert int(printed) > 60 * 24 * 30
