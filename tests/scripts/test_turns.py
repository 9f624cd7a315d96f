"""Turns between a parent and a training, with both ends of the pipe in this process."""

import multiprocessing
import signal
import time
from types import SimpleNamespace

import pytest

from scripts import turns
from scripts.turns import Turns, TurnsOver, in_turns, processes, take_turns


@pytest.fixture
def ends():
    here, there = multiprocessing.Pipe()
    with here, there:
        yield here, there


def test_turns_time_the_steps_after_the_warmup(ends):
    parent, child = ends
    for go_on in (True, True, False):
        parent.send(go_on)
    steps, timed = [], []
    turns = Turns(child, warmup=2, steps=3, synchronize=lambda: timed.append(len(steps)))
    turns.begin()

    def train():
        while True:
            steps.append("step")
            turns.step()

    with pytest.raises(TurnsOver):
        train()
    # Two turns of five steps: the clock is read after the second and the fifth of each.
    assert timed == [2, 5, 7, 10]
    assert parent.recv() is None
    assert parent.recv() > 0
    assert parent.recv() > 0
    assert not parent.poll()


def test_turns_do_not_time_a_pause(ends, monkeypatch):
    parent, child = ends
    for go_on in (True, True, False):
        parent.send(go_on)
    now = 0.0
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: now))
    timing = Turns(child, warmup=2, steps=3)
    timing.begin()

    def train():
        nonlocal now
        while True:
            now += 1  # a step
            timing.step()
            timing.pause()
            now += 100  # such as validation
            timing.resume()

    with pytest.raises(TurnsOver):
        train()
    assert [parent.recv() for _ in range(3)] == [None, 3.0, 3.0]


def test_turns_end_with_what_the_training_tells(ends):
    parent, child = ends
    parent.send(False)
    with pytest.raises(TurnsOver) as over:
        Turns(child, warmup=1, steps=1, at_end=lambda: "3 GB").begin()
    assert over.value.last == "3 GB"


def test_in_turns_names_a_process_that_fails_and_goes_on(ends):
    parent, child = ends
    for answer in (2.0, 3.0, 0.5):
        child.send(answer)
    pipes, failing = {}, {}
    for name in ("failed", "gone"):
        pipes[name], failing[name] = multiprocessing.Pipe()
    failing["failed"].send("no memory")
    failing["gone"].close()
    failed = {}
    timed = in_turns({"failed": pipes["failed"], "trains": parent, "gone": pipes["gone"]}, 2, failed.__setitem__)
    assert timed == ({"trains": [2.0, 3.0]}, {"trains": 0.5})
    assert failed.keys() == {"failed", "gone"}
    assert failed["failed"] == "no memory"


def test_take_turns_collects_seconds_and_the_last_reply(ends):
    parent, child = ends
    for answer in (None, 2.0, 3.0, 0.5):
        child.send(answer)
    timed = take_turns("student", {"textbook": parent}, rounds=2)
    assert timed.turns == {"textbook": [2.0, 3.0]}
    assert timed.ends == {"textbook": 0.5}
    assert [child.recv() for _ in range(4)] == ["student", True, True, False]


def test_take_turns_raises_what_a_process_reports(ends):
    parent, child = ends
    child.send("textbook, student: no memory")
    with pytest.raises(RuntimeError, match="textbook, student: no memory"):
        take_turns("student", {"textbook": parent}, rounds=1)


def test_take_turns_notices_a_process_that_ended(ends):
    parent, child = ends
    child.send(None)
    child.send(1.0)
    child.close()
    with pytest.raises(RuntimeError, match="a process has ended early"):
        take_turns("student", {"textbook": parent}, rounds=2)


def wait_for_a_turn(name, pipe):
    """Wait as a training of Lightning's does, which takes a SIGTERM for later."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send(name)
    try:
        pipe.recv()
    except EOFError:
        return


def test_processes_ends_those_that_wait_for_a_turn(monkeypatch):
    monkeypatch.setattr(turns, "GRACE_SECONDS", 60)
    with processes(wait_for_a_turn, {"train.py": {}}) as pipes:
        assert pipes["train.py"].recv() == "train.py"
        before = time.monotonic()
    assert time.monotonic() - before < 30
