import json

import pytest

from tests import processes
from tests.common import QUICK, ROOT


def benchmark_sweep(folder, *arguments):
    return processes.run(ROOT / "scripts" / "benchmark_sweep.py", *arguments, cwd=folder)


def test_benchmark_sweep_compares_launchers(tmp_path):
    grid = (*QUICK, "epochs=1", "method=logits", "T=1,2")
    done = benchmark_sweep(tmp_path, *grid, "--launchers", "basic", "auto", "--rounds", "1", "--json", "sweep.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "sweep.json").read_text())
    assert figures["grid"] == list(grid)
    assert figures["seconds"].keys() == {"basic", "auto"}
    (basic,), (auto,) = figures["seconds"]["basic"], figures["seconds"]["auto"]
    assert basic > 0
    assert figures["ratios"] == {"basic": 1, "auto": pytest.approx(auto / basic)}
    assert f"{figures['ratios']['auto']:.2f} of basic" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_benchmark_sweep_reports_a_mistake_in_one_line(tmp_path, one_line):
    assert "nonsense" in one_line(benchmark_sweep(tmp_path, "method=nonsense"))
    assert "argument --rounds: must be at least 1" in one_line(benchmark_sweep(tmp_path, "--rounds", "0"))
