"""From a command to a configuration: where conf/ lies, and what Hydra composes from it. No torch import."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kd.app.identity import SHAPELESS, without
from kd.errors import UserError

VERSION_BASE = "1.3"

MOST_VALUES = 100_000
"""Most values of one configuration file; ours have a few dozen."""
MOST_FILES = 1000
"""Most files of a folder that are checked before they are composed."""


@cache
def conf_dir() -> Path:
    """The folder of the configuration files: package data where kd is installed, beside kd/ in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@cache
def run_wide() -> frozenset[str]:
    """Names of the top-level settings that every run has, whatever its method."""
    return frozenset(settings_of(conf_dir() / "config.yaml"))


@cache
def parts() -> dict[str, frozenset[str]]:
    """Names of the settings that data and recipes have, whatever the data set and whatever the recipe."""
    recipe = frozenset(settings_of(conf_dir() / "recipe/default.yaml")) - {"defaults"} | {"optimizer", "schedule"}
    data = frozenset(settings_of(conf_dir() / "data/shared/default.yaml")) - {"defaults"} | {"source"}
    return {"data": data, "recipe": recipe, "teacher_recipe": recipe}


def settings_of(path: Path) -> dict[str, Any]:
    """What a file of conf/ sets."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict | None):
        raise UserError(f"{path} cannot be read: its settings are to be given as NAME: VALUE")
    return settings or {}


@cache
def network_names() -> dict[str, str]:
    """Names of the networks by `network_text` of their settings, where all of these are in one file."""
    files = sorted((conf_dir() / "student").glob("*.yaml"), reverse=True)
    return {network_text(settings_of(file)): file.stem for file in files}


def network_text(settings: dict[str, Any]) -> str:
    """Return a network's settings as text, as far as they shape it: "WideResNet depth=16 widen=3"."""
    shaping = without(settings, SHAPELESS | {"_target_"})
    return " ".join(
        [str(settings.get("_target_")).rpartition(".")[2], *(f"{name}={shaping[name]}" for name in sorted(shaping))]
    )


@dataclass(frozen=True)
class Command:
    """One run before it starts: its configuration, and what Hydra holds beside it."""

    cfg: DictConfig
    hydra: DictConfig
    """Hydra's own node."""
    choices: dict[str, str]
    """The file that was chosen, by group."""
    overrides: tuple[str, ...]
    """As typed."""
    launcher: str | None
    """Class that starts this job of a multirun, dotted, or "search" for a trial; None for a run by itself."""
    cwd: str
    """Where the command was typed, which relative paths refer to."""
    config_dir: str | None
    """A folder of configuration files beside our own, as `--config-dir` gives it."""

    @classmethod
    def of(cls, cfg: DictConfig, hydra_node: DictConfig, launcher: str | None = None) -> "Command":
        """Take what is needed from the `hydra` node that was composed with a configuration."""
        runtime = hydra_node.runtime
        sources = [source.path for source in runtime.config_sources if source.provider == "command-line"]
        return cls(
            cfg,
            hydra_node,
            dict(runtime.choices),
            tuple(hydra_node.overrides.task),
            launcher,
            str(runtime.cwd),
            sources[0].removeprefix("file://") if sources else None,
        )


def compose(overrides: Sequence[str], launcher: str | None = None, config_dir: Path | None = None) -> Command:
    """Compose the configuration of one run, as Hydra's own main would.

    Args:
        overrides: as typed.
        launcher: see `Command`.
        config_dir: a folder of configuration files beside our own.

    Raises:
        HydraException, OmegaConfBaseException: for an unknown group, choice or setting.
        UserError: for a file that cannot be read.
    """
    try:
        with nullcontext() if GlobalHydra.instance().is_initialized() else _initialized(config_dir):
            cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"a configuration file cannot be read: {' '.join(str(error).split())}") from error
    return Command.of(without_hydra(cfg), cfg.hydra, launcher)


@contextmanager
def _initialized(config_dir: Path | None) -> Iterator[None]:
    """Hydra with the folders that its own main would give it."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
        if config_dir is not None:
            folders = GlobalHydra.instance().config_loader().get_search_path()
            folders.prepend("command-line", f"file://{config_dir}", SearchPathQuery(provider="schema"))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("app", folders)
        yield


def run_composed(command: Command, task: TaskFunction) -> Any:
    """Do what Hydra's main does with a single run, whose configuration it would compose twice more.

    Returns:
        What the task returned, or the exception that it raised. What Hydra itself raises, of a wrong logging for
        example, is not caught.
    """
    cfg = cast(DictConfig, command.hydra._get_parent())
    command.hydra.mode = RunMode.RUN
    callbacks = Callbacks(cfg)
    about = {"config": cfg, "config_name": command.hydra.job.config_name}
    with _initialized(Path(command.config_dir) if command.config_dir else None):
        callbacks.on_run_start(**about)
        context = HydraContext(GlobalHydra.instance().config_loader(), callbacks)
        done = run_job(task, cfg, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context)
        callbacks.on_run_end(**about, job_return=done)
    return done._return_value


def refuse_bombs(folder: Path) -> None:
    """Refuse files of some lines that stand for millions of values: aliases of aliases, copied when merged.

    Raises:
        UserError: naming the file.
    """
    files = chain.from_iterable(folder.glob(f"{'*/' * depth}*.yaml") for depth in range(4))
    for file in islice(files, MOST_FILES):
        try:
            if file.stat().st_size > MOST_VALUES:
                raise UserError(f"{file} is too large for a file of settings; move it elsewhere")
            tree = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
            count = _values(tree, {})
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue  # told by whatever reads it, if it is chosen
        if count > MOST_VALUES:
            raise UserError(f"{file}: its aliases stand for {count:,} values, far more than settings have; remove them")


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Return how many values a node of YAML stands for, each alias with all that it refers to."""
    if id(node) not in known:
        known[id(node)] = 0  # until it is known: an alias of a node that it is in
        parts = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
        inner = chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in parts)
        known[id(node)] = 1 + sum(_values(part, known) for part in inner)
    return known[id(node)]


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
