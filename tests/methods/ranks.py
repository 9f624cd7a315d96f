"""Two data-parallel ranks that train with every method, one after the other: `ranks.py RANK FOLDER` is one of them."""

import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd.data.batch import Batch
from tests.methods.every import METHODS, PROGRESS, Case, case

RANKS = 2


class Together(nn.Module):
    """Student and method as one module, as a LightningModule holds them."""

    def __init__(self, found: Case) -> None:
        super().__init__()
        self.student, self.method, self.taught = found.student, found.method, found.taught

    def forward(self, batch: Batch) -> Tensor:
        return self.method.step(self.student, self.taught, batch).loss


def prepared(name: str) -> Case:
    """Return the method with 16 images; the student is in eval mode, in which no image depends on another."""
    found = case(name, images=16)
    found.student.eval()
    return found


def part(batch: Batch, rank: int) -> Batch:
    return Batch(*(tensor[rank::RANKS] for tensor in batch))


def trained(name: str, rank: int | None) -> dict[str, Tensor]:
    """Return the parameters after a step each early and late in training.

    Args:
        name: the method.
        rank: which of the ranks this process is; None for one process with all images.
    """
    found = prepared(name)
    module = Together(found)
    forward = module if rank is None else DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    torch.manual_seed(10 + (rank or 0))
    for progress in PROGRESS:
        found.method.progress = progress
        optimizer.zero_grad()
        forward(found.batch if rank is None else part(found.batch, rank)).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def work(rank: int, folder: Path) -> None:
    """Write the parameters, or what went wrong, for every method; called in a process of its own."""
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/meeting", limit, rank=rank, world_size=RANKS)
    for name in METHODS:
        try:
            result: object = trained(name, rank)
        except Exception:
            result = traceback.format_exc()
        torch.save(result, folder / f"{name}.{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
