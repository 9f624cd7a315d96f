"""`scripts/gpu_check.py` in its smallest form, on the processor. What it does on a GPU no test here can try."""

import json
import os
import re
import signal
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

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
    assert re.search(r"failed: limits: RuntimeError: broken \(test_gpu_check\.py:\d+\); limits, wgmma\n$", printed)
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
    assert process.pipe.poll(60)
    told = gpu_check.results_of(process, 1)
    assert told["rows"] == [{"what": "first", "note": ""}]
    assert told["error"] == "not done after 1 s"
    assert os.read(ours, 1) == b""  # which waits for all that have the other end
    os.close(ours)
    assert time.monotonic() - began < 30


def test_gpu_check_tells_of_a_part_that_was_killed():
    def work():
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    told = gpu_check.results_of(gpu_check.Process(work), 30)
    assert (told["rows"], told["error"]) == ([], "ended with exit code -9")


def test_gpu_check_prints_before_it_writes(monkeypatch, capfd, part):
    part(lambda: iter([{"what": "copy", "rate": 2e9, "note": "2 GB/s"}]))
    code, printed, errors = call(monkeypatch, capfd, "--device", "cpu", "--json", "/dev/full")
    assert code == 1
    assert "| limits | copy |  |  |  |  |  | 2 GB/s |\n" in printed
    assert errors.endswith("\ngpu_check.py: /dev/full: cannot be written: No space left on device\n")


@pytest.fixture
def measures():
    import gpu_measures

    return gpu_measures


@pytest.fixture
def options(measures, tmp_path):
    """The smallest trial on a processor."""
    size = measures.Size(images=64, batch=8, rounds=2, steps=1, students=(1, 2), shrink=64)
    return measures.Options(torch.device("cpu"), True, tmp_path, size)


def test_bare_steps_have_the_dropout_of_the_textbook(measures, options):
    (student,) = measures._steps(options, 1, measures.Steps).students
    rates = {module.p for module in student.modules() if isinstance(module, nn.Dropout)}
    assert rates == set(measures.DROPOUT.values()) == {0.25, 0.5}


def trains(name, pipe):
    from gpu_measures import Turns, TurnsOver

    pipe.recv()
    turns = Turns(pipe, 1, 1)
    try:
        turns.begin()
        while True:
            turns.step()
    except TurnsOver:
        pipe.send({"memory_gb": None, "step": None})


def fails_in_its_first_step(name, pipe):
    pipe.recv()
    pipe.send(None)
    pipe.recv()
    pipe.send("RuntimeError: no memory")


@pytest.mark.parametrize("failing", ["first", "second"])
def test_compared_names_a_loop_that_fails_in_its_first_step(measures, options, failing):
    found = dict.fromkeys(("first", "second", "third"), trains) | {failing: fails_in_its_first_step}
    error, *others = measures._compared(options, found)
    assert error == {"what": failing, "error": "RuntimeError: no memory"}
    assert [row["what"] for row in others] == [name for name in found if name != failing]
    assert all(len(row["images_per_second"]) == 2 for row in others)
    # Without the loop that the others are compared with, a ratio would be to another one.
    assert [row["what"] for row in others if "ratio" in row] == ([] if failing == "first" else ["first", "third"])


def test_cohort_and_table_take_rows_without_a_ratio(measures, options, monkeypatch):
    rate = {"images_per_second": [1000.0], "memory_gb": None, "flops_an_image": None}
    rows = [{"what": "1, one after the other", "error": "gone"}, {"what": "2, vmap", **rate}]
    monkeypatch.setattr(measures, "_compared", lambda *_: iter(rows))
    failed, measured = measures.cohort(options)
    assert failed == {"what": "students: 1, one after the other", "error": "gone"}
    assert measured == {"what": "students: 2, vmap", **rate}
    assert gpu_check._cells("cohort", measured, None) == [
        *("cohort", "students: 2, vmap", "1,000", "50.00", "", "", "", "")
    ]


def test_bare_step_forgets_the_memory_of_its_preparation(measures, options, monkeypatch):
    held = [0.0]  # the peak so far, in bytes

    class Steps:
        def __init__(self):
            held[0] = 9e9  # as the storing of logits does

        def step(self):
            held[0] = max(held[0], 2e9)

    class Pipe:
        answers, sent = ["logits_live", False], []

        def recv(self):
            return self.answers.pop(0)

        def send(self, reply):
            self.sent.append(reply)

    monkeypatch.setattr(measures, "fast", lambda: SimpleNamespace(configure_process=lambda *_: None))
    monkeypatch.setattr(measures, "Work", lambda: nullcontext(SimpleNamespace(figures=lambda: {})))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.__setitem__(0, 0.0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held[0])
    measures._serve(options._replace(device=torch.device("cuda")), Steps, False, True, "bare, stored", Pipe())
    assert Pipe.sent == [None, {"memory_gb": 2.0, "step": {}}]
