"""Fixtures for all tests: a data set, networks and a Trainer, all as small as they can be."""

import functools
import gc
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.common import SMALL
from tests.settings import keep_settings

# Set before torch is loaded, which reads it. Networks this small gain nothing from a second thread, and results that
# are compared bit for bit need the same number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from torch import Generator, Tensor, nn

import kd.app.run
import kd.data.digits
from kd.app.cli import main
from kd.data.batch import Batch
from kd.data.images import Images
from kd.models.output import Output

LONGEST = (
    "sweeps/test_multirun.py",
    "app/test_run.py",
    "app/test_run_settings.py",
    "app/test_run_processes.py",
    "scripts/test_search.py",
    "test_readme.py",
    "test_site.py",
    "launchers/test_local.py",
    "test_notebook.py",
    "scripts/test_benchmark.py",
    "scripts/test_gpu_check.py",
    "methods/test_every_run.py",
    "app/test_cli.py",
    "app/test_experiments.py",
    "scripts/test_benchmark_sweep.py",
    "app/test_debug.py",
    "methods/test_chain.py",
    "scripts/test_programs.py",
    "test_installed.py",
    "training/test_performance.py",
    "training/test_threads.py",
    "training/test_tabs.py",
    "test_own_loop.py",
)
"""Files that take longest. They begin first, as a worker that gets one of them last is waited for by all others."""


MEMORY = Path("/dev/shm")
"""Where files are in memory: the suite makes some 20,000, which a disk takes minutes to sync and to remove."""
ROOM = 4 << 30
"""Bytes, several times of what is there at once."""


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all tests are collected, of which nothing is garbage
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and in_memory():
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
    config.option.loadscopereorder = False  # pytest-xdist begins with the files of most tests, which are short ones


def in_memory() -> bool:
    """Return whether there is such a place, with room, where programs may be started."""
    if not MEMORY.is_dir() or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(MEMORY).free > ROOM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Leave out of every garbage collection what is loaded: a multirun collects after each job."""
    gc.freeze()
    gc.enable()


keep_settings()
# Two programs of git for each of a thousand runs; what they find is tested by itself.
kd.app.run.git_revision = functools.cache(kd.app.run.git_revision)
# A file of text, read as often; each data set is made of a copy.
kd.data.digits._original = functools.cache(kd.data.digits._original)


class TinyNet(nn.Module):
    """One stage: with BatchNorm and dropout, so that modes, buffers and random numbers matter."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Output:
        features = self.stage(x)
        embedding = self.dropout(features.mean(dim=(2, 3)))
        return Output(self.classifier(embedding), (features,), embedding)


@pytest.fixture
def tiny_net() -> Callable[..., TinyNet]:
    def tiny_net(width: int = 4, num_classes: int = 10, dropout: float = 0.0, seed: int = 0) -> TinyNet:
        torch.manual_seed(seed)
        return TinyNet(width, num_classes, dropout)

    return tiny_net


@pytest.fixture
def noise() -> Callable[..., Images]:
    """Makes a data set of 8x8 noise in various colours, so that no two images and no two places are alike."""

    def noise(train: int = 40, test: int = 20, num_classes: int = 10) -> Images:
        generator = Generator().manual_seed(0)
        brightness = torch.randint(32, 257, (train + test, 3, 1, 1), generator=generator)
        x = (torch.randint(256, (train + test, 3, 8, 8), generator=generator) * brightness // 256).to(torch.uint8)
        y = torch.arange(train + test) % num_classes
        return Images(
            "noise", tuple("abcdefghij"[:num_classes]), x[:train], y[:train], x[train:], y[train:].contiguous()
        )

    return noise


@pytest.fixture
def labelled() -> Callable[..., Batch]:
    """Makes a batch of which only the labels matter."""

    def labelled(*y: int) -> Batch:
        nothing = torch.zeros(len(y), dtype=torch.int64)
        return Batch(torch.zeros(len(y), 3, 4, 4), torch.tensor(y), nothing, nothing)

    return labelled


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a Lightning Trainer on the CPU that writes and prints nothing by itself."""
    from lightning import Trainer

    def trainer(**settings: Any) -> Trainer:
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }
        return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **{**quiet, **settings})

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning 2.6 with torch 2.14
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # when resuming
        yield trainer


def call(*arguments: str) -> int:
    """Call `train.py` in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "")  # the program sets it and the next two itself; undone at the end
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
            patch.setenv(name, os.environ.get(name, ""))
        patch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            main()
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Calls `train.py` in an empty folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: (call(*arguments), "".join(capsys.readouterr()))


@pytest.fixture
def cohorts(monkeypatch) -> list[int]:
    """How many trainings were side by side, of each cohort in this process."""
    from kd.sweeps.cohort import Cohort

    sizes: list[int] = []
    run = Cohort.run
    monkeypatch.setattr(Cohort, "run", lambda cohort, works: sizes.append(len(works)) or run(cohort, works))
    return sizes


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder with one small run in run/ and its teacher in teachers/; to be read or copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(*SMALL, "method=logits", "T=2", "hydra.run.dir=run") == 0
    return folder
