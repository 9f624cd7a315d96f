import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd.errors import UserError
from scripts import benchmark_sweep as program
from tests import processes
from tests.common import QUICK, ROOT


def benchmark_sweep(folder, *arguments):
    return processes.run(ROOT / "scripts" / "benchmark_sweep.py", *arguments, cwd=folder)


def test_benchmark_sweep_compares_launchers(tmp_path, monkeypatch, capsys):
    def start(command, *, cwd, capture_output, text):
        return processes.run(Path(command[1]), *command[2:], cwd=cwd)

    grid = (*QUICK, "epochs=1", "method=logits", "T=choice(1,2)")
    arguments = [*grid, "--launchers", "basic", "auto", "--rounds", "1", "--json", "sweep.json"]
    monkeypatch.setattr(program, "subprocess", SimpleNamespace(run=start))
    monkeypatch.setattr("sys.argv", ["benchmark_sweep.py", *arguments])
    monkeypatch.chdir(tmp_path)
    assert program.main() == 0
    figures = json.loads((tmp_path / "sweep.json").read_text())
    assert figures["grid"] == list(grid)
    assert figures["seconds"].keys() == {"basic", "auto"}
    (basic,), (auto,) = figures["seconds"]["basic"], figures["seconds"]["auto"]
    assert basic > 0
    assert figures["ratios"] == {"basic": 1, "auto": pytest.approx(auto / basic)}
    assert f"{figures['ratios']['auto']:.2f} of basic" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_benchmark_sweep_reports_a_mistake_in_one_line(tmp_path, one_line):
    assert "nonsense" in one_line(benchmark_sweep(tmp_path, "method=nonsense"))
    assert "argument --rounds: must be at least 1" in one_line(benchmark_sweep(tmp_path, "--rounds", "0"))
    known = "there are auto, basic, cohort, "
    for given in ("cohrt", "data=digits"):
        line = one_line(benchmark_sweep(tmp_path, "--launchers", "basic", given))
        assert line.startswith(f"benchmark_sweep.py: there is no launcher {given}; {known}")


@pytest.fixture
def swept(monkeypatch):
    """The sweeps of the script, launcher and grid, none of which is run."""
    swept = []

    def sweep_seconds(launcher, grid, *_):
        swept.append((launcher, grid))
        return 2.0

    monkeypatch.setattr(program, "sweep_seconds", sweep_seconds)
    return swept


def test_benchmark_sweep_trains_every_teacher_beforehand(swept, monkeypatch):
    grid = ["teacher=cnn16,cnn32", "T=range(1,3)", "method.terms={at: 1, rkd: 2}"]
    monkeypatch.setattr("sys.argv", ["benchmark_sweep.py", *grid, "--launchers", "auto", "auto", "--rounds", "1"])
    assert program.main() == 0
    assert swept == [("basic", [*grid, "recipe.epochs=1"]), ("auto", grid)]


def test_benchmark_sweep_prints_before_it_writes(swept, monkeypatch, capsys):
    arguments = ["T=1,2", "--launchers", "auto", "--rounds", "1", "--json", "/dev/full"]
    monkeypatch.setattr("sys.argv", ["benchmark_sweep.py", *arguments])
    assert program.main() == 1
    printed, errors = capsys.readouterr()
    assert errors == "benchmark_sweep.py: /dev/full: cannot be written: No space left on device\n"
    assert "median    2.0 s, 1.00 of auto" in printed


def test_benchmark_sweep_names_the_exit_code_of_a_silent_end(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9, "\n", " "))
    with pytest.raises(UserError, match=r"^basic: exit code -9$"):
        program.sweep_seconds("basic", [], tmp_path / "sweep", tmp_path / "teachers")
