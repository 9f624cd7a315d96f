"""From the images that a step has to their pixels: in memory, or on disk by worker processes."""

import multiprocessing
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kd.data.batch import on_device
from kd.data.mix import Mix
from kd.data.policy import Policy
from kd.data.stored import Pixels
from kd.errors import UserError, reason_of


@dataclass(frozen=True)
class BatchIndices:
    """The images and views of one step, before the pixels are fetched."""

    index: Tensor
    """(B,), int64."""
    view: Tensor
    """(B,), int64, see `kd.data.augment`."""
    cut: Tensor | None
    """(B, 2), int64, centres of the cut squares; None without cutout."""
    policy: Policy | None = None
    """What else is done to each image; None for nothing."""
    seeds: Tensor | None = None
    """(B,), int64: of the random numbers of the user's own function; None without one."""
    mix: Mix | None = None
    """How the first images of the step, as many as it has, are mixed with others; None for none."""

    def part(self, part: slice | Tensor) -> "BatchIndices":
        """Return some of the images, without what they are mixed with."""
        cut = None if self.cut is None else self.cut[part]
        policy = None if self.policy is None else self.policy.part(part)
        seeds = None if self.seeds is None else self.seeds[part]
        return BatchIndices(self.index[part], self.view[part], cut, policy, seeds)

    def share(self, rank: int, ranks: int) -> "BatchIndices":
        """Return one rank's part of the step; where images are mixed, their partners come behind them."""
        if ranks == 1:
            return self
        ours = torch.arange(rank, len(self.index), ranks)
        if self.mix is None:
            return self.part(ours)
        both = torch.cat([ours, self.mix.partners[ours]])
        return replace(self.part(both), mix=self.mix.part(ours, torch.arange(len(ours), len(both))))


Fetched = tuple[BatchIndices, Tensor, Tensor]
"""The indices of a step, the pixels (B, C, H, W) of its images, uint8, and their labels (B,)."""


class InMemory:
    """Pixels on the device where they are used: no worker processes, no copies."""

    def __init__(self, x: Tensor, y: Tensor, device: torch.device) -> None:
        self.x, self.y = x.to(device), y.to(device)

    def fetch(self, indices: Iterable[BatchIndices]) -> Iterator[Fetched]:
        for step in indices:
            index = on_device(step.index, self.x.device)
            yield replace(step, index=index), self.x[index], self.y[index]


class OnDisk(Dataset[Fetched]):
    """Pixels that worker processes fetch ahead of their use: for data that does not fit into memory."""

    def __init__(self, x: Pixels, y: Tensor, device: torch.device, workers: int) -> None:
        self.x, self.y, self.device, self.workers = x, y, device, workers

    def __getitem__(self, step: BatchIndices) -> Fetched:
        return step, self.x[step.index], self.y[step.index]

    def fetch(self, indices: Iterable[BatchIndices]) -> Iterator[Fetched]:
        # Forked workers share the file; spawned ones would receive a copy of all pixels that are a tensor.
        forks = "fork" in multiprocessing.get_all_start_methods()
        workers, pinned = self.workers if forks else 0, self.device.type == "cuda"
        fetched = DataLoader(
            self,
            sampler=indices,
            batch_size=None,  # each item is a whole batch
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            pin_memory=pinned,
            generator=torch.Generator(),  # the global one would change the random numbers of dropout
        )
        try:
            for step, x, y in fetched:
                # Without waiting for the copy the source could be freed too early, but for pinned memory.
                yield step, x.to(self.device, non_blocking=pinned), y.to(self.device, non_blocking=pinned)
        except UserError as error:  # of a worker process it has the traceback, too
            raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            reason = reason_of(error)  # what a worker itself has raised begins otherwise
            if not re.search(r"^DataLoader worker \(pid|shared memory", reason):
                raise
            raise UserError(
                f"a process that reads images has died ({reason}); give data.workers=0, or more shared memory, as by "
                "docker run --shm-size=2g"
            ) from error
