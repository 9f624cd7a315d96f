"""Errors that a user can fix, as opposed to bugs."""


class UserError(Exception):
    """A mistake or a missing thing on the user's side.

    Its message is one or two lines that name what is wrong and how to fix it; `train.py` and the scripts
    print it without a traceback and exit with 1.
    """


class RefusedError(UserError):
    """A mistake that was found before a run did anything."""


class DivergedError(UserError):
    """A training whose losses or weights are no longer finite."""
