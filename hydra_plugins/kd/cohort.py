"""Jobs of a multirun side by side in one process: `hydra/launcher=cohort`, see `kd.sweeps.cohort`."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from kd.app.compose import plain, without_hydra
from kd.app.identity import cohort_key

if TYPE_CHECKING:
    from kd.sweeps.cohort import Member


@dataclass
class CohortLauncherConf:
    _target_: str = "hydra_plugins.kd.cohort.CohortLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="cohort", node=CohortLauncherConf, provider="kd")


class CohortLauncher(Launcher):
    """Jobs that share data, order, teacher and length in one process; groups that differ run one after the other."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = [self._compose(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        groups: dict[str, list[int]] = {}
        for place, cfg in enumerate(configs):
            groups.setdefault(cohort_key(plain(without_hydra(cfg))), []).append(place)
        returns: dict[int, JobReturn] = {}
        for places in groups.values():
            returns |= zip(places, self._run_group([configs[place] for place in places]), strict=True)
        return [returns[place] for place in range(len(configs))]

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        return cfg

    def _run_group(self, configs: Sequence[DictConfig]) -> list[JobReturn]:
        from kd.sweeps.cohort import Cohort, State, free_memory

        hydra_config = State(
            lambda: HydraConfig.instance().cfg, lambda cfg: setattr(HydraConfig.instance(), "cfg", cfg)
        )
        handlers = State(lambda: logging.root.handlers, lambda saved: setattr(logging.root, "handlers", saved))
        working_directory = State(os.getcwd, os.chdir)  # hydra.job.chdir=true
        free = partial(free_memory, str(configs[0].trainer.accelerator))
        outcomes = Cohort([hydra_config, handlers, working_directory], free).run(
            [self._training(cfg) for cfg in configs]
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    def _training(self, cfg: DictConfig) -> "Callable[[Member], JobReturn]":
        from kd.app.cli import job
        from kd.app.cohort import MemberBuilder

        def work(member: "Member") -> JobReturn:
            def task(cfg: DictConfig) -> float | None:
                return job(cfg, partial(MemberBuilder, member=member)).val_acc

            return run_job(
                hydra_context=self.hydra_context,
                task_function=task,
                config=cfg,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )

        return work
