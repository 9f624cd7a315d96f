import importlib.util
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from kd.training import threads
from tests.common import ROOT

PROGRAM = """
import json, os, time, torch
from kd.training.threads import Crowd, waited

torch.set_num_threads(2)
x = torch.ones(1 << 20)


def idle():
    used = 0.0
    for _ in range(20):
        x.add_(1)
        before = time.process_time()
        time.sleep(0.02)
        used += time.process_time() - before
    return used


alone = idle()
crowd = Crowd()
time.sleep(0.1)
crowded = idle()
crowd.end()
again = idle()

before = waited()
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})
for _ in range(300):
    x.add_(1)
print(json.dumps([alone, crowded, again, waited() - before]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2 or threads.waited() is None,
    reason="needs libgomp, two cores and what Linux tells of waiting threads",
)
def test_threads_spin_alone_but_not_in_a_crowd():
    """A process of its own, as libgomp reads its environment once; forked processes have it loaded."""
    environment = {**os.environ, **threads.SPINNING, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, crowded, again, waited = json.loads(done.stdout)
    assert min(alone, again) > 4 * crowded  # processor time after operations, while the program sleeps
    assert waited > 0.1  # two threads that were put on one core


FEW, MANY = 0.05, 0.5
"""Seconds in each second that threads waited for a core."""


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ([FEW] * 9, []),
        ([FEW, MANY, MANY, FEW, FEW, FEW], [(1, "crowd")]),
        ([MANY, FEW, FEW, FEW, FEW, FEW], [(0, "crowd"), (4, "end")]),
        ([MANY, FEW, FEW, FEW, MANY, FEW, FEW, FEW, FEW, MANY], [(0, "crowd"), (8, "end"), (9, "crowd")]),
        ([-3.0, FEW, MANY], [(2, "crowd")]),  # a thread that had waited long has ended
    ],
)
def test_a_crowd_gathers_as_soon_as_others_want_the_cores_and_goes_when_they_have_gone(waits, expected):
    clock, waited, looks, events = [100.0], [7.0], iter(waits), []

    class Crowd:
        def __init__(self):
            events.append((place[0], "crowd"))

        def end(self):
            events.append((place[0], "end"))

    place = [-1]

    def sleep(seconds):
        share = next(looks, None)
        if share is None:
            raise InterruptedError
        place[0] += 1
        clock[0] += 3 * seconds  # later than planned, as on a busy machine
        waited[0] += 3 * seconds * share

    # A copy of the module: a program of an earlier test may have left its thread, which looks on until the end.
    spec = importlib.util.find_spec(threads.__name__)
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    copied.time, copied.Crowd = SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]), Crowd
    with pytest.raises(InterruptedError):
        copied._look(lambda: waited[0])
    assert events == expected


def test_threads_never_spin_where_the_kernel_does_not_tell_whether_they_are_alone(monkeypatch):
    made = []
    monkeypatch.setattr(threads, "Crowd", lambda: made.append(1))
    threads._look(lambda: None)
    assert made


@pytest.mark.parametrize(
    ("environment", "begins"),
    [
        ({}, False),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, False),
        ({**threads.SPINNING, "GOMP_SPINCOUNT": "0"}, False),
        (threads.SPINNING, True),
    ],
)
def test_a_user_s_own_way_of_waiting_is_left_alone(monkeypatch, environment, begins):
    for name in threads.SPINNING:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    begun = threading.Event()
    monkeypatch.setattr(threads, "_look", lambda waited: begun.set())
    threads._watch.cache_clear()
    for _ in range(2):
        threads.spin_while_alone()
    assert begun.wait(1 if begins else 0.05) == begins
    assert threads._watch.cache_info().misses == begins  # once a process
    threads._watch.cache_clear()
