"""Several trainings side by side in one process, so that what they have in common is made once.

Each training is a thread of its own, of which one at a time works: from one batch to the next, and finds the process's
global state, such as its random numbers, as it left it. So its result is bitwise what it would have been alone. A batch
that another training has just made is passed on, and so is the teacher's output for it. Whether there is anything to
pass on decides how fast a training is, never what comes of it.

Nothing below this folder knows of cohorts: sharing is put on from outside, by a data module, a teacher and a callback.
"""

import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from lightning import Callback
from torch import Tensor

from kd.data.batch import Batch
from kd.data.module import CPU, DataModule, InMemory, Loader, OnDisk, Sequential, Shuffled
from kd.models.output import Output
from kd.training.callbacks import StopOnInterrupt

T = TypeVar("T")

SETTLED = 3
"""With its third batch a training has taken the memory that it will take."""
MARGIN = 2
"""How many times the memory that a training took has to be free for the next."""


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


class Member:
    """One training among others, on a thread of its own.

    Args:
        cohort: all of them.
        work: the training.
    """

    def __init__(self, cohort: "Cohort", work: Callable[["Member"], Any]) -> None:
        self.cohort, self.work = cohort, work
        self.outcome: Any = None
        self.ended = False
        self.batches_so_far = 0
        self._state = cohort.state()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def step(self) -> None:
        """Let it work until it asks for its next batch or ends."""
        self.cohort.put(self._state)
        self._go.release()
        self._back.acquire()
        self._state = self.cohort.state()

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """Return what all trainings of the cohort use and none changes; made by the first that needs it."""
        if name not in self.cohort.made:
            self.cohort.made[name] = make()
        made: T = self.cohort.made[name]
        return made

    def shared_teacher(self, teacher: Callable[[Batch], Output]) -> "SharedTeacher":
        """Return the teacher as all trainings of the cohort use it: computed once for a batch that all see."""
        return self.shared(f"outputs of {id(teacher)}", lambda: SharedTeacher(teacher))

    def batches(self, split: str, loader: Loader) -> Iterator[Batch]:
        """The loader's batches; one that another training has just made is passed on."""
        epoch = getattr(loader.sampler, "epoch", 0)
        for step, indices in enumerate(loader.indices()):
            self.batches_so_far += 1
            self._pause()
            key = split, epoch, step
            if self.cohort.batch is None or self.cohort.batch[0] != key:
                self.cohort.batch = key, next(loader.batches([indices]))
            yield self.cohort.batch[1]

    def callbacks(self) -> list[Callback]:
        """For every training of this process: a teacher that is trained asks for no shared batch and never pauses."""
        return [StopOnInterrupt(lambda: self.cohort.interrupted)]

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.outcome = self.work(self)
        except BaseException as error:  # an interruption, which is raised again where it was caused
            self.outcome = error
        self.ended = True
        self._back.release()

    def _pause(self) -> None:
        self._back.release()
        self._go.acquire()
        if self.cohort.interrupted:
            raise SystemExit(130)


class SharedTeacher:
    """Computes a teacher's output once for a batch that several trainings see one after the other."""

    def __init__(self, teacher: Callable[[Batch], Output]) -> None:
        self.teacher = teacher
        self.last: tuple[Any, Output] | None = None

    def __call__(self, batch: Batch) -> Output:
        # By its images: on its way through the Trainer a batch becomes another tuple of the same tensors.
        if self.last is None or self.last[0] is not batch.x:
            self.last = batch.x, self.teacher(batch)
        return self.last[1]


class SharedLoader(Loader):
    """A loader whose batches all members of a cohort use."""

    def __init__(self, loader: Loader, member: Member, split: str) -> None:
        vars(self).update(vars(loader))
        self.member, self.split = member, split

    def __iter__(self) -> Iterator[Batch]:
        return self.member.batches(self.split, self)


class SharedDataModule(DataModule):
    """The data of one member of a cohort: pixels lie on the device once, batches are made once."""

    def __init__(self, data: DataModule, member: Member) -> None:
        vars(self).update(vars(data))
        self.member = member

    def pixels(self, split: str, x: Tensor, y: Tensor, device: torch.device) -> InMemory | OnDisk:
        if not self.in_memory:
            return super().pixels(split, x, y, device)
        source = "test" if split == "test" else "train"
        return self.member.shared(f"{source} images on {device}", lambda: InMemory(x, y, device))

    def loader(
        self,
        split: str,
        sampler: Shuffled | Sequential,
        x: Tensor,
        y: Tensor,
        first: int = 0,
        device: torch.device = CPU,
    ) -> Loader:
        loader = super().loader(split, sampler, x, y, first, device)
        return SharedLoader(loader, self.member, split) if self.in_memory else loader


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
        while not member.ended and member.batches_so_far < SETTLED:
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
