import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

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


@pytest.fixture
def on_a_run(tmp_path, monkeypatch, capsys, finished) -> Callable[[ModuleType], Callable[..., tuple[int, str, str]]]:
    """Makes a script a function, in a folder with a run in run/; it returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "run", "run")

    def on_a_run(script: ModuleType) -> Callable[..., tuple[int, str, str]]:
        def program(*arguments: object) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", [Path(str(script.__file__)).name, *map(str, arguments)])
            return script.main(), *capsys.readouterr()

        return program

    return on_a_run
