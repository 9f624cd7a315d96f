import subprocess
import sys

from tests.common import ROOT


def test_flat_measures_a_process_over_its_jobs():
    """Five here, of which nothing can be said; `python tests/sweeps/flat.py` for 200 jobs and 10,000 steps."""
    command = [sys.executable, ROOT / "tests" / "sweeps" / "flat.py", "jobs", "--jobs=5", "logger=none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7
    assert done.stdout.endswith(" open files beside the second, 5 in all\n")
