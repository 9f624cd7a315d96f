"""Errors that a user can fix, as opposed to bugs."""

import sysconfig
import traceback
from pathlib import Path

BUGS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, SyntaxError)
"""What code raises that is wrong itself, and not what it was given."""
LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def described(error: BaseException) -> str:
    """Return type and message of an error with the innermost line that is in no library, in one line."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith((*LIBRARIES, "<")):
            place = f" ({Path(file).name}:{line})"
    return f"{type(error).__name__}: {reason_of(error)}{place}"


class UserError(Exception):
    """A mistake or a missing thing on the user's side.

    Its message is one or two lines that name what is wrong and how to fix it; `train.py` and the scripts
    print it without a traceback and exit with 1.
    """


class RefusedError(UserError):
    """A mistake that was found before a run did anything."""


class DivergedError(UserError):
    """A training whose losses or weights are no longer finite."""
