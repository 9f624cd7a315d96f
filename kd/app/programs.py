"""The command line of the programs beside `train.py` that run trainings, and what programs print to go on with."""

import argparse
import os
import re
from collections.abc import Iterable
from typing import NoReturn

from kd.app.arguments import NAME, in_shell
from kd.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of a program."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` instead of printing the usage and leaving with exit code 2."""
        raise UserError(f"{message}; see --help")


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
