"""Jobs of a multirun side by side in one process: `hydra/launcher=cohort`, see `kd.sweeps.cohort`."""

import gc
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from kd.app.compose import plain, without_hydra
from kd.app.identity import cohort_key
from kd.sweeps.jobs import forget_frames

if TYPE_CHECKING:
    from kd.sweeps.cohort import Member


@dataclass
class CohortLauncherConf:
    _target_: str = "hydra_plugins.kd.cohort.CohortLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="cohort", node=CohortLauncherConf, provider="kd")


class ComposingLauncher(Launcher):
    """A launcher that composes the configurations of all jobs before it starts any."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def composed(self, job_overrides: Iterable[Sequence[str]], first: int) -> list[DictConfig]:
        """Set up logging, and return the configurations of jobs that are numbered from `first` on."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return [
            compose_job(self.hydra_context, self.config, number, overrides)
            for number, overrides in enumerate(job_overrides, first)
        ]


class CohortLauncher(ComposingLauncher):
    """Jobs that share data, order, teacher and length in one process; groups that differ run one after the other."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        configs = self.composed(job_overrides, initial_job_idx)
        returns: dict[int, JobReturn] = {}
        for places in grouped(configs):
            together = train_together([configs[place] for place in places], self.hydra_context.callbacks)
            returns |= zip(places, together, strict=True)
        return [returns[place] for place in range(len(configs))]


def compose_job(context: HydraContext, config: DictConfig, number: int, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a job from that of its multirun."""
    cfg = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    return cfg


def grouped(configs: Sequence[DictConfig]) -> list[list[int]]:
    """Return the places of jobs that can be trained side by side, group by group in order of their first."""
    groups: dict[str, list[int]] = {}
    for place, cfg in enumerate(configs):
        groups.setdefault(cohort_key(plain(without_hydra(cfg))), []).append(place)
    return list(groups.values())


def train_together(configs: Sequence[DictConfig], callbacks: Callbacks) -> list[JobReturn]:
    """Train jobs of one group side by side in this process."""
    from kd.app.machine import check_devices
    from kd.sweeps.cohort import Cohort, Memory, State
    from kd.training.device import choose_device

    hydra_config = State(lambda: HydraConfig.instance().cfg, lambda cfg: setattr(HydraConfig.instance(), "cfg", cfg))
    # A copy: logging is set up anew for each job, and changes the list in place.
    handlers = State(lambda: logging.root.handlers[:], lambda saved: setattr(logging.root, "handlers", saved))
    working_directory = State(os.getcwd, os.chdir)  # hydra.job.chdir=true
    trainer = plain(configs[0].trainer)  # all of a group have the same
    check_devices(trainer)
    memory = Memory(choose_device(str(trainer["accelerator"]), trainer["devices"]))
    cohort = Cohort([hydra_config, handlers, working_directory], memory)
    outcomes = cohort.run([partial(run_one, cfg, callbacks) for cfg in configs])
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def run_one(cfg: DictConfig, callbacks: Callbacks, member: "Member | None" = None) -> JobReturn:
    """Run a job as Hydra does, by itself or as a member of a cohort."""
    from kd.app.cli import job
    from kd.app.cohort import MemberBuilder

    def task(cfg: DictConfig) -> float | None:
        return job(cfg, None if member is None else partial(MemberBuilder, member=member)).val_acc

    returned = run_job(
        hydra_context=HydraContext(config_loader=None, callbacks=callbacks),
        task_function=task,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    for handler in logging.root.handlers:
        handler.close()  # its log file, which was opened again where another job set up logging in between
    if forget_frames(returned._return_value):
        gc.collect()
    return returned
