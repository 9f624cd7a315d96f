"""The command line of the programs beside `train.py` that run trainings, and what programs print to go on with."""

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from kd.app.arguments import NAME, in_shell, read_arguments, refuse_wrong_choices, sweeps
from kd.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of a program."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` instead of printing the usage and leaving with exit code 2."""
        raise UserError(f"{message}; see --help")


def positive(text: str) -> int:
    """Return a number of things, at least 1, as a type for `Parser.add_argument`."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def file(text: str) -> Path:
    """Return the path of a file that can be written later, as a type for `Parser.add_argument`."""
    path = Path(text).expanduser()
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: {'is a folder' if path.is_dir() else f'no folder {path.parent}'}")
    return path


def check_settings(overrides: Sequence[str], several: str = "give a single value") -> None:
    """Refuse settings of one run that `train.py` would refuse by their form alone.

    Args:
        overrides: the settings, as typed.
        several: what to do instead of giving several values.

    Raises:
        UserError: for what is not NAME=VALUE, a file that is not there, or several values.
    """
    refuse_wrong_choices(read_arguments(overrides).overrides)
    for override in sweeps(overrides):
        raise UserError(f"{override}: {several}")


def refuse_setting(argument: str, program: str) -> None:
    """Refuse a setting in the place of a folder: where the folder was forgotten, it would be made under that name.

    Args:
        argument: what stands in the folder's place.
        program: the program with its folder, as in "scripts/search.py SEARCH_DIR".

    Raises:
        UserError: if it has the form NAME=VALUE; "./NAME=VALUE" is a folder.
    """
    if re.match(rf"[~+]*{NAME}=", argument):
        raise UserError(f"give the folder first: python {program} {in_shell(argument)} ...")


def command_line(arguments: Iterable[str]) -> str:
    """Return arguments as they are typed in bash, control characters escaped: they would act on the terminal."""
    return " ".join(
        in_shell(part) if part.isprintable() else f"$'{''.join(map(_escaped, part))}'" for part in arguments
    )


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
