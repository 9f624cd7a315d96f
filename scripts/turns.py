"""Let trainings in several processes take turns of a few steps, and time them.

The parent sends a task, and each process replies None when it has prepared its training. For every True that it is
sent then, it trains for one turn and replies with the seconds; at False it ends the training and replies with what is
left to tell, such as its peak memory. A text is an error.
"""

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

GRACE_SECONDS = 10
"""How long a process has for its end when nobody waits for its results."""


class Timed(NamedTuple):
    """What `take_turns` measured, by process."""

    turns: dict[str, list[Any]]
    """The reply to each turn: the seconds of its timed part, of a process that trains."""
    ends: dict[str, Any]
    """The reply to the end."""


class TurnsOver(Exception):  # noqa: N818 - not an error
    """Ends a training that has had all its turns.

    Args:
        last: what `at_end` of its `Turns` returned.
    """

    def __init__(self, last: Any = None) -> None:
        super().__init__()
        self.last = last


class Turns:
    """A process's side: times a training that calls `begin` before its first step and `step` after each.

    What a training does beside its steps, such as validation between two epochs, is left out of the time if it calls
    `pause` before and `resume` after.

    Args:
        pipe: to the parent process.
        warmup: steps at the beginning of a turn that are not timed, at least 1. Workers have prefetched batches while
            another process had its turn.
        steps: timed steps of a turn, at least 1.
        synchronize: waits for a device that runs ahead of the program.
        at_end: called after the last turn, while the training still holds its memory and its workers.
    """

    def __init__(
        self,
        pipe: Connection,
        warmup: int,
        steps: int,
        synchronize: Callable[[], None] = lambda: None,
        at_end: Callable[[], Any] = lambda: None,
    ) -> None:
        self.pipe, self.warmup, self.steps, self.synchronize, self.at_end = pipe, warmup, steps, synchronize, at_end
        self.done = 0
        self.paused: float | None = None

    def begin(self) -> None:
        self.pipe.send(None)
        self._wait()

    def step(self) -> None:
        self.done += 1
        if self.done == self.warmup:
            self.started = self._now()
        if self.done == self.warmup + self.steps:
            self.pipe.send(self._now() - self.started)
            self._wait()

    def pause(self) -> None:
        """Stop the clock, if it runs: in a turn's warm-up it does not."""
        if self.done >= self.warmup:
            self.paused = self._now()

    def resume(self) -> None:
        """Let a clock that was stopped go on."""
        if self.paused is not None:
            self.started += self._now() - self.paused
            self.paused = None

    def _wait(self) -> None:
        if not self.pipe.recv():
            raise TurnsOver(self.at_end())
        self.done = 0

    def _now(self) -> float:
        self.synchronize()
        return time.perf_counter()


@contextmanager
def processes(
    target: Callable[..., None], environments: dict[str, dict[str, str | None]], fork: bool = False
) -> Iterator[dict[str, Any]]:
    """Start processes that call `target(name, pipe)`; yield the parent's ends of the pipes, and end the processes.

    Args:
        target: a function that a spawned process can import.
        environments: variables to set for each process, or to unset if None, by the name of the process.
        fork: whether they have all that is loaded here, for a parent that has used neither threads of torch nor a GPU.
            Variables that libraries read when they are loaded are then those of the parent.
    """
    pipes: dict[str, Connection] = {}
    started = []
    try:
        for name, environment in environments.items():
            pipes[name], far_end = mp.Pipe()
            if fork:
                process = mp.get_context("fork").Process(target=_forked, args=(target, name, far_end, dict(pipes)))
                process.start()
                started.append(process)
            else:
                started.append(spawn(target, name, far_end, environment=environment))
            far_end.close()  # here, so that the end of the process ends the pipe
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()  # ends a training that waits for its turn; Lightning takes a SIGTERM for later
        for process in started:
            process.join(GRACE_SECONDS)
            process.kill()
            process.join()


def _forked(target: Callable[..., None], name: str, pipe: Connection, parents: dict[str, Connection]) -> None:
    for inherited in parents.values():
        inherited.close()  # or no process would learn of the parent's end
    target(name, pipe)


def spawn(target: Callable[..., None], *args: Any, environment: dict[str, str | None]) -> BaseProcess:
    """Start a process with further environment variables, which stay set here as well.

    They are there before the process imports anything: libgomp reads its own when it is loaded, with torch.
    """
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    process = mp.get_context("spawn").Process(target=target, args=args)
    process.start()
    return process


def take_turns(task: Any, pipes: dict[str, Connection], rounds: int) -> Timed:
    """Give all processes the same task, and each a turn in every round.

    Raises:
        RuntimeError: if a process failed.
    """
    for pipe in pipes.values():
        prepare(task, pipe)  # one after the other, so that no preparation slows another
    return in_turns(pipes, rounds)


def prepare(task: Any, pipe: Connection) -> None:
    """Give one process its task, and wait until it is ready for its first turn.

    Raises:
        RuntimeError: if it failed.
    """
    _exchange(pipe, task)


def in_turns(pipes: dict[str, Connection], rounds: int, on_error: Callable[[str, str], None] | None = None) -> Timed:
    """Give processes that have a task a turn in every round; see `take_turns`.

    Args:
        pipes: to the processes.
        rounds: turns of each.
        on_error: called with the name of a process that fails and why. The others go on, and nothing that was measured
            of that one is returned. By default its failure is raised.

    Raises:
        RuntimeError: if a process failed and there is no `on_error`.
    """
    turns: dict[str, list[Any]] = {name: [] for name in pipes}
    ends: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name in list(turns):
            try:
                reply = _exchange(pipes[name], number < rounds)
            except RuntimeError as error:
                if on_error is None:
                    raise
                del turns[name]
                on_error(name, str(error))
                continue
            if number < rounds:
                turns[name].append(reply)
            else:
                ends[name] = reply
    return Timed(turns, ends)


def _exchange(pipe: Connection, message: Any) -> Any:
    """Send a message, and return the reply.

    Raises:
        RuntimeError: with what the process reports, or that it has ended.
    """
    with suppress(OSError):  # a process that has ended may have left its reason
        pipe.send(message)
    try:
        reply = pipe.recv()
    except (EOFError, OSError):
        reply = "a process has ended early"
    if isinstance(reply, str):
        raise RuntimeError(reply)
    return reply
