"""Launchers on one machine, and the jobs that none of them can start."""

from datetime import datetime

import joblib
import pytest

from tests.common import SMALL

GRID = (*SMALL, "method=feature", "method.stages=[7],[-1]")
"""Two jobs, of which the first fails, as the network has two stages."""


def test_joblib_launcher_divides_the_cores(sweep, records):
    process = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *GRID)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    found = records()
    assert {name: record.status for name, record in found.items()} == {"0": "failed", "1": "done"}, printed
    assert "stages must be in [-2, 1]" in found["0"].error
    assert found["1"].device.endswith(f"({max(1, joblib.cpu_count() // 2)} threads)")


def test_local_launcher_respects_max_batch_size(sweep, records, tmp_path):
    process = sweep("hydra/launcher=local", "hydra.sweeper.max_batch_size=1", "threads=1", *GRID)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    found = records()
    assert {name: record.status for name, record in found.items()} == {"0": "failed", "1": "done"}, printed
    assert found["1"].device.endswith("(1 threads)")
    first_ended = (tmp_path / "sweep" / "0" / "result.json").stat().st_mtime
    assert datetime.fromisoformat(found["1"].date).timestamp() >= int(first_ended)
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
