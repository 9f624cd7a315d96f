"""Jobs of a multirun side by side in one process: `hydra/launcher=cohort`, see `kd.sweeps.cohort`."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class CohortLauncherConf:
    _target_: str = "hydra_plugins.kd.cohort.CohortLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="cohort", node=CohortLauncherConf, provider="kd")


class CohortLauncher(Launcher):
    """Jobs that share data, order, teacher and length in one process; different ones one after the other."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = [self._compose(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        groups: dict[str, list[int]] = {}
        for place, cfg in enumerate(configs):
            groups.setdefault(in_common(cfg), []).append(place)
        returns: dict[int, JobReturn] = {}
        for places in groups.values():
            returns |= zip(places, self._together([configs[place] for place in places]), strict=True)
        return [returns[place] for place in range(len(configs))]

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        return cfg

    def _together(self, configs: Sequence[DictConfig]) -> list[JobReturn]:
        from kd.sweeps.cohort import Cohort, State, free_memory

        hydra_config = State(
            lambda: HydraConfig.instance().cfg, lambda cfg: setattr(HydraConfig.instance(), "cfg", cfg)
        )
        handlers = State(lambda: logging.root.handlers, lambda kept: setattr(logging.root, "handlers", kept))
        free = partial(free_memory, str(configs[0].trainer.accelerator))
        outcomes = Cohort([hydra_config, handlers], free).run([self._work(cfg) for cfg in configs])
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    def _work(self, cfg: DictConfig) -> Callable[[Any], JobReturn]:
        import train

        def work(others: Any) -> JobReturn:
            return run_job(
                hydra_context=self.hydra_context,
                task_function=partial(train.job, others=others),
                config=cfg,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )

        return work


def in_common(cfg: DictConfig) -> str:
    """What jobs have to have in common to be trained side by side, as text."""
    recipe = cfg.recipe
    shared = {
        "data": cfg.data,
        "teacher": [
            cfg.teacher,
            cfg.teacher_recipe,
            cfg.teacher_seed,
            cfg.teacher_weights,
            cfg.teacher_store,
            cfg.ensemble,
        ],
        "students": "student" in cfg.roles,
        "pace": [recipe.batch_size, recipe.epochs],
        "machine": [cfg.trainer, cfg.speed, cfg.threads],
    }
    return json.dumps(OmegaConf.to_container(OmegaConf.create(shared, parent=cfg), resolve=True), sort_keys=True)
