from collections.abc import Callable
from subprocess import CompletedProcess

import pytest


@pytest.fixture
def one_line() -> Callable[[CompletedProcess[str]], str]:
    """Checks that a script ended with a one-line error, and returns that line."""

    def one_line(done: CompletedProcess[str]) -> str:
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        program = done.args[1].name
        assert done.stderr.startswith(f"{program}: ")
        return done.stderr

    return one_line
