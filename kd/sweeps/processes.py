"""Work in processes of their own, forked from one that has loaded what they need. No torch import.

To load torch and Lightning takes seconds of a core, often more than a small training. Python's forkserver loads them
once: it starts no training, no thread of torch and no GPU, so that each fork of it begins like a new process.
"""

import gc
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, cast

import kd
from kd.errors import UserError

PATIENCE = 60.0
"""Seconds that work has to end in when it is interrupted: a cohort ends each of its trainings after a batch."""


@dataclass(frozen=True)
class Work:
    """What one process does."""

    call: Callable[[], Any]
    """Can be pickled, and so can what it returns."""
    output: Path
    """The file that all it prints is appended to; there is none if it prints nothing."""


class DiedError(UserError):
    """A process has ended without an outcome, such as by SIGKILL."""


def side_by_side(
    works: Sequence[Work],
    environments: Sequence[Mapping[str, str]],
    on_death: Callable[[int, DiedError], None] = lambda place, error: None,
) -> list[Any]:
    """Do each work in a process of its own, as many at a time as there are environments.

    A process that dies stops no other. All end when this process does, however it ends.

    Args:
        works: in the order in which they begin.
        environments: one for each that may run at a time: variables beside those of this process.
        on_death: called with a work's place and the error once its process has died.

    Returns:
        Of each work what it returned or raised; a `DiedError` if its process died.

    Raises:
        KeyboardInterrupt: if interrupted, after all processes have ended, for which each gets a SIGTERM.
    """
    outcomes: list[Any] = [None] * len(works)
    waiting, free = deque(enumerate(works)), deque(environments)
    running: dict[Connection, tuple[int, ForkServerProcess, Mapping[str, str]]] = {}
    try:
        while waiting or running:
            while waiting and free:
                place, work = waiting.popleft()
                environment = free.popleft()
                process, connection = _start(work, environment)
                running[connection] = place, process, environment
            for connection in cast(list[Connection], wait(list(running))):
                place, process, environment = running.pop(connection)
                outcomes[place] = _outcome(connection, process)
                with suppress(OSError):
                    if works[place].output.stat().st_size == 0:
                        works[place].output.unlink()
                if isinstance(outcomes[place], DiedError):
                    on_death(place, outcomes[place])
                free.append(environment)
    finally:
        _end([process for _, process, _ in running.values()])
    return outcomes


def start_server(loaded: Sequence[str]) -> None:
    """Start the process that is forked, unless it runs; returns before it has loaded all.

    Args:
        loaded: modules. One that is missing is left out.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(loaded))
    with _ctrl_c_ignored(), _silent(), _import_path():
        forkserver.ensure_running()


def cores() -> int:
    """Return how many cores this process may use, of which two threads of one count once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = Path("/sys/devices/system/cpu")
    try:
        found = len({(siblings / f"cpu{n}" / "topology" / "thread_siblings_list").read_text() for n in allowed})
    except OSError:
        found = len(allowed)
    with suppress(OSError, ValueError):  # a container's share
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = min(found, math.ceil(int(quota) / int(period)))
    return max(1, found)


def _start(work: Work, environment: Mapping[str, str]) -> tuple[ForkServerProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, {**os.environ, **environment}, work.output))
    process.start()
    theirs.close()
    with suppress(OSError):  # it has died, which is found when it is waited for
        ours.send(work.call)
    return process, ours


def _outcome(connection: Connection, process: ForkServerProcess) -> Any:
    try:
        outcome = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        process.join()
        code = process.exitcode or 0
        if code >= 0:
            return DiedError(f"its process has ended by itself, with exit code {code}")
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory; fewer at a time take less" if -code == signal.SIGKILL else ""
        return DiedError(f"its process was ended by {name}{hint}")
    process.join()
    connection.close()
    return outcome


def _end(processes: Sequence[ForkServerProcess]) -> None:
    """Have processes end, as by Ctrl-C, and kill those that do not."""
    try:
        for process in processes:
            if process.is_alive():
                process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:  # a second Ctrl-C, too
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def _serve(connection: Connection, environment: Mapping[str, str], output: Path) -> None:
    """Do the work that the connection brings; what a process begins with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reaches the first process as well, which passes it on
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.freeze()  # what was loaded is shared with all others as long as no collection touches it
    os.environ.clear()
    os.environ.update(environment)
    try:
        _print_to(output)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        call = connection.recv()
        try:
            outcome = call()
        except Exception as error:
            outcome = error
        connection.send_bytes(_pickled(outcome))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):  # or the first process has ended
        raise SystemExit(130) from None


def _pickled(outcome: Any) -> bytes:
    try:
        pickled = pickle.dumps(outcome)
        pickle.loads(pickled)  # errors with arguments of their own fail only then
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(outcome).__name__}: {outcome}"))
    return pickled


def _print_to(output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _end_with_parent() -> None:
    """Interrupt this process once the first one is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; a process that begins in it ignores it for good."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _silent() -> Iterator[None]:
    """Have a process that begins in this block print nothing and keep no pipe open; its forks have their own files."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved, nothing = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for standard in (1, 2):
            os.dup2(nothing, standard)
        yield
    finally:
        for standard, file in zip((1, 2), saved, strict=True):
            os.dup2(file, standard)
        for file in (*saved, nothing):
            os.close(file)


@contextmanager
def _import_path() -> Iterator[None]:
    """Have a process that begins in this block import from where this one does, and not from its working directory."""
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    folders = [str(Path(kd.__file__).resolve().parents[1]), before["PYTHONPATH"]]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "PYTHONSAFEPATH": "1"}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
