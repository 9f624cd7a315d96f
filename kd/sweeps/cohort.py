"""Several trainings side by side in one process, so that what they have in common is computed once.

Each training is a thread of its own. One thread runs at a time, from one batch to the next, and finds the process's
global state, such as its random numbers, as it left it. So its result is bitwise that of a single run. The last batch
that a training has made is shared with the others, and so is the teacher's output for it. Sharing changes the speed of
a training, never its result.

No module below this folder depends on cohorts: sharing is added from outside, by a data module, a teacher and a
callback.
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
from kd.data.fetch import InMemory
from kd.data.module import CPU, DataModule, Loader
from kd.methods.base import Teacher
from kd.models.output import Output
from kd.training.callbacks import StopOnInterrupt
from kd.training.memory import free_memory

T = TypeVar("T")

SETTLED = 3
"""Batches after which a training has allocated the memory that it needs."""
MARGIN = 2
"""How many times the memory of one training has to be free for the next to start."""


class State(NamedTuple):
    """A part of the process's global state, by its getter and its setter."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


def _set_filters(filters: Any) -> None:
    warnings.filters = filters


GLOBAL = (
    State(torch.get_rng_state, torch.set_rng_state),
    State(np.random.get_state, np.random.set_state),
    State(random.getstate, random.setstate),
    State(lambda: warnings.filters, _set_filters),  # contexts that ignore a warning overlap between threads
)


class Member:
    """One training of a cohort, on a thread of its own.

    Args:
        cohort: the cohort it belongs to.
        work: the training.
    """

    def __init__(self, cohort: "Cohort", work: Callable[["Member"], Any]) -> None:
        self.cohort, self.work = cohort, work
        self.outcome: Any = None
        self.ended = False
        self.batches_so_far = 0
        self._state = cohort.state()
        self._resumed, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def step(self) -> None:
        """Run it until it needs its next batch or ends."""
        self.cohort.put(self._state)
        self.resume()
        self._state = self.cohort.state()

    def resume(self) -> None:
        """Run it on, in whatever global state there is."""
        self._resumed.release()
        self._paused.acquire()

    def shared(self, name: str, create: Callable[[], T]) -> T:
        """Return an object that all trainings of the cohort use and none changes; the first to need it creates it."""
        if name not in self.cohort.created:
            self.cohort.created[name] = create()
        created: T = self.cohort.created[name]
        return created

    def shared_teacher(self, teacher: Teacher) -> "SharedTeacher":
        """Return the cohort's shared teacher, which computes the output of a batch once for all trainings."""
        return self.shared(f"outputs of {id(teacher)}", lambda: SharedTeacher(teacher))

    def batches(self, split: str, loader: Loader) -> Iterator[Batch]:
        """Yield the loader's batches; the last one that any training has made is shared."""
        epoch = getattr(loader.sampler, "epoch", 0)
        for step, indices in enumerate(loader.indices()):
            self.batches_so_far += 1
            self._pause()
            key = split, epoch, step
            last = self.cohort.batch
            if last is None or last[0] != key or _changes(last[1]) != last[2]:
                with torch.inference_mode(False):  # so that changes are counted while networks are validated, too
                    made = next(loader.batches([indices]))
                last = self.cohort.batch = key, made, _changes(made)
            yield last[1]

    def callbacks(self) -> list[Callback]:
        """Return callbacks for every training of this process, also a teacher's, which has no shared batches."""
        return [StopOnInterrupt(lambda: self.cohort.interrupted)]

    def _run(self) -> None:
        self._resumed.acquire()
        try:
            self.outcome = self.work(self)
        except BaseException as error:  # an interruption too, which is raised again on the main thread
            self.outcome = error
        self.ended = True
        self._paused.release()

    def _pause(self) -> None:
        self._paused.release()
        self._resumed.acquire()
        if self.cohort.interrupted:
            raise SystemExit(130)


class SharedTeacher:
    """A teacher whose output for a batch is computed once for several trainings, one after the other.

    It is computed again if a training has changed the batch or the output in place.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.last: tuple[Tensor, Output, list[int]] | None = None

    def __call__(self, batch: Batch) -> Output:
        # Compared by the images: the Trainer makes another tuple of a batch's tensors.
        if self.last is None or self.last[0] is not batch.x or _changes(batch, self.last[1]) != self.last[2]:
            output = self.teacher(batch)
            self.last = batch.x, output, _changes(batch, output)
        return self.last[1]


def _changes(batch: Batch, output: Output | None = None) -> list[int]:
    """Return how often each tensor was changed in place, which torch does not count of those of inference mode."""
    tensors = [*batch]
    if output is not None:
        tensors += [output.logits, *output.features, output.embedding, *output.preacts]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


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

    def shared(self, name: str, create: Callable[[], InMemory]) -> InMemory:
        return self.member.shared(name, create)

    def train_dataloader(self) -> Loader:
        return self._by_all("train", super().train_dataloader())

    def val_dataloader(self) -> Loader | list[Loader]:
        loader = super().val_dataloader()
        return self._by_all("val", loader) if isinstance(loader, Loader) else loader

    def test_dataloader(self, device: torch.device = CPU) -> Loader:
        return self._by_all("test", super().test_dataloader(device))

    def _by_all(self, split: str, loader: Loader) -> Loader:
        return SharedLoader(loader, self.member, split) if self.in_memory else loader


class Memory:
    """The memory of a device, and the random numbers that are drawn there.

    Args:
        device: CUDA's with its index, since a thread of its own has another current device; or the processor.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def states(self) -> tuple[State, ...]:
        if self.device.type != "cuda":
            return ()
        device = self.device
        return (State(lambda: torch.cuda.get_rng_state(device), lambda state: torch.cuda.set_rng_state(state, device)),)

    def free(self) -> int | None:
        """Return the bytes that a further training can use; None where that is unknown."""
        if self.device.type != "cuda":
            return free_memory()
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + cached

    def peak(self) -> int:
        """Return the bytes that steps have taken at most beyond what is allocated now; 0 where that is unknown."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)

    def reset_peak(self) -> None:
        """Begin `peak` anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)


class Cohort:
    """Several trainings side by side.

    Args:
        states: further global state that each training finds as it left it.
        memory: of the trainings' device.
    """

    def __init__(self, states: Sequence[State] = (), memory: Memory | None = None) -> None:
        self.memory = memory or Memory(CPU)
        self.states = (*GLOBAL, *self.memory.states, *states)
        self.created: dict[str, Any] = {}
        self.batch: tuple[Any, Batch, list[int]] | None = None
        self.interrupted = False
        self.growth = 0
        """The most memory in bytes that a training keeps allocated."""
        self.peak = 0
        """The most memory in bytes that a step has taken beyond that."""

    def run(self, works: Sequence[Callable[[Member], Any]]) -> list[Any]:
        """Run all trainings, as many at a time as fit into memory; return what each returned or raised.

        Raises:
            KeyboardInterrupt: if interrupted, after each has ended by a SystemExit; any other error, such
                as that no thread can be started, likewise.
        """
        outside = self.state()
        waiting = list(works)
        members: list[Member] = []
        try:
            while True:
                active = [member for member in members if not member.ended]
                if waiting and (not active or self._room()):
                    self.put(outside)
                    members.append(Member(self, waiting.pop(0)))
                    self._settle(members[-1])
                elif active:
                    for member in active:
                        member.step()
                else:
                    return [member.outcome for member in members]
        except BaseException as error:
            self.interrupted = True
            for member in members:
                while not member.ended:  # else it would hold the lock of its directory for good
                    member.step() if isinstance(error, KeyboardInterrupt) else member.resume()
            raise
        finally:
            self.put(outside)

    def state(self) -> list[Any]:
        return [state.get() for state in self.states]

    def put(self, values: list[Any]) -> None:
        for state, value in zip(self.states, values, strict=True):
            state.set(value)

    def _settle(self, member: Member) -> None:
        before = self.memory.free()
        while not member.ended and member.batches_so_far < SETTLED:
            member.step()
            if member.batches_so_far == 1:
                self.memory.reset_peak()  # what came before its steps, such as a teacher's training, is over
        after = self.memory.free()
        if before is not None and after is not None:
            self.growth = max(self.growth, before - after)

    def _room(self) -> bool:
        self.peak = max(self.peak, self.memory.peak())
        free = self.memory.free()
        return free is None or free > MARGIN * self.growth + self.peak
