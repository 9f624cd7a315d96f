import json
import shlex
import subprocess
import sys

from tests.common import ROOT


def test_figures_are_measured_and_consistent(tmp_path):
    command = shlex.split("scripts/benchmark.py --quick speed.keep_memory=false")  # as in the README
    short = ("--rounds", "1", "--steps", "1", "--batch", "8", "--device", "cpu")
    done = subprocess.run(
        [
            sys.executable,
            ROOT / command[0],
            *command[1:],
            *short,
            "--workloads",
            "logits_stored",
            "--json",
            "speed.json",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "speed.json").read_text())
    rates = figures["workloads"]["logits_stored"]["images_per_second"]
    assert rates.keys() == {"textbook", "bare", "train.py", "changed"}
    assert all(len(rate) == 1 and rate[0] > 0 for rate in rates.values())
    assert figures["ratios"]["logits_stored"] == rates["train.py"][0] / rates["textbook"][0]
    # Four convolutions and two linear layers, counted by hand; backward costs twice that, less the first layer's input.
    first, rest = 3 * 16 * 9 * 32**2, 16 * 16 * 9 * 32**2 + (16 * 32 + 32 * 32) * 9 * 16**2 + 2048 * 512 + 512 * 10
    assert figures["training_flops"]["student"] == 2 * (2 * first + 3 * rest)
    assert "logits, stored" in done.stdout
    assert "changed: speed with speed.keep_memory=false" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
