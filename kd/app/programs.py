"""The command line of the programs beside `train.py` that run trainings, and what programs print to go on with."""

import os
import re
from collections.abc import Iterable, Sequence

from kd.app.arguments import NAME, in_shell, read_arguments, refuse_wrong_choices, sweeps
from kd.errors import UserError


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
