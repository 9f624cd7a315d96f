"""Jobs of a multirun in processes of their own, `hydra/launcher=local` and `auto`; see `kd.sweeps.processes`."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, setup_globals
from omegaconf import DictConfig

from hydra_plugins.kd.cohort import ComposingLauncher, grouped, run_one, train_together
from kd.app.compose import VERSION_BASE, plain
from kd.errors import UserError
from kd.sweeps.jobs import fail
from kd.sweeps.processes import Work, cores, side_by_side, start_server

LOADED = (
    "kd.app.build",
    "kd.app.teacher",
    "kd.app.train",
    "kd.app.cohort",
    "kd.training.loggers",
    "sklearn.datasets",
    "tensorboard.summary.writer.event_file_writer",
)
"""What a run loads."""
OUTPUT = ".output"
"""The folder in a sweep's, with a file of what each process has printed, if it has."""


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.kd.processes.LocalLauncher"
    n_jobs: int | None = None


@dataclass
class AutoLauncherConf(LocalLauncherConf):
    _target_: str = "hydra_plugins.kd.processes.AutoLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="kd")
ConfigStore.instance().store(group="hydra/launcher", name="auto", node=AutoLauncherConf, provider="kd")


class LocalLauncher(ComposingLauncher):
    """A process for each job.

    Args:
        n_jobs: how many run at a time; None for all.
    """

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"hydra.launcher.n_jobs must be at least 1, got {self.n_jobs}")
        start_server(LOADED)  # it is busy while configurations are composed
        configs = self.composed(map(self.overrides, job_overrides), initial_job_idx)
        environments = self.environments(configs)
        parts = self.parts(configs, len(environments))
        works = [self._work([configs[place] for place in places]) for places in parts]

        def record(part: int, error: Exception) -> None:
            for place in parts[part]:
                fail(_directory(configs[place]), str(error))

        outcomes = side_by_side(works, environments, record)
        with suppress(OSError):  # it is not empty
            works[0].output.parent.rmdir()
        returns: dict[int, JobReturn] = {}
        for places, outcome in zip(parts, outcomes, strict=True):
            several = [_failed(outcome)] * len(places) if isinstance(outcome, Exception) else outcome
            returns |= zip(places, several, strict=True)
        return [returns[place] for place in range(len(configs))]

    def overrides(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides of a job."""
        return list(overrides)

    def environments(self, configs: Sequence[DictConfig]) -> list[Mapping[str, str]]:
        """Return the environment variables of each process that may run at a time."""
        return [{}] * min(self.n_jobs or len(configs), len(configs))

    def parts(self, configs: Sequence[DictConfig], processes: int) -> list[list[int]]:
        """Return the places of the jobs that share a process, for each process in turn."""
        return [[place] for place in range(len(configs))]

    def _work(self, configs: Sequence[DictConfig]) -> Work:
        directory = _directory(configs[0])
        return Work(partial(_run, configs), directory.parent / OUTPUT / f"{directory.name}.txt")


class AutoLauncher(LocalLauncher):
    """A process of one thread for each core, or one for each GPU, and in it its share of the jobs side by side.

    Args:
        n_jobs: how many processes run at a time; None for what the machine has.
    """

    def overrides(self, overrides: Sequence[str]) -> list[str]:
        if self.gpus:  # of which each process sees one
            return [*overrides, *(["trainer.devices=1"] if self._chosen else [])]
        return [*overrides, *(["threads=1"] if self.config.threads is None else [])]

    def environments(self, configs: Sequence[DictConfig]) -> list[Mapping[str, str]]:
        number = self.n_jobs or len(self.gpus) or max(1, cores() // configs[0].threads)
        number = min(number, len(configs))
        return [{"CUDA_VISIBLE_DEVICES": self.gpus[i % len(self.gpus)]} if self.gpus else {} for i in range(number)]

    def parts(self, configs: Sequence[DictConfig], processes: int) -> list[list[int]]:
        most = math.ceil(len(configs) / processes)
        parts = []
        for places in grouped(configs):
            first = configs[places[0]]
            apart = not first.data.in_memory or "Wandb" in str(first.logger)
            number = len(places) if apart else math.ceil(len(places) / most)
            parts += [places[i * len(places) // number : (i + 1) * len(places) // number] for i in range(number)]
        return sorted(parts, key=len, reverse=True)  # the largest first, so that none of them is alone at the end

    @cached_property
    def gpus(self) -> list[str]:
        """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES has them."""
        if self.config.trainer.accelerator == "cpu":
            return []
        counting = Work(_count_gpus, Path(str(self.config.hydra.sweep.dir)) / OUTPUT / "devices.txt")
        (found,) = side_by_side([counting], [{}])  # this process does not load torch
        if isinstance(found, Exception):
            raise found
        if not found:  # a processor, or Apple's GPU: jobs check their devices themselves
            return []
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(found)))
        there = names.split(",")[:found]
        if any(int(place) >= found for place in self._chosen):
            raise UserError(f"trainer.devices={self._chosen}: there are {found} here, counted from 0")
        return [there[int(place)] for place in self._chosen] or there

    @property
    def _chosen(self) -> list[int]:
        """The numbers of the GPUs that `trainer.devices` names; empty if it names none."""
        devices = plain(self.config.trainer)["devices"]
        return devices if isinstance(devices, list) else []


def _run(configs: Sequence[DictConfig]) -> list[JobReturn]:
    """Run jobs in this process, in which Hydra is new: one as by itself, several side by side."""
    setup_globals()
    version.setbase(VERSION_BASE)
    JobRuntime.instance().set("name", configs[0].hydra.job.name)
    callbacks = Callbacks(configs[0])
    returns = [run_one(configs[0], callbacks)] if len(configs) == 1 else train_together(configs, callbacks)
    for returned in returns:
        returned.cfg = returned.hydra_cfg = None  # nothing reads them again
    return returns


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _failed(error: Exception) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def _directory(cfg: DictConfig) -> Path:
    return Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)
