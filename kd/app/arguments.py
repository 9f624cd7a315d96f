"""The command line before Hydra composes from it: its form, and the groups and files that it names. No torch import."""

import difflib
import os
import re
import shlex
import unicodedata
from argparse import ArgumentError, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException

from kd.app.compose import conf_dir, escaped, refuse_bombs
from kd.errors import UserError

OPTIONAL = ("experiment", "debug")
"""Groups of which no file may be chosen."""

TOP_LEVEL = (*OPTIONAL, "method")
"""Groups whose files hold top-level settings."""

NAME = r"[A-Za-z_][\w./@-]*"


@dataclass(frozen=True)
class Arguments:
    """A command line, taken apart."""

    flags: tuple[str, ...]
    """Hydra's own, as in ("-m", "--config-dir=mine")."""
    overrides: tuple[str, ...]
    """Everything else, each NAME=VALUE or ~NAME."""
    runs: bool
    """Whether it trains something, and does not only print."""
    multirun: bool
    config_dir: Path | None

    @property
    def argv(self) -> list[str]:
        """The same command line, flags first: Hydra's parser takes none between two overrides."""
        return [*self.flags, *self.overrides]


def read_arguments(argv: Sequence[str]) -> Arguments:
    """Take a command line apart.

    Raises:
        UserError: for what is neither an option nor NAME=VALUE, with what was probably meant.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_intermixed_args(list(argv))
    except ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}; see --hydra-help") from error
    for argument in unknown:
        raise UserError(_unknown_flag(argument, argv, [*parser._option_string_actions]))
    if known.config_path:
        raise UserError("--config-path: our own settings are needed; give a folder with yours as --config-dir=DIR")
    if known.config_name:
        raise UserError(
            "--config-name: our own config.yaml is needed; put yours into experiment/NAME.yaml of a folder, and give "
            "--config-dir=DIR experiment=NAME"
        )
    if known.experimental_rerun:
        raise UserError("--experimental-rerun would run what is in a pickle; use resume=RUN_DIR instead")
    overrides: list[str] = list(known.overrides)
    for place in range(len(overrides)):
        _refuse_malformed(overrides, place)
    prints = known.cfg or known.info or known.hydra_help or known.shell_completion or known.help
    if known.resolve and not known.cfg:
        raise UserError("--resolve goes with --cfg job")
    if known.package and not known.cfg:
        raise UserError("--package goes with --cfg job")
    folder = known.config_dir
    if folder is not None:
        known.config_dir = os.path.abspath(os.path.expanduser(folder))  # Hydra expands no "~"
        if not (folder and os.path.isdir(known.config_dir)):
            raise UserError(f"--config-dir={folder}: no such folder")
    if known.multirun and (prints or known.run):
        raise UserError("one of --run, --multirun, --cfg and --info at a time")
    return Arguments(
        flags=tuple(_flags(known)),
        overrides=tuple(overrides),
        runs=not prints,
        multirun=bool(known.multirun),
        config_dir=None if folder is None else Path(known.config_dir),
    )


def _flags(known: Namespace) -> Iterator[str]:
    for name, value in vars(known).items():
        if name != "overrides" and value not in (None, False):
            yield f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")


def _unknown_flag(argument: str, argv: Sequence[str], flags: Sequence[str]) -> str:
    name, _, value = argument.lstrip("-").partition("=")
    following = [*argv, ""][list(argv).index(argument) + 1] if argument in argv else ""
    similar = difflib.get_close_matches(argument.partition("=")[0], flags, 1, 0.75)
    if similar:
        return f"there is no option {argument}; did you mean {similar[0]}?"
    value = value or (following if following and not following.startswith("-") and "=" not in following else "VALUE")
    if re.fullmatch(NAME, name):
        return f"there is no option {argument}; settings have no dashes: {name.replace('-', '_')}={value}"
    return f"there is no option {argument}; settings are given as NAME=VALUE, see --help"


def _refuse_malformed(overrides: Sequence[str], place: int) -> None:
    argument, following = overrides[place], overrides[place + 1 :]
    before = overrides[place - 1] if place else ""
    after = following[0] if following else ""
    name, equals, value = argument.partition("=")
    if value == "???":
        raise UserError(f"{argument} is no value; give {name}=VALUE, or leave it out")
    if name.lstrip("+") == "resume" and name != "resume":
        raise UserError(f"write {argument.lstrip('+')}, without +")
    if equals and name.strip("+~ ") and (value or not following or "=" in after):
        if not value:
            raise UserError(f"{argument} has no value; give {argument}VALUE, or leave it out")
        return
    if not equals and argument.startswith("~") and len(argument) > 1:
        return
    if argument in ("help", "version", "multirun", "cfg"):
        raise UserError(f"'{argument}' is not a setting; did you mean --{argument}?")
    if argument == "resume":
        raise UserError("resume is given as resume=RUN_DIR, the directory of the run that is to be continued")
    if before.endswith(",") and "=" in before:
        joined = before + "".join(overrides[place:])
        raise UserError(f"'{argument}' is not a setting; for several values write -m {joined}, without spaces")
    if re.fullmatch(NAME, argument.strip("=")) and (after.startswith("=") or equals):
        value = [*following, "", ""][1 if after == "=" else 0].lstrip("=") or "VALUE"
        raise UserError(f"'{argument}' is not a setting; write {argument.strip('=')}={value}, without spaces")
    if re.fullmatch(NAME, argument) and after and "=" not in after and "=" not in before:
        raise UserError(f"'{argument}' is not a setting; write {argument}={after}")
    if "=" in before:
        whole = in_shell(f"{before} {argument}")
        raise UserError(f"'{argument}' is not a setting; for a value with spaces write {whole}")
    example = f"{argument}=VALUE" if re.fullmatch(NAME, argument) else "NAME=VALUE"
    raise UserError(f"'{argument}' is not a setting; settings are given as {example}, see --help")


def quoted(name: str, value: str) -> str:
    """An override that gives a setting this text, whatever characters are in it."""
    return f"{name}='{escaped(value)}'"


def in_shell(text: str) -> str:
    """A text as it is typed in a shell, between double quotes where these do."""
    needs_quotes = shlex.quote(text) != text
    return f'"{text}"' if needs_quotes and not set(text) & set('"$`\\!') else shlex.quote(text)


def parse(overrides: Iterable[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar.

    Raises:
        UserError: naming the one that cannot be read, and how to quote it.
    """
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
            if not re.fullmatch(NAME, str(parsed[-1].key_or_group)):
                raise HydraException("no name")
        except (HydraException, ValueError, RecursionError) as error:
            name, _, value = override.partition("=")
            plain = unicodedata.normalize("NFKC", value).replace("\N{MINUS SIGN}", "-").lstrip("=")
            apart = re.split(rf"[,;]\s*(?={NAME}=)", plain)
            if len(apart) > 1:
                raise UserError(f"{override}: settings are apart from each other: {name}={' '.join(apart)}") from error
            if plain != value and re.fullmatch(r"[\w.+-]+", plain):
                raise UserError(f"{override}: write {name}={plain}") from error
            if not re.fullmatch(rf"[~+]*{NAME}", name):
                raise UserError(f"{override}: '{name}' is no name of a setting; see --help") from error
            items = value[1:-1].split(",") if re.fullmatch(r"\[[^][{}'\"]+\]", value) else []
            listed = ",".join(f"'{escaped(item.strip())}'" for item in items)
            better = in_shell(f"{name}=[{listed}]" if items else quoted(name, value))
            raise UserError(f"{override}: Hydra cannot read this value; if it is a text, write {better}") from error
    return parsed


def refuse_wrong_choices(overrides: Iterable[str], config_dir: Path | None = None) -> None:
    """Refuse a file that is not there, values where files are chosen, and files that stand for millions of values.

    Args:
        overrides: as typed.
        config_dir: a folder of configuration files beside our own.

    Raises:
        UserError: with the files that there are.
    """
    parsed = parse(overrides)
    added = [*([config_dir] if config_dir else []), *_search_path(parsed)]
    for folder in added:
        refuse_bombs(folder)
    folders = [conf_dir(), *added]
    for override in parsed:
        name = str(override.key_or_group)
        files = choices(name, folders)
        if name.startswith("hydra"):
            continue
        if files:
            _check_choice(override, name, files)
            _refuse_files(override, name, folders)
            continue
        _refuse_no_setting(override, name, parsed)
        if "." in name:
            _refuse_dotted_group(override, name, folders)


def choices(group: str, folders: Iterable[Path]) -> list[str]:
    """Return the files of a group as they are typed, in alphabetical order; experiments may lie in folders of theirs.

    Folders called `shared` hold parts of other files, which are no choice.
    """
    files = {path.stem for folder in folders for path in folder.glob(f"{group}/*.yaml")}
    if group != "experiment":
        return sorted(files)
    paths = [
        path.relative_to(folder / group).with_suffix("")
        for folder in folders
        for depth in ("*/*", "*/*/*")
        for path in folder.glob(f"{group}/{depth}.yaml")
    ]
    return [*sorted(files), *sorted({path.as_posix() for path in paths if "shared" not in path.parts[:-1]})]


def _refuse_no_setting(override: Override, name: str, parsed: Sequence[Override]) -> None:
    """Refuse Hydra's own keys of a node, and to leave a setting out where its class is not another one, either."""
    node, _, last = name.rpartition(".")
    if last.startswith("_") and last != "_target_":
        raise UserError(f"{name} is not a setting, it is for Hydra; leave it out")
    others = [str(other.key_or_group) for other in parsed if not other.is_delete()]
    if override.is_delete() and node and f"{node}._target_" not in others:
        raise UserError(f"~{name}: the library's default would take its place; give {name}=VALUE, or leave this out")
    if override.is_delete() and not node and "/" not in name and not override.package:
        raise UserError(f"~{name}: no setting can be left out; give {name}=VALUE, or leave this out")


def _check_choice(override: Override, name: str, files: list[str]) -> None:
    listed = ", ".join(dict.fromkeys(f"{file.rpartition('/')[0]}/..." if "/" in file else file for file in files))
    if override.is_add() and not override.package:
        raise UserError(f"+{name}: write {str(override.input_line).lstrip('+')}, without +")
    if override.is_delete():
        raise UserError(f"~{name}: a run needs one of {listed}" if name not in OPTIONAL else f"~{name}: leave it out")
    for choice in _values(override):
        if choice is None and name in OPTIONAL:
            raise UserError(f"{name}=null is what there is without it; leave it out")
        if choice is None and "none" in files:
            raise UserError(f"{name}=null: write {name}=none")
        if choice in files or isinstance(choice, dict):
            continue
        similar = difflib.get_close_matches(str(choice), files, 1)
        meant = f"; did you mean {name}={similar[0]}?" if similar else "."
        shown = "null" if choice is None else choice
        raise UserError(f"there is no {name}={shown}{meant} There are {listed}")


def _refuse_files(override: Override, group: str, folders: Sequence[Path]) -> None:
    """Refuse a file that Hydra would pass over, as the first folder with such a file is ours, or put elsewhere."""
    ours, *others = (folder.resolve() for folder in folders)
    for choice in _values(override):
        for file in (folder / group / f"{choice}.yaml" for folder in others if folder != ours):
            if not file.is_file():
                continue
            if (ours / group / f"{choice}.yaml").is_file():
                raise UserError(f"{file} has the name of one of ours, which would be taken in its place; rename it")
            if group in TOP_LEVEL and not re.search(r"^# *@package +_global_", _head(file), re.MULTILINE):
                raise UserError(
                    f"{file} has to begin with the line '# @package _global_', or its settings are elsewhere"
                )


def _head(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(2000)
    except (OSError, UnicodeDecodeError):
        return "# @package _global_"  # told by whatever reads it whole


def _values(override: Override) -> list[Any]:
    """The value, or those of a sweep, without quotes; none of a sweep over patterns, which finds files by itself."""
    value = override.value()
    if override.is_sweep_override() and not isinstance(value, ChoiceSweep):
        return []
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    return [part.text if isinstance(part, QuotedString) else part for part in values]


def _refuse_dotted_group(override: Override, name: str, folders: Sequence[Path]) -> None:
    """Refuse text for a node that a file fills: recipe.optimizer=adamw, where recipe/optimizer=adamw is meant."""
    last = name.rpartition(".")[2]
    for folder in folders:
        for group in sorted(path for path in folder.glob(f"*/{last}") if path.is_dir()):
            chosen = str(group.relative_to(folder))
            if not override.is_delete() and not isinstance(override.value(), dict):
                target = chosen if chosen.replace("/", ".") == name else f"{chosen}@{name}"
                files = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
                raise UserError(f"{name} is chosen by its file: write {target}=NAME, NAME one of {files}")


def _search_path(parsed: Iterable[Override]) -> list[Path]:
    """Folders that the command line adds by itself."""
    added = [override.value() for override in parsed if str(override.key_or_group) == "hydra.searchpath"]
    texts = [str(getattr(part, "text", part)) for value in added if isinstance(value, list) for part in value]
    return [Path(text.removeprefix("file://")) for text in texts if "pkg://" not in text]


def sweeps(overrides: Iterable[str]) -> list[str]:
    """The overrides that give several values."""
    return [str(override.input_line) for override in parse(overrides) if override.is_sweep_override()]
