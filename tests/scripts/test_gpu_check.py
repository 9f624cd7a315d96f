"""`scripts/gpu_check.py` in its smallest form, on the processor. What it does on a GPU no test here can try."""

import json
import os
import signal
import time

import pytest
import torch

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


def call(monkeypatch, capfd, *arguments):
    monkeypatch.setattr("sys.argv", ["gpu_check.py", *arguments])
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return gpu_check.main(), *capfd.readouterr()


@pytest.fixture
def part(monkeypatch):
    """Makes a generator of rows the only part of the program."""

    def part(work):
        monkeypatch.setattr(gpu_check, "PARTS", (gpu_check.Part("limits", "gpu_measures", 1),))
        monkeypatch.setattr(gpu_check, "_rows", lambda part, options, folder: work())

    return part


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu_says_so_in_one_line(monkeypatch, capfd):
    code, printed, errors = call(monkeypatch, capfd)
    assert (code, printed) == (1, "")
    assert "finds no CUDA device here; for a trial give --device cpu --quick\n" in errors
    assert errors.count("\n") == 1


def test_gpu_check_names_what_fails_and_goes_on(monkeypatch, capfd, part):
    def work():
        yield {"what": "copy", "rate": 2e9, "note": "2 GB/s"}
        yield {"what": "wgmma", "error": "RuntimeError: not here"}
        print("what it printed last")
        raise RuntimeError("broken")

    part(work)
    code, printed, errors = call(monkeypatch, capfd, "--device", "cpu")
    assert code == 1
    assert "| limits | copy |  |  |  |  |  | 2 GB/s |\n" in printed
    assert "FAILED: RuntimeError: not here" in printed
    assert printed.endswith("failed: limits: RuntimeError: broken; limits, wgmma\n")
    assert "Traceback" not in printed + errors


def test_gpu_check_ends_a_part_with_its_processes_when_its_time_is_up():
    ours, theirs = os.pipe()

    def work():
        if os.fork() == 0:
            time.sleep(60)
        yield {"what": "first", "note": ""}
        time.sleep(60)

    began = time.monotonic()
    process = gpu_check.Process(work)
    os.close(theirs)
    told = gpu_check.told(process, 1)
    assert told["rows"] == [{"what": "first", "note": ""}]
    assert told["error"] == "not done after 1 s"
    assert os.read(ours, 1) == b""  # which waits for all that have the other end
    os.close(ours)
    assert time.monotonic() - began < 30


def test_gpu_check_tells_of_a_part_that_was_killed():
    def work():
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    told = gpu_check.told(gpu_check.Process(work), 30)
    assert (told["rows"], told["error"]) == ([], "ended with exit code -9")
