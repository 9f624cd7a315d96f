"""Launchers on one machine, and the jobs that none of them can start."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime
from functools import cache
from multiprocessing import forkserver

import joblib
import pytest
import torch

from hydra_plugins.kd import processes
from hydra_plugins.kd.processes import LOADED, AutoLauncher
from kd.app.compose import compose, plain
from kd.app.trainer import check_trainer
from kd.errors import UserError
from kd.runs.results import read
from kd.sweeps.processes import DiedError, Work, side_by_side, start_server
from tests.common import QUICK, ROOT, SMALL
from tests.launchers import guard


def test_joblib_launcher_divides_the_cores_and_leaves_no_job_running_after_ctrl_c(sweep, records, tmp_path):
    """Its workers are killed before they can record that they were interrupted."""
    process = sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *QUICK, "method=standard", "epochs=1,5000")
    record, curve = tmp_path / "sweep" / "0" / "result.json", tmp_path / "sweep" / "1" / "metrics.csv"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if curve.exists() and record.exists() and read(record).status == "done":
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    found = records()
    assert {name: record.status for name, record in found.items()} == {"0": "done", "1": "interrupted"}, printed
    assert found["0"].device.endswith(f"({max(1, joblib.cpu_count() // 2)} threads)")
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


@pytest.fixture(scope="module")
def server():
    forkserver._forkserver._stop()
    start_server(["tests.launchers.guard", *LOADED])
    yield
    forkserver._forkserver._stop()


@pytest.mark.usefixtures("server")
class TestProcesses:
    """`hydra/launcher=local` and `auto`; one server for all tests."""

    @pytest.fixture
    def running(self, tmp_path):
        """Makes a thread that calls a function with all processes, once jobs of some names have trained an epoch."""

        def running(call, *names):
            def wait():
                deadline = time.monotonic() + 300
                while not all((tmp_path / "sweep" / name / "metrics.csv").exists() for name in names):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                call(*sorted(multiprocessing.active_children(), key=lambda process: process.pid))

            thread = threading.Thread(target=wait)
            thread.start()
            return thread

        return running

    def test_local_launcher_respects_max_batch_size(self, run, records, tmp_path):
        grid = (*QUICK, "epochs=1", "method=feature", "method.stages=[7],[-1],[0]", "hydra.sweep.dir=sweep")
        code, printed = run("-m", "hydra/launcher=local", "hydra.sweeper.max_batch_size=1", "threads=1", *grid)
        found = records()
        assert code == 1
        assert "refused method.stages=[7]: method.stages must be in [-2, 1]" in printed
        assert {name: record.status for name, record in found.items()} == {"1": "done", "2": "done"}, printed
        assert found["1"].device.endswith("(1 threads)")
        ended = (tmp_path / "sweep" / "1" / "result.json").stat().st_mtime
        assert datetime.fromisoformat(found["2"].date).timestamp() >= int(ended)

    def test_launchers_give_each_job_the_result_of_a_single_run(self, run, distance, tmp_path):
        grid = (*QUICK, "epochs=1", "speed.stored_logits=false", "data.order_seed=7")
        jobs = ("method=standard,logits", "seed=0,1")
        own = {"date": "", "train_seconds": None, "images_per_second": None, "command": "", "variant": ""}
        assert run("-m", *grid, *jobs, "threads=1", "hydra.sweep.dir=basic")[0] == 0
        for launcher, threads in (("local", ("threads=1",)), ("auto", ())):
            where = (f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={launcher}")
            code, printed = run("-m", *grid, *jobs, *threads, *where)
            assert (code, printed.count("done    method=")) == (0, 4)
            assert not (tmp_path / launcher / ".output").exists()  # nothing was printed
            for name in "0123":
                alone, mine = (read(tmp_path / folder / name / "result.json") for folder in ("basic", launcher))
                assert distance(f"basic/{name}", f"{launcher}/{name}") == 0
                assert replace(mine, **own) == replace(alone, **own)
                assert (mine.train_seconds is None) == (launcher == "auto")  # two share a process

    def test_local_launcher_goes_on_where_a_job_is_killed(self, run, running, records):
        grid = (*QUICK, "epochs=25", "method=standard", "seed=0,1", "threads=1", "hydra.sweep.dir=sweep")
        killing = running(lambda job, _: job.kill(), "0", "1")
        code, printed = run("-m", "hydra/launcher=local", *grid)
        killing.join()
        reason = "its process was ended by SIGKILL, perhaps for want of memory; fewer at a time take less"
        assert code == 1
        failed, done = (line for line in printed.splitlines() if line.startswith(("[1/2]", "[2/2]")))
        assert failed.startswith(f"[1/2] failed  seed=0: {reason}")
        assert done.startswith("[2/2] done    seed=1: ")
        assert {name: record.status for name, record in records().items()} == {"0": "failed", "1": "done"}
        assert records()["0"].error == reason

    def test_local_launcher_leaves_no_job_running_after_ctrl_c(self, run, running, records, request):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
        grid = (*QUICK, "epochs=5000", "method=standard", "seed=0,1", "threads=1", "hydra.sweep.dir=sweep")
        main = threading.main_thread().ident
        interrupting = running(lambda *_: signal.pthread_kill(main, signal.SIGINT), "0", "1")
        code, printed = run("-m", "hydra/launcher=local", *grid)
        interrupting.join()
        assert code == 130
        assert {name: record.status for name, record in records().items()} == dict.fromkeys("01", "interrupted")
        assert "\ncontinue with: python train.py --multirun hydra/launcher=local" in printed
        assert "Traceback" not in printed
        assert not multiprocessing.active_children()

    def test_server_touches_no_gpu(self, tmp_path):
        """A fork of a process that has used one cannot use it."""
        assert side_by_side([Work(guard.state, tmp_path / "output")], [{}]) == [([], False)]

    def test_auto_launcher_finds_gpus_without_touching_them(self, tmp_path):
        launcher = AutoLauncher(None)
        launcher.config = composed("trainer=auto", f"hydra.sweep.dir={tmp_path}")
        assert launcher.gpus == [str(i) for i in range(torch.cuda.device_count())]

    def test_auto_launcher_tells_why_gpus_could_not_be_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(processes, "side_by_side", lambda *_: [DiedError("gone")])
        launcher = AutoLauncher(None)
        launcher.config = composed("trainer=auto", f"hydra.sweep.dir={tmp_path}")
        with pytest.raises(DiedError, match="gone"):
            _ = launcher.gpus

    def test_local_launcher_refuses_no_processes(self, run, tmp_path):
        code, printed = run("-m", *QUICK, "hydra/launcher=local", "hydra.launcher.n_jobs=0", "hydra.sweep.dir=sweep")
        assert (code, printed) == (
            1,
            "error: hydra/launcher=local could not start a job: hydra.launcher.n_jobs must be at least 1, got 0\n",
        )
        assert not list(tmp_path.iterdir())


@cache
def composed(*overrides):
    return compose(["data=digits", *overrides]).hydra._get_parent()


@pytest.fixture
def auto(monkeypatch):
    """Makes an `AutoLauncher` and the configurations of its jobs, as if there were some cores and GPUs."""

    def auto(*jobs, cores=2, gpus=(), **settings):
        monkeypatch.setattr(processes, "cores", lambda: cores)
        launcher = AutoLauncher(settings.pop("n_jobs", None))
        launcher.config, launcher.gpus = composed(*jobs[0]), list(gpus)
        configs = [composed(*launcher.overrides(job)) for job in jobs]
        return launcher, configs, launcher.environments(configs)

    return auto


def test_auto_launcher_divides_jobs_among_cores(auto):
    same, other = ("method=logits", "T=1"), ("method=logits", "epochs=3")
    launcher, configs, environments = auto(same, other, same, same, same, same)
    assert [cfg.threads for cfg in configs] == [1] * 6
    assert environments == [{}, {}]
    assert launcher.parts(configs, 2) == [[3, 4, 5], [0, 2], [1]]
    assert launcher.parts(configs, 6) == [[0], [2], [3], [4], [5], [1]]
    apart = ("method=logits", "data.in_memory=false")
    launcher, configs, _ = auto(apart, apart, apart)
    assert launcher.parts(configs, 2) == [[0], [1], [2]]


def test_auto_launcher_runs_as_many_processes_as_there_is_room(auto):
    job = ("method=standard",)
    assert auto(job, job, job, cores=8)[2] == [{}] * 3
    assert auto(*[(*job, "threads=2")] * 9, cores=8)[2] == [{}] * 4
    assert auto(*[(*job, "threads=2")] * 9, cores=1)[2] == [{}]
    assert auto(*[job] * 9, cores=8, n_jobs=5)[2] == [{}] * 5


def test_auto_launcher_gives_each_gpu_a_process(auto):
    _, configs, environments = auto(*[("method=standard",)] * 9, gpus=("0", "3"))
    assert environments == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    assert [cfg.threads for cfg in configs] == [None] * 9
    assert auto(*[("method=standard",)] * 9, gpus=("7",), n_jobs=2)[2] == [{"CUDA_VISIBLE_DEVICES": "7"}] * 2


def test_auto_launcher_takes_the_gpus_that_are_named(auto, monkeypatch):
    """A process sees only its own GPU, and there that is the first."""
    _, configs, _ = auto(*[("method=standard", "trainer.devices=[1]")] * 2, gpus=("5", "6"))
    assert [plain(cfg.trainer)["devices"] for cfg in configs] == [1, 1]
    monkeypatch.setattr(processes, "side_by_side", lambda *_: [3])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    for devices, expected in (("auto", ["4", "5", "6"]), ("[1]", ["5"]), ("[2,0]", ["6", "4"])):
        launcher = AutoLauncher(None)
        launcher.config = composed("trainer=auto", "hydra.sweep.dir=sweep", f"trainer.devices={devices}")
        assert launcher.gpus == expected
    check_trainer(plain(composed("trainer.devices=[0,1]").trainer), "hydra_plugins.kd.processes.AutoLauncher")
    launcher = AutoLauncher(None)
    launcher.config = composed("trainer=auto", "hydra.sweep.dir=sweep", "trainer.devices=[3]")
    with pytest.raises(UserError, match=r"trainer.devices=\[3\]: there are 3 here, counted from 0"):
        _ = launcher.gpus
    monkeypatch.setattr(processes, "side_by_side", lambda *_: [0])  # as on a Mac, whose GPU is not counted
    launcher = AutoLauncher(None)
    launcher.config = composed("trainer=auto", "hydra.sweep.dir=sweep", "trainer.devices=[0]")
    assert launcher.gpus == []


@pytest.mark.parametrize("devices", [("trainer=ddp",), ("trainer=cpu", "trainer.devices=2")], ids=["ddp", "devices"])
@pytest.mark.parametrize("launcher", ["basic", "joblib", "local", "cohort", "auto"])
def test_launcher_refuses_several_processes_for_one_job(run, tmp_path, launcher, devices):
    code, printed = run(
        "-m", "data=digits", f"hydra/launcher={launcher}", *devices, "seed=0,1", "hydra.sweep.dir=sweep"
    )
    assert code == 1
    assert "hydra/launcher=slurm" in printed.splitlines()[-1]
    assert not list(tmp_path.glob("sweep/*/result.json"))
