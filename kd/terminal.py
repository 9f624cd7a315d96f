"""What all programs have in common at the terminal: one line for a mistake in the command line, and how they print."""

import argparse
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from kd.errors import UserError
from kd.files import replaced

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds that a wait takes before its progress is shown."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others of a program."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` instead of printing the usage and leaving with exit code 2."""
        raise UserError(f"{message}; see --help")


def visible(text: object) -> str:
    r"""Write characters that have no shape as escapes, a line's end as "\n" and ESC as "\x1b".

    A name can then neither break a table nor control a terminal, and can be encoded: surrogates, which stand for bytes
    that are not UTF-8, are among them.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def outcome(
    name: str,
    work: Callable[[], int | None],
    errors: tuple[type[Exception], ...] = (UserError, OSError),
    explained: Callable[[Exception], str] | None = None,
) -> int:
    """Do what a program does, and return its exit code: the work's own, or 0; 1 for a mistake; 130 for Ctrl-C.

    HYDRA_FULL_ERROR=1 requests the traceback of a mistake.

    Args:
        name: of the program, before what is wrong with it: "report.py".
        work: reads the command line, and does it all.
        errors: what is told in one line; other errors are raised.
        explained: makes that line, fit for a terminal; by default what the error says, of a file its name and why.
    """
    tolerant_stdout()
    try:
        return work() or 0
    except KeyboardInterrupt:
        return 130
    except errors as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"{name}: {visible(_reason(error)) if explained is None else explained(error)}", file=sys.stderr)
        return 1


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def positive(text: str) -> int:
    """Return a number of things, at least 1, as a type for `Parser.add_argument`."""
    return whole(text, 1)


def whole(text: str, least: int = 0) -> int:
    """Return a whole number that is at least `least`, such as a seed, as a type for `Parser.add_argument`."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text}") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
    return number


def file(text: str) -> Path:
    """Return the path of a file that can be written later, as a type for `Parser.add_argument`."""
    path = Path(os.path.expanduser(text))
    try:
        if not path.parent.is_dir() or path.is_dir():
            wrong = "is a folder" if path.is_dir() else f"no folder {path.parent}"
            raise argparse.ArgumentTypeError(f"{text}: {wrong}")
    except OSError as error:  # a name that is too long, a folder without permission
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    return path


def save(path: Path, text: str) -> None:
    """Write a file that was asked for on the command line, once its text has been printed.

    Raises:
        UserError: naming the file and the reason, if it cannot be written.
    """
    try:
        if path.is_file() or not path.exists():
            with replaced(Path(os.path.realpath(path))) as temporary:  # a link stays one, such as /dev/stdout
                temporary.write_text(text, encoding="utf-8")
        else:  # a pipe or a device
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def tolerant_stdout() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of ending with a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def end_with_the_pipe() -> None:
    """Let a pipe's end, as in `| head`, end this process quietly: for programs that do nothing but print."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def with_progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; once that takes longer than `PATIENCE`, with a progress bar, which goes when all are done.

    There is none where it would disturb, see `shows_progress`.

    Args:
        items: what is worked on, one after the other.
        what: what is done to them, as in "decoding images".
        total: their number; by default their `len`, if they have one.
    """
    if not shows_progress():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    total = len(items) if total is None and isinstance(items, Sized) else total
    began, bar = time.monotonic(), None
    try:
        for done, item in enumerate(items):
            if bar is None and time.monotonic() - began > PATIENCE:
                bar = Progress(console=Console(stderr=True), transient=True)
                bar.add_task(what, total=total)
                bar.start()
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show what is being done, where `with_progress` would, if the block takes longer than `PATIENCE`."""
    if not shows_progress():
        yield
        return
    from rich.console import Console

    status = Console(stderr=True).status(what)
    timer = threading.Timer(PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def shows_progress() -> bool:
    """Return whether progress may be shown: on a terminal, by the main thread, unless log lines go to files only.

    So they do in jobs that run side by side.
    """
    handlers = logging.getLogger().handlers
    to_files_only = bool(handlers) and all(isinstance(handler, logging.FileHandler) for handler in handlers)
    return threading.current_thread() is threading.main_thread() and sys.stderr.isatty() and not to_files_only
