"""`resume=RUN_DIR`: from the directory of a run to the command that continues it. No torch import."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from kd.app import identity
from kd.app.arguments import Arguments, parse, quoted
from kd.app.compose import Command, plain
from kd.errors import UserError
from kd.runs.results import FILE, Result, read
from kd.runs.status import refuse_links

SWEEP = "multirun.yaml"
"""The settings of a sweep, in its folder."""


def expand_resume(arguments: Arguments, program: str = "python train.py") -> tuple[Arguments, Result | None]:
    """Replace `resume=RUN_DIR` by the overrides that the run was started with, and go to where it was started from.

    The directory may be a stranger's. Its record brings in values and our own files only, see `to_be_typed`.

    Args:
        arguments: the command line. What it gives beside `resume=` comes after the run's own overrides.
        program: how the program is started, for hints.

    Returns:
        The command line that continues the run, and the run's record; None if nothing is resumed.

    Raises:
        UserError: if that is not the directory of a run, or of one that cannot be continued from here.
    """
    resumed = [override.partition("=")[2] for override in arguments.overrides if override.startswith("resume=")]
    if not resumed:
        return arguments, None
    if arguments.multirun:
        raise UserError("resume= continues one run; a multirun is continued by its own command, as it was typed")
    if len(resumed) > 1:
        raise UserError(f"resume= continues one run, and here are {len(resumed)}; continue them one by one")
    (given,) = resumed
    rest = [override for override in arguments.overrides if not override.startswith("resume=")]
    for override in rest:
        if _key(override) in ("hydra.run.dir", "hydra.output_subdir", "hydra.mode"):
            raise UserError(f"{override}: the run that is continued stays where and what it is; leave this out")
    directory = Path(os.path.expanduser(given)).resolve()
    if not (directory / FILE).exists():
        if (directory / SWEEP).is_file():
            how = _typed(directory, program)
            raise UserError(f"resume={given}: this is a sweep, which its own command continues{how}")
        raise UserError(f"resume={given}: not the directory of a run, which holds a {FILE}")
    refuse_links(directory)
    try:
        record = read(directory / FILE)
    except UserError as error:
        raise UserError(
            f"resume={given}: {error}; type the run's own settings again, with {quoted('hydra.run.dir', given)}"
        ) from error
    if record.config_dir is not None and arguments.config_dir != Path(os.path.abspath(record.config_dir)):
        flag = shlex.quote(f"--config-dir={record.config_dir}")
        raise UserError(
            "this run uses files of another folder, which name the code to run; if the folder is yours, write "
            f"{program} {flag} {shlex.join(arguments.overrides)}"
        )
    try:
        own = _recorded(record, rest)
        to_type = to_be_typed(own)
    except (UserError, ValueError) as error:
        raise UserError(f"resume={given}: the command in {FILE} is damaged: {error}") from error
    if to_type:
        raise UserError(
            f"resume={given}: by its {FILE} this run has {' '.join(to_type)}, which may run code, contact a server "
            "or read the environment; if that is yours, type it as well: "
            f"{program} {shlex.join([*arguments.argv, *to_type])}"
        )
    _go_to(directory, record, given)
    # An experiment may want a multirun; the one job of it that is resumed is a run. What it was started with stays on
    # record, whatever comes of this attempt.
    fixed = ("hydra.mode=RUN", quoted("hydra.run.dir", str(directory)), "hydra.output_subdir=null")
    return replace(arguments, overrides=(*own, *rest, *fixed)), record


def _typed(sweep: Path, program: str) -> str:
    """Return the command of a sweep as its folder has it, behind a colon; empty if the file cannot be read."""
    try:
        hydra = yaml.safe_load((sweep / SWEEP).read_text(encoding="utf-8"))["hydra"]
        own = [*hydra["overrides"]["hydra"], *hydra["overrides"]["task"]]
        runtime = hydra["runtime"]
        folders = [source["path"] for source in runtime["config_sources"] if source["provider"] == "command-line"]
        cwd = str(runtime["cwd"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError):
        return ""
    kept = [part for part in map(str, own) if not re.match(r"[+]*hydra\.(mode|sweep\.dir)=", part)]
    flags = [f"--config-dir={str(folder).removeprefix('file://')}" for folder in folders]
    place = "" if cwd == os.getcwd() else f"cd {shlex.quote(cwd)} && "
    return f": {place}{program} -m {shlex.join([*flags, *kept, quoted('hydra.sweep.dir', str(sweep))])}"


def refuse_other_settings(record: Result, command: Command, typed: Arguments, program: str) -> None:
    """Refuse to continue a run with settings that would make it another one.

    Args:
        record: the run's.
        command: what would continue it.
        typed: the command line, as typed.
        program: how the program is started, for hints.
    """
    _refuse_composed_targets(OmegaConf.to_container(command.cfg, resolve=False), plain(command.cfg))
    if record.fingerprint == identity.fingerprint(plain(command.cfg)):
        return
    more = [override for override in typed.overrides if not override.startswith("resume=")]
    if more:
        own = _recorded(record, more)
        raise UserError(
            f"with {shlex.join(more)} this would be another run than the one to be continued; leave that out, or start "
            f"a run of its own: {program} {shlex.join([*typed.flags, *own, *more])}"
        )
    raise UserError(
        "the settings of this run are no longer what they were: a file of conf/ or the teacher's weights have changed "
        "since it was started; start it anew"
    )


def to_be_typed(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that a record alone does not bring into a run: a stranger may have written it.

    These are Hydra's own settings, what names a class or function, what calls a resolver (such as `${oc.env:NAME}`),
    a group outside of our folders, and the settings of a logger, which may name a server.

    Raises:
        UserError: for what is no override, such as an option.
    """
    return [str(override.input_line) for override in parse(overrides) if not _is_plain(override)]


def _is_plain(override: Override) -> bool:
    # With its package, as in recipe/optimizer@teacher_recipe.optimizer.
    names = re.split(r"[./@:]", str(override.get_key_element()).lstrip("+~"))
    reserved = any(name in ("", "hydra", "resume") or _names_code(name) for name in names)
    value = None if override.is_delete() else override.value()
    of_logger = names[0] == "logger" and (len(names) > 1 or isinstance(value, dict))
    if reserved or of_logger or override.is_sweep_override():
        return False
    return not any(re.search(r"\$\{[^}]*:", text) or (is_key and _names_code(text)) for text, is_key in _texts(value))


def _names_code(name: str) -> bool:
    """Whether a setting may name a class or function: those of Hydra, and `target` of `student=custom`."""
    return name.startswith("_") or name == "target"


def _texts(value: Any) -> Iterator[tuple[str, bool]]:
    """Yield every key and value in the value of an override as text, and whether it is a key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(getattr(key, "text", key)), True
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    else:
        yield str(getattr(value, "text", value)), False


def _refuse_composed_targets(raw: Any, resolved: Any) -> None:
    """Refuse the name of a class that settings complete by more than a word, as in `scripts.mistakes.${mistake}`.

    Otherwise such a setting would lead to any function, as in `scripts.mistakes.torch.hub.load`.
    """
    if isinstance(raw, dict) and isinstance(resolved, dict):
        for name, value in raw.items():
            _refuse_composed_targets(value, resolved[name])
            if name == "_target_" and isinstance(value, str) and "${" in value:
                fixed = map(re.escape, re.split(r"\$\{[^{}]*\}", value))
                if not re.fullmatch(r"[A-Za-z]\w*".join(fixed), str(resolved[name])):
                    raise UserError(f"this run would call {resolved[name]}, and {value} is to name a class there")
    elif isinstance(raw, list) and isinstance(resolved, list):
        for part, whole in zip(raw, resolved, strict=True):
            _refuse_composed_targets(part, whole)


def _go_to(directory: Path, record: Result, given: str) -> None:
    """Change to where the run was started, which is what its paths are relative to."""
    origin = record.cwd
    if not origin:  # a record of an older version
        try:
            origin = str(yaml.safe_load((directory / ".hydra" / "hydra.yaml").read_text())["hydra"]["runtime"]["cwd"])
        except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError, RecursionError):
            return
    here = os.getcwd()
    try:
        os.chdir(origin)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"resume={given}: the run was started in {origin}, which cannot be entered: {reason}"
        ) from error
    if not os.path.samefile(here, "."):
        _import_nothing_from_here(here)


def _import_nothing_from_here(before: str) -> None:
    """Keep processes that are started later from taking modules from a working directory that a record named.

    This process has the folder of the program in their place, or that in which it was started, by its whole path.

    Args:
        before: the directory that the program was started in.
    """
    sys.argv[0] = os.path.join(before, sys.argv[0])  # data-parallel training starts the program again
    os.environ["PYTHONSAFEPATH"] = "1"
    folders = [str(Path(__file__).resolve().parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.join(before, folder) for folder in folders if folder)


def _recorded(record: Result, replacing: Iterable[str]) -> list[str]:
    """Return the overrides that a run was started with, without those of settings that others are replacing.

    Raises:
        UserError, ValueError: for a command that is damaged.
    """
    replaced = {_key(override) for override in replacing}
    return [override for override in shlex.split(record.command or "") if _key(override) not in replaced]


def _key(override: str) -> str:
    (parsed,) = parse([override])
    return str(parsed.get_key_element())
