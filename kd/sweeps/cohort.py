"""Several trainings side by side in one process, so that what they have in common is made once.

Each training is a thread of its own, of which one at a time works: from one batch to the next, and finds the process's
global state, such as its random numbers, as it left it. So it does to the bit what it would have done alone. A batch
that another has just asked for is handed on, and so is what the teacher said to it. Whether there is anything to hand
on decides how fast a training is, never what comes of it.
"""

import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch

from kd.data.batch import Batch
from kd.models.output import Output
from kd.training.callbacks import Heed

T = TypeVar("T")

SETTLED = 3
"""A training that asks for its third batch has taken the memory that it will take."""
MARGIN = 2
"""How many times the memory that a training took has to be free for the next."""


class Alone:
    """A training that shares nothing."""

    alone = True
    """Whether the time that passes is this training's."""

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What all trainings of a cohort use and none changes: made by the first that needs it."""
        return make()

    def batches(self, split: str, loader: Any) -> Iterator[Batch]:
        """What a `kd.data.module.Loader` hands out, shared with the others' loaders for the same split."""
        return cast(Iterator[Batch], loader.batches(loader.draws()))

    def hearing(self, teacher: Callable[[Batch], Output]) -> Callable[[Batch], Output]:
        """A teacher that is asked once about a batch that all see."""
        return teacher

    def watchers(self) -> list[Heed]:
        """Callbacks for every training in this process."""
        return []


class State(NamedTuple):
    """A part of what is global to the process."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


def _set_filters(filters: Any) -> None:
    warnings.filters = filters


GLOBAL = (
    State(torch.get_rng_state, torch.set_rng_state),
    State(np.random.get_state, np.random.set_state),
    State(random.getstate, random.setstate),
    State(lambda: warnings.filters, _set_filters),  # contexts that ignore one, entered and left in turns
)


class Member(Alone):
    """One training among others.

    Args:
        cohort: the others.
        work: the training.
    """

    alone = False

    def __init__(self, cohort: "Cohort", work: Callable[["Member"], Any]) -> None:
        self.cohort, self.work = cohort, work
        self.outcome: Any = None
        self.ended = False
        self.asked = 0
        """Batches so far."""
        self._state = cohort.state()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def step(self) -> None:
        """Let it work until it asks for its next batch or ends."""
        self.cohort.put(self._state)
        self._go.release()
        self._back.acquire()
        self._state = self.cohort.state()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.outcome = self.work(self)
        except BaseException as error:  # an interruption, which is told to the one who interrupted
            self.outcome = error
        self.ended = True
        self._back.release()

    def _pause(self) -> None:
        self._back.release()
        self._go.acquire()
        if self.cohort.interrupted:
            raise SystemExit(130)

    def once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self.cohort.made:
            self.cohort.made[name] = make()
        made: T = self.cohort.made[name]
        return made

    def batches(self, split: str, loader: Any) -> Iterator[Batch]:
        epoch = getattr(loader.sampler, "epoch", 0)
        for step, draw in enumerate(loader.draws()):
            self.asked += 1
            self._pause()
            key = split, epoch, step
            if self.cohort.batch is None or self.cohort.batch[0] != key:
                self.cohort.batch = key, next(loader.batches([draw]))
            yield self.cohort.batch[1]

    def hearing(self, teacher: Callable[[Batch], Output]) -> Callable[[Batch], Output]:
        return self.once(f"what {id(teacher)} says", lambda: Echo(teacher))

    def watchers(self) -> list[Heed]:
        # While a teacher is trained, say, nobody asks for a shared batch, and so nobody pauses.
        return [Heed(lambda: self.cohort.interrupted)]


class Echo:
    """Repeats what the teacher said to the batch that it was asked about last."""

    def __init__(self, teacher: Callable[[Batch], Output]) -> None:
        self.teacher = teacher
        self.last: tuple[Any, Output] | None = None

    def __call__(self, batch: Batch) -> Output:
        # By its images: on its way through the Trainer a batch becomes another tuple of the same tensors.
        if self.last is None or self.last[0] is not batch.x:
            self.last = batch.x, self.teacher(batch)
        return self.last[1]


class Cohort:
    """Trainings side by side.

    Args:
        states: further global state that each of them is to find as it left it.
        free: bytes of memory that are free, where the trainings take it from; None if that is not known.
    """

    def __init__(self, states: Sequence[State] = (), free: Callable[[], int | None] = lambda: None) -> None:
        on_gpu = (State(torch.cuda.get_rng_state, torch.cuda.set_rng_state),) if torch.cuda.is_available() else ()
        self.states = (*GLOBAL, *on_gpu, *states)
        self.free = free
        self.made: dict[str, Any] = {}
        self.batch: tuple[Any, Batch] | None = None
        self.interrupted = False
        self.growth = 0
        """The most memory in bytes that a training took."""

    def run(self, works: Sequence[Callable[[Member], Any]]) -> list[Any]:
        """Do all of them, as many at a time as there is memory for; returns what each returned or raised.

        Raises:
            KeyboardInterrupt: if interrupted, once each has ended by a SystemExit.
        """
        outside = self.state()
        waiting = list(works)
        members: list[Member] = []
        try:
            while True:
                at_work = [member for member in members if not member.ended]
                if waiting and (not at_work or self._room()):
                    self.put(outside)
                    members.append(Member(self, waiting.pop(0)))
                    self._settle(members[-1])
                elif at_work:
                    for member in at_work:
                        member.step()
                else:
                    return [member.outcome for member in members]
        except KeyboardInterrupt:
            self.interrupted = True
            for member in members:
                while not member.ended:
                    member.step()
            raise
        finally:
            self.put(outside)

    def state(self) -> list[Any]:
        return [state.get() for state in self.states]

    def put(self, values: list[Any]) -> None:
        for state, value in zip(self.states, values, strict=True):
            state.set(value)

    def _settle(self, member: Member) -> None:
        before = self.free()
        while not member.ended and member.asked < SETTLED:
            member.step()
        after = self.free()
        if before is not None and after is not None:
            self.growth = max(self.growth, before - after)

    def _room(self) -> bool:
        free = self.free()
        return free is None or free > MARGIN * self.growth


def free_memory(device: str) -> int | None:
    """Bytes that a further training could take on a device as Lightning names it; None where that cannot be told."""
    if device != "cpu" and torch.cuda.is_available():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
