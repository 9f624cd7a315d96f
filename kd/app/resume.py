"""`resume=RUN_DIR`: from the directory of a run to the command that continues it. No torch import."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from kd.app import identity
from kd.app.arguments import Arguments, parse, quoted
from kd.app.compose import Command, plain
from kd.errors import UserError
from kd.runs.results import FILE, Result, read


def expand_resume(arguments: Arguments, program: str = "python train.py") -> tuple[Arguments, Result | None]:
    """Replace `resume=RUN_DIR` by the overrides that the run was started with, and go to where it was started from.

    Args:
        arguments: the command line. What it gives beside `resume=` comes after the run's own overrides.
        program: how the program is started, for hints.

    Returns:
        The command line that continues the run, and the run's record; None if nothing is resumed.

    Raises:
        UserError: if that is not the directory of a run, or of one that cannot be continued from here.
    """
    given = [override.partition("=")[2] for override in arguments.overrides if override.startswith("resume=")]
    if not given:
        return arguments, None
    if arguments.multirun:
        raise UserError("resume= continues one run; a multirun is continued by its own command, as it was typed")
    if len(given) > 1:
        raise UserError(f"resume= continues one run, and here are {len(given)}; continue them one by one")
    rest = [override for override in arguments.overrides if not override.startswith("resume=")]
    for override in rest:
        if _key(override) in ("hydra.run.dir", "hydra.output_subdir", "hydra.mode"):
            raise UserError(f"{override}: the run that is continued stays where and what it is; leave this out")
    directory = Path(given[-1]).expanduser().resolve()
    if not (directory / FILE).exists():
        raise UserError(f"resume={given[-1]}: not the directory of a run, which holds a {FILE}")
    try:
        record = read(directory / FILE)
    except UserError as error:
        raise UserError(
            f"resume={given[-1]}: {error}; type the run's own settings again, with {quoted('hydra.run.dir', given[-1])}"
        ) from error
    if record.config_dir is not None and arguments.config_dir != Path(record.config_dir):
        flag = shlex.quote(f"--config-dir={record.config_dir}")
        raise UserError(
            f"this run uses files of another folder; write {program} {flag} {shlex.join(arguments.overrides)}"
        )
    _go_to(directory, record, given[-1])
    replaced = {_key(override) for override in rest}
    try:
        typed = shlex.split(record.command or "")
    except ValueError as error:
        raise UserError(f"resume={given[-1]}: the command in {FILE} is damaged: {error}") from error
    own = [override for override in typed if _key(override) not in replaced]
    # An experiment may want a multirun; the one job of it that is resumed is a run. What it was started with stays on
    # record, whatever comes of this attempt.
    again = ("hydra.mode=RUN", quoted("hydra.run.dir", str(directory)), "hydra.output_subdir=null")
    return replace(arguments, overrides=(*own, *rest, *again)), record


def refuse_other_settings(record: Result, command: Command, argv: Sequence[str], program: str) -> None:
    """Refuse to continue a run with settings that would make it another one.

    Args:
        record: the run's.
        command: what would continue it.
        argv: what was typed.
        program: how the program is started, for hints.
    """
    if record.fingerprint == identity.fingerprint(plain(command.cfg)):
        return
    more = [argument for argument in argv if not argument.startswith("resume=")]
    if more:
        replaced = {_key(argument) for argument in more if "=" in argument and not argument.startswith("-")}
        own = [override for override in shlex.split(record.command or "") if _key(override) not in replaced]
        raise UserError(
            f"with {shlex.join(more)} this would be another run than the one to be continued; leave that out, or start "
            f"a run of its own: {program} {shlex.join([*own, *more])}"
        )
    raise UserError(
        "the settings of this run are no longer what they were: a file of conf/ or the teacher's weights have changed "
        "since it was started; start it anew"
    )


def _go_to(directory: Path, record: Result, given: str) -> None:
    """Change to where the run was started, which is what its paths are relative to."""
    origin = record.cwd
    if not origin:  # a record of an older version
        try:
            origin = yaml.safe_load((directory / ".hydra" / "hydra.yaml").read_text())["hydra"]["runtime"]["cwd"]
        except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
            return
    try:
        os.chdir(origin)
    except OSError as error:
        raise UserError(
            f"resume={given}: the run was started in {origin}, which cannot be entered: {error.strerror}"
        ) from error


def _key(override: str) -> str:
    (parsed,) = parse([override])
    return str(parsed.get_key_element())
