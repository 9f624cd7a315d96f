"""Work in forked processes: outcomes, environments, output, deaths and interruptions."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import forkserver

import pytest

from kd.sweeps.processes import DiedError, Work, cores, side_by_side, start_server
from tests.common import ROOT
from tests.sweeps import works


@pytest.fixture(autouse=True, scope="module")
def server():
    """A server that has loaded little."""
    forkserver._forkserver._stop()
    start_server(["pytest", "tests.sweeps.works"])
    yield
    forkserver._forkserver._stop()


@pytest.fixture
def in_processes(tmp_path):
    def in_processes(*calls, environments=({},), **options):
        all_works = [Work(call, tmp_path / "output" / f"{place}.txt") for place, call in enumerate(calls)]
        return side_by_side(all_works, environments, **options)

    return in_processes


def test_side_by_side_returns_outcomes_in_order(in_processes):
    first, second, error, odd = in_processes(
        os.getpid, os.getpid, partial(int, "x"), works.unsendable, environments=[{}] * 4
    )
    assert len({first, second, os.getpid()}) == 3
    assert (type(error), str(error)) == (ValueError, "invalid literal for int() with base 10: 'x'")
    assert type(odd) is RuntimeError


def test_side_by_side_uses_as_many_processes_as_environments(in_processes, monkeypatch):
    monkeypatch.setenv("KD_OF_ALL", "here")  # after the server was started
    found = in_processes(*[works.nap] * 5, environments=[{"KD_PLACE": "a"}, {"KD_PLACE": "b"}])
    assert {(place, value) for place, value, _, _ in found} == {("a", "here"), ("b", "here")}
    for earlier, later in itertools.pairwise(in_processes(*[works.nap] * 3, environments=[{"KD_PLACE": "a"}])):
        assert earlier[-1] < later[-2]


def test_side_by_side_keeps_what_processes_print(in_processes, tmp_path, capfd):
    in_processes(partial(os.write, 1, b"out\n"), partial(os.write, 2, b"error\n"), partial(int, "7"))
    printed = {file.name: file.read_text() for file in (tmp_path / "output").iterdir()}
    assert printed == {"0.txt": "out\n", "1.txt": "error\n"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("death", "told"),
    [
        (
            partial(signal.raise_signal, signal.SIGKILL),
            "its process was ended by SIGKILL, perhaps for want of memory; fewer at a time take less",
        ),
        (partial(signal.raise_signal, signal.SIGSEGV), "its process was ended by SIGSEGV"),
        (partial(os._exit, 3), "its process has ended by itself, with exit code 3"),
    ],
    ids=["SIGKILL", "SIGSEGV", "exit"],
)
def test_side_by_side_goes_on_where_a_process_dies(in_processes, death, told):
    deaths = []
    outcomes = in_processes(partial(int, "1"), death, partial(int, "2"), on_death=lambda *death: deaths.append(death))
    assert (outcomes[0], outcomes[2]) == (1, 2)
    assert isinstance(outcomes[1], DiedError)
    assert str(outcomes[1]) == told
    assert deaths == [(1, outcomes[1])]


def test_side_by_side_starts_another_server_after_one_has_died(in_processes):
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    assert in_processes(partial(int, "1")) == [1]


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGKILL, False)])
def test_side_by_side_leaves_no_process_behind(tmp_path, number, to_all):
    """Ctrl-C reaches all processes of a terminal, a signal of `kill` the first one only."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sweeps.works"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 2)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number
    assert errors.count("Traceback") == (number == signal.SIGINT)  # the program's own, which does not expect it
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids.read_text().split()))
    assert not (tmp_path / "output").exists() or (tmp_path / "output").read_text() == ""


def test_side_by_side_kills_what_does_not_end(in_processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kd.sweeps.processes.PATIENCE", 0.1)

    def interrupt(place, error):
        wait_until((tmp_path / "ignoring").exists)
        raise KeyboardInterrupt

    died = partial(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(KeyboardInterrupt):
        in_processes(works.ignore, died, environments=[{}] * 2, on_death=interrupt)
    assert not multiprocessing.active_children()


def test_cores_are_those_of_the_process():
    allowed = os.sched_getaffinity(0)
    assert 1 <= cores() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def wait_until(done, seconds=60):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)
