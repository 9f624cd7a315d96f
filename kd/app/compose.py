"""From a command to a configuration: where conf/ lies, and what Hydra composes from it. No torch import."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import kd

VERSION_BASE = "1.3"


@cache
def conf_dir() -> Path:
    """The folder of the configuration files: package data where kd is installed, beside kd/ in a checkout."""
    package = Path(kd.__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@cache
def run_wide() -> frozenset[str]:
    """Names of the top-level settings that every run has, whatever its method."""
    return frozenset(yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Command:
    """One run before it starts: its configuration, and what Hydra holds beside it."""

    cfg: DictConfig
    choices: dict[str, str]
    """The file that was chosen, by group."""
    overrides: tuple[str, ...]
    """As typed."""
    launcher: str | None = None
    """Class that starts this job of a multirun, dotted; None for a run by itself."""

    @classmethod
    def of(cls, cfg: DictConfig, hydra_node: DictConfig, launcher: str | None = None) -> "Command":
        """Take what is needed from the `hydra` node that was composed with a configuration."""
        return cls(cfg, dict(hydra_node.runtime.choices), tuple(hydra_node.overrides.task), launcher)


def compose(overrides: Sequence[str], launcher: str | None = None) -> tuple[Command, DictConfig]:
    """Compose what `train.py` would compose, for programs beside it; also returns the `hydra` node.

    Raises:
        HydraException, OmegaConfBaseException: for an unknown group, choice or setting.
    """
    if GlobalHydra.instance().is_initialized():
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    else:
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    return Command.of(without_hydra(cfg), cfg.hydra, launcher), cfg.hydra


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of a composed configuration without Hydra's own node."""
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])


def plain(node: Any) -> Any:
    """Return a configuration node as plain values, resolved; other values as they are."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
