"""The command line of the programs beside `train.py` that run trainings, and what programs print to go on with."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from kd.app.arguments import NAME, in_shell, parse, read_arguments, refuse_wrong_choices, sweeps
from kd.app.compose import VERSION_BASE, compose, conf_dir
from kd.app.explain import EXPECTED, LAUNCHERS, explain
from kd.errors import UserError
from kd.terminal import outcome


def run_program(
    name: str,
    arguments: Callable[[], argparse.Namespace],
    work: Callable[[argparse.Namespace], None],
    more: tuple[type[Exception], ...] = (),
) -> int:
    """Run a program that takes settings of ours, and return its exit code.

    It is 1 for a mistake, told in one line, and 130 for an interruption by Ctrl-C.

    Args:
        name: of the program, as in "export.py".
        arguments: returns its command line.
        work: what it does.
        more: further errors that are told in a line, such as the RuntimeError of a GPU without memory.
    """
    return outcome(name, lambda: work(arguments()), (*EXPECTED, *more), lambda error: explain(error, sys.argv[1:]))


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add what programs have in common that run a trained network on labelled images: network, settings, trust."""
    parser.add_argument("network", metavar="RUN_OR_WEIGHTS", help="run directory, or its file of weights")
    parser.add_argument("settings", nargs="*", metavar="data.NAME=VALUE", help="the images, if not the run's own")
    parser.add_argument("--trust", action="store_true", help="weights of your own, whose network any code may build")


def check_settings(
    overrides: Sequence[str], several: str = "give a single value", config_dir: Path | None = None
) -> None:
    """Refuse settings of one run that `train.py` would refuse by their form alone.

    Args:
        overrides: the settings, as typed.
        several: what to do instead of giving several values.
        config_dir: a folder of configuration files beside our own.

    Raises:
        UserError: for what is not NAME=VALUE, a file that is not there, or several values.
    """
    refuse_wrong_choices(read_arguments(overrides).overrides, config_dir)
    for override in sweeps(overrides):
        raise UserError(f"{override}: {several}")


def check_data_settings(overrides: Sequence[str]) -> None:
    """Refuse settings of one run, as `check_settings` does, and those of anything but the data.

    Raises:
        UserError: naming the setting.
    """
    check_settings(overrides)
    for override, parsed in zip(overrides, parse(overrides), strict=True):
        if re.split(r"[./@]", str(parsed.key_or_group))[0] != "data":
            raise UserError(f"{override}: only settings of the data are taken here, such as data.root=DIR")


def check_launchers(names: Iterable[str]) -> None:
    """Refuse what is no launcher, and one whose package is not installed, before any of them runs.

    Args:
        names: as `hydra/launcher=NAME` takes them.

    Raises:
        UserError: naming the launchers that there are, or the package.
    """
    with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
        known = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    for name in names:
        installable = name.partition("_")[0] in LAUNCHERS  # `explain` names the extra that brings it
        if name not in known and not installable:
            apart = "; write settings before launchers" if "=" in name else ""
            raise UserError(f"there is no launcher {name}; there are {', '.join(known)}{apart}")
        try:
            compose([f"hydra/launcher={name}"])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"launcher {name}: {explain(error, [])}") from error


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
