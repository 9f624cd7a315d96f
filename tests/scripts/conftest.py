from collections.abc import Callable
from subprocess import CompletedProcess

import pytest


@pytest.fixture
def one_line() -> Callable[[CompletedProcess[str]], str]:
    """Takes the outcome of a program that was asked for what cannot be; returns the one line that it said."""

    def one_line(done: CompletedProcess[str]) -> str:
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        program = done.args[1].name
        assert done.stderr.startswith(f"{program}: ")
        return done.stderr

    return one_line
