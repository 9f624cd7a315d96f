"""`train.py -m` as a program of its own, with launchers that start further processes."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kd.runs.results import Result, read
from tests import processes
from tests.common import ROOT

HERE = Path(__file__).parent


@pytest.fixture
def sweep(tmp_path) -> Callable[..., processes.Process]:
    """Starts a multirun in sweep/ of an empty folder, without OMP_NUM_THREADS in its environment."""

    def sweep(*arguments: str, **environment: str) -> processes.Process:
        command = (ROOT / "train.py", "-m", "hydra.sweep.dir=sweep", "logger=none", *arguments)
        inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return processes.start(*command, cwd=tmp_path, env={**inherited, **environment}, merged=True)

    return sweep


@pytest.fixture
def records(tmp_path) -> Callable[[], dict[str, Result]]:
    """Reads the records of the jobs in sweep/, by the names of their directories."""
    return lambda: {path.parent.name: read(path) for path in sorted(tmp_path.glob("sweep/*/result.json"))}


@pytest.fixture
def distance(tmp_path) -> Callable[[str, str], float]:
    """Largest difference between the students of two runs, over all tensors, relative to the tensor's length."""

    def distance(left: str, right: str) -> float:
        a, b = (load_file(tmp_path / run / "student.safetensors") for run in (left, right))
        assert a.keys() == b.keys()
        return max(float(torch.dist(a[name].double(), b[name].double()) / a[name].double().norm()) for name in a)

    return distance


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """A Slurm of one node, as the environment variables that its commands need."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="kd-slurm-", dir="/tmp"))  # the path of a socket has to be short
    environment = {"KD_SLURM": str(folder), "SLURM_CONF": str(folder / "slurm.conf")}

    def script(action: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [HERE / "slurm.sh", action], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
        )

    try:
        started = script("start")
        assert started.returncode == 0, started.stderr
        yield environment
    finally:
        script("stop")
