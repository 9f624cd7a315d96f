"""From a command to a configuration: where conf/ lies, and what Hydra composes from it. No torch import."""

import re
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
from kd.errors import UserError

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
    return frozenset(_file("config.yaml"))


@cache
def parts() -> dict[str, frozenset[str]]:
    """Names of the settings that data and recipes have, whatever the data set and whatever the recipe."""
    recipe = frozenset(_file("recipe/default.yaml")) | {"optimizer", "schedule"}
    data = frozenset(_file("data/shared/default.yaml")) | {"source"}
    return {"data": data, "recipe": recipe, "teacher_recipe": recipe}


def _file(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((conf_dir() / name).read_text(encoding="utf-8"))
    return settings


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
    cwd: str = ""
    """Where the command was typed, which relative paths refer to."""
    config_dir: str | None = None
    """A folder of configuration files beside our own, as `--config-dir` gives it."""

    @classmethod
    def of(cls, cfg: DictConfig, hydra_node: DictConfig, launcher: str | None = None) -> "Command":
        """Take what is needed from the `hydra` node that was composed with a configuration."""
        runtime = hydra_node.runtime
        sources = [source.path for source in runtime.config_sources if source.provider == "command-line"]
        return cls(
            cfg,
            dict(runtime.choices),
            tuple(hydra_node.overrides.task),
            launcher,
            str(runtime.cwd),
            sources[0].removeprefix("file://") if sources else None,
        )


def compose(
    overrides: Sequence[str], launcher: str | None = None, config_dir: Path | None = None, config_name: str = "config"
) -> tuple[Command, DictConfig]:
    """Compose what `train.py` would compose, for programs beside it; also returns the `hydra` node.

    Args:
        overrides: as typed.
        launcher: see `Command`.
        config_dir: a folder of configuration files beside our own.
        config_name: the file that is composed, without its suffix.

    Raises:
        HydraException, OmegaConfBaseException: for an unknown group, choice or setting.
        UserError: for a file that cannot be read.
    """
    texts = list(overrides)
    if config_dir is not None and not any(text.lstrip("+").startswith("hydra.searchpath=") for text in texts):
        texts.append(f"hydra.searchpath=['file://{escaped(str(config_dir))}']")
    try:
        if GlobalHydra.instance().is_initialized():
            cfg = hydra.compose(config_name, texts, return_hydra_config=True)
        else:
            with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
                cfg = hydra.compose(config_name, texts, return_hydra_config=True)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"a configuration file cannot be read: {' '.join(str(error).split())}") from error
    return Command.of(without_hydra(cfg), cfg.hydra, launcher), cfg.hydra


def escaped(text: str) -> str:
    """A text as it stands between single quotes in Hydra's grammar, its `${` no interpolation."""
    inner = re.sub(r"(\\*)'", r"\1\1\'", re.sub(r"(\\*)\$\{", r"\1\1\\${", text))
    return inner + "\\" * (len(inner) - len(inner.rstrip("\\")))


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of a composed configuration without Hydra's own node."""
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])


def plain(node: Any) -> Any:
    """Return a configuration node as plain values, resolved; other values as they are."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
