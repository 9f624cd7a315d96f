"""`scripts/gpu_check.py` in its smallest form, on the processor. What it does on a GPU no test here can try."""

import json

from scripts import gpu_check
from tests import processes
from tests.common import ROOT

PROGRAM = ROOT / "scripts" / "gpu_check.py"


def test_gpu_check_tries_all_that_a_processor_has(tmp_path):
    files = ("--json", "gpu.json", "--markdown", "gpu.md")
    done = processes.run(PROGRAM, "--device", "cpu", "--quick", *files, cwd=tmp_path)
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, figures
    assert gpu_check.failures(figures) == []
    rows = {name: {row["what"]: row for row in part["rows"]} for name, part in figures["parts"].items()}
    assert list(rows) == [part.name for part in gpu_check.PARTS]
    assert all(rows.values())
    assert rows["loops"].keys() == {"CUDA graphs", "textbook", "train.py", "bare, live", "bare, stored"}
    assert rows["loops"]["textbook"]["ratio"] == 1
    assert rows["loops"]["bare, live"]["flops_an_image"] > rows["loops"]["bare, stored"]["flops_an_image"] > 0
    assert {"students: 2, one after the other", "students: 2, vmap"} < rows["cohort"].keys()
    assert all("left_out" in row for row in (rows["loops"]["CUDA graphs"], rows["compiled"]["torch.compile"]))
    assert figures["machine"].keys() >= {"device", "versions", "git", "date", "command"}
    table = (tmp_path / "gpu.md").read_text()
    assert table == done.stdout
    assert "| loops | CUDA graphs |  |  |  |  |  | left out: there are none on a processor |\n" in table
    assert table.endswith("failed: nothing\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]
