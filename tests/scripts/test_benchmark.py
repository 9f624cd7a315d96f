import argparse
import json
import multiprocessing
import os
import shlex
import threading
import time
from pathlib import Path

import lightning as L
import pytest

from kd.app.run import run
from kd.data.module import Shuffled
from kd.errors import UserError
from kd.models.cnn import CNN
from kd.runs.results import Result
from kd.runs.weights import save_weights
from tests import processes
from tests.common import ROOT

WORKLOADS = {"teacher", "student", "logits_live", "logits_stored", "feature_live"}


def benchmark(folder, *arguments):
    command = shlex.split("scripts/benchmark.py --quick speed.keep_memory=false")  # as in the README
    return processes.run(ROOT / command[0], *command[1:], "--device", "cpu", *arguments, cwd=folder)


def test_benchmark_measures_every_workload_in_every_loop(tmp_path):
    done = benchmark(tmp_path, "--rounds", "1", "--steps", "1", "--batch", "8", "--json", "speed.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert figures["workloads"].keys() == WORKLOADS
    for name, entry in figures["workloads"].items():
        rates = entry["images_per_second"]
        assert rates.keys() == entry["memory_gb"].keys() == {"textbook", "train.py", "changed"}
        assert all(len(rate) == 1 and rate[0] > 0 for rate in rates.values())
        # 51,000 images of 3072 bytes, with torch: more than 0.3 GB, and less than a machine for tests has.
        assert all(0.3 < memory < 16 for memory in entry["memory_gb"].values())
        assert entry["limits"].keys() == {"fp32", "bf16", "copy", "triad"}
        assert all(len(rate) == 1 and rate[0] > 0 for rate in entry["limits"].values())
        assert all(share > 0 for share in figures["shares"][name].values())
        assert sum(entry["step"]["flops"].values()) > 8 * 2 * 2.5 * 7e6  # eight images, both ways
        assert figures["ratios"][name] == pytest.approx(rates["train.py"][0] / rates["textbook"][0])
        assert name.replace("_", ", ") in done.stdout
    flops = {name: sum(entry["step"]["flops"].values()) for name, entry in figures["workloads"].items()}
    assert flops["logits_live"] > flops["student"] > 0
    assert len(figures["first_step_seconds"]) == 1
    assert figures["first_step_seconds"][0] > 0
    assert figures["machine"]["batch_size"] == 8
    assert "changed: speed with speed.keep_memory=false" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("speed.keep_memoy=false",), "did you mean speed.keep_memory?"),
        (("T=1,2",), "T=1,2: give a single value"),
        (("batch_size=64",), "batch_size=64: images a step are --batch, not batch_size"),
        (("epochs=1",), "epochs=1: a turn has --steps, not epochs"),
        (("recipe.epochs=2", "--workloads", "student"), "epochs=2: a turn has --steps, not epochs"),
        (("--rounds", "0"), "argument --rounds: must be at least 1, got 0; see --help"),
        (("--workloads", "all"), "argument --workloads: invalid choice: 'all'"),
        (("--json", "nowhere/speed.json"), "argument --json: nowhere/speed.json: no folder nowhere"),
    ],
)
def test_benchmark_reports_a_mistake_in_one_line(tmp_path, monkeypatch, capsys, arguments, printed):
    import benchmark as program

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["benchmark.py", "--quick", "speed.keep_memory=false", "--device", "cpu", *arguments]
    )
    assert program.main() == 1
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("benchmark.py: ")
    assert printed in errors


def test_benchmark_as_a_program_ends_with_its_line(tmp_path, one_line):
    assert "T=1,2: give a single value" in one_line(benchmark(tmp_path, "T=1,2"))


def test_pace_stores_the_logits_of_all_turns_beforehand(tmp_path, noise):
    import benchmark
    from paced import PacedBuilder

    class CountingTurns(benchmark.Turns):
        def begin(self):
            self.asked, self.found = build.stored.requested, build.stored.found
            super().begin()

    save_weights(CNN(32, 10, 8, "relu", 0.25, 0.5), tmp_path / benchmark.TEACHER, {})
    options = argparse.Namespace(device="cpu", batch=600, overrides=["data.val_fraction=0"])
    parent, child = multiprocessing.Pipe()
    for go_on in (True, True, False):
        parent.send(go_on)
    turns = CountingTurns(child, warmup=2, steps=2)  # eight steps of two turns, three of which make an epoch
    command = benchmark.command("logits_stored", "changed", options, tmp_path)
    build = PacedBuilder(command, noise(train=2000, test=100), turns, rounds=2)
    record = Result(method="logits", seed=0, dataset="noise", epochs=1, status="running")
    with pytest.raises(benchmark.TurnsOver):
        run(build, record, tmp_path / "run")
    assert turns.asked == 8 * 600
    assert build.stored.requested - turns.asked == build.stored.found - turns.found == 8 * 600


def test_pace_does_not_time_validation(tmp_path, noise, monkeypatch):
    import benchmark
    from paced import PacedBuilder

    class Validated(L.Callback):
        def on_validation_start(self, *_):
            paused.append(turns.paused is not None)

    class Validating(PacedBuilder):
        def callbacks(self):
            return [*super().callbacks(), Validated()]

    paused, begun, drawn = [], [], Shuffled.__iter__
    monkeypatch.setattr(Shuffled, "__iter__", lambda self: begun.append(turns.paused is not None) or drawn(self))
    options = argparse.Namespace(device="cpu", batch=600, overrides=[])
    parent, child = multiprocessing.Pipe()
    for go_on in (True, False):
        parent.send(go_on)
    turns = benchmark.Turns(child, warmup=1, steps=4)  # of 5 steps, 3 of which make an epoch
    build = Validating(benchmark.command("student", "train.py", options, tmp_path), noise(2000, 100), turns, rounds=1)
    record = Result(method="standard", seed=0, dataset="noise", epochs=1, status="running")
    with pytest.raises(benchmark.TurnsOver):
        run(build, record, tmp_path / "run")
    assert paused == [True]
    assert turns.paused is None  # the second epoch has gone on
    assert begun[-1] is False  # of the second epoch, making the first batch is timed


def test_serve_reports_a_training_that_ends_before_its_turns(tmp_path, monkeypatch):
    import benchmark

    monkeypatch.setattr(benchmark, "silence", lambda: None)
    monkeypatch.setattr(benchmark, "train_ours", lambda *_: None)
    options = argparse.Namespace(device="cpu", warmup=1, steps=1, overrides=[])
    parent, child = multiprocessing.Pipe()
    parent.send("student")
    threading.Thread(target=benchmark.serve, args=(options, tmp_path, "train.py", child), daemon=True).start()
    assert parent.poll(60), "both sides wait for each other"
    assert parent.recv() == "train.py, student: its training ended before its turns did"


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux alone tells a peak")
def test_peak_memory_is_that_of_one_training_with_its_workers():
    import benchmark

    options = argparse.Namespace(device="cpu")
    benchmark.forget_peak()
    large = b"x" * (200 << 20)
    of_the_first = benchmark.peak_memory_gb(options)
    del large
    benchmark.forget_peak()
    alone = benchmark.peak_memory_gb(options)
    assert alone < of_the_first - 0.15
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    with_worker = benchmark.peak_memory_gb(options)
    worker.kill()
    worker.join()
    assert with_worker > alone + 0.02


def test_benchmark_prints_before_it_writes(monkeypatch, capsys):
    import benchmark

    machine = {"device": "a processor", "rounds": 3}
    figures = {"machine": machine, "overrides": [], "workloads": {}, "shares": {}, "first_step_seconds": [4.5]}
    monkeypatch.setattr(benchmark, "measure", lambda *_: figures)
    options = argparse.Namespace(overrides=[], workloads=[], json=Path("/dev/full"))
    with pytest.raises(UserError, match=r"^/dev/full: cannot be written: No space left on device$"):
        benchmark.benchmark(options)
    assert "to the first step: 4.5 s" in capsys.readouterr().out
