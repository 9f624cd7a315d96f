"""Every script, started as a shell starts it."""

import subprocess
import sys

import pytest

from tests.common import ROOT

PROGRAMS = sorted(path for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_script_starts_and_has_help(program, tmp_path):
    done = subprocess.run([sys.executable, program, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {program.name}" in done.stdout
    assert not list(tmp_path.iterdir())
