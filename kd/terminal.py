"""What all programs have in common at the terminal: one line for a mistake in the command line, and how they print."""

import argparse
import io
import signal
import sys
from pathlib import Path
from typing import NoReturn

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


def tolerant_stdout() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of ending with a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def end_with_the_pipe() -> None:
    """Let a pipe's end, as in `| head`, end this process quietly: for programs that do nothing but print."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
