import subprocess
from pathlib import Path
from types import SimpleNamespace

from tests import processes
from tests.common import ROOT
from tests.sweeps import flat


def test_flat_measures_a_process_over_its_jobs(monkeypatch, capsys):
    """Five here, of which nothing can be said; `python tests/sweeps/flat.py` for 200 jobs and 10,000 steps."""
    started = []

    def start(command, *, cwd, stdout, stderr):
        started.append(processes.start(Path(command[1]), *command[2:], cwd=cwd, merged=True))
        return started[-1]

    monkeypatch.setattr(flat, "subprocess", SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT))
    flat.main(["jobs", "--jobs=5", "logger=none"])
    printed = capsys.readouterr().out
    (process,) = started
    assert "5 done in " in process.communicate()[0]
    assert len(printed.splitlines()) == 7
    assert printed.endswith(" open files beside the second, 5 in all\n")
    assert processes.run(ROOT / "tests" / "sweeps" / "flat.py", "--help", cwd=ROOT).returncode == 0
