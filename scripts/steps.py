"""Steps of several networks or methods, timed in turns in one process."""

import time
from collections.abc import Callable, Mapping

import torch

from kd.errors import UserError


def chosen_device(name: str | None) -> str:
    """Return what --device means, "cpu" or "gpu": by default the GPU if there is one.

    Raises:
        UserError: for a GPU that torch cannot use.
    """
    there = torch.cuda.is_available()
    if name == "gpu" and not there:
        raise UserError("there is no GPU that torch can use; leave out --device")
    return name or ("gpu" if there else "cpu")


def torch_device(name: str) -> torch.device:
    """Return the device of "cpu" or "gpu"."""
    return torch.device("cuda" if name == "gpu" else "cpu")


def timed(
    steps: Mapping[str, Callable[[], None]], rounds: int, count: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of a step in each turn of `count` steps, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()  # untimed: what the last one left in the caches is none of its own
            synchronize(device)
            started = time.perf_counter()
            for _ in range(count):
                step()
            synchronize(device)
            seconds[name].append((time.perf_counter() - started) / count)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what was begun."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
