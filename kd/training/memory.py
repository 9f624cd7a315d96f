"""How much memory there is, and what to do about a device that is out of it: the batch size that fits, by trying."""

import re
import traceback
from contextlib import suppress
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.plugins.precision import Precision

from kd.data.batch import Batch
from kd.data.module import DataModule
from kd.errors import UserError
from kd.training.modules import Classifier

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux has the limits of a container."""


def free_memory() -> int | None:
    """Return how many bytes of memory could be taken without swapping; None where the system does not say.

    In a container with a limit that is what the limit leaves, if it is less.
    """
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    free = None if found is None else int(found[1]) * 1024
    with suppress(OSError, ValueError, TypeError):
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (CONTAINER / "memory.stat").read_text(), re.MULTILINE)
        left = limit - used + int(cached[1] if cached else 0)
        free = max(0, left if free is None else min(free, left))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is that of a GPU, or of a processor, that has no more memory to give."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # A context or a library's workspace that finds none is a RuntimeError; so is cuDNN's trial of algorithms, of which
    # none has memory.
    pattern = r"DefaultCPUAllocator|out of memory|_ALLOC(ATION)?_FAILED|unable to find an engine"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error)) is not None


def hint_of_cudnn(error: BaseException) -> str:
    """Return what else a lack of memory may mean, for the end of a message; "" for nothing."""
    return "; or cuDNN does not work here" if "unable to find an engine" in str(error) else ""


def is_device_error(error: BaseException) -> bool:
    """Return whether an error is that of a device, or of the connection between devices, whatever is computed."""
    pattern = r"\b(CUDA|cuDNN|CUBLAS|HIP|NCCL|MPS)\b"
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and re.search(pattern, str(error)) is not None
    )


def out_of_memory(error: BaseException, module: Classifier, data: DataModule, trainer: L.Trainer) -> UserError:
    """Return the message for a training that ran out of memory, with the batch size that fits.

    Args:
        error: what ended the training.
        module: what was trained.
        data: its batches.
        trainer: after its failure.
    """
    traceback.clear_frames(error.__traceback__)  # they hold the activations of the failed step
    device = f"the device, {trainer.strategy.root_device},"
    try:
        batch = next(iter(data.train_dataloader()))
    except (RuntimeError, MemoryError) as second:
        if not is_out_of_memory(second):
            raise
        return UserError(f"{device} has no memory for all images; give data.in_memory=false")
    if trainer.world_size > 1:  # a step by itself would wait for the other processes, as that of crd does
        smaller = data.batch_size // 2 // trainer.world_size * trainer.world_size
        way_out = f"try batch_size={smaller}, or a smaller network" if smaller else "choose a smaller network"
    elif (fitting := fitting_batch_size(module, trainer, batch)) is None:
        way_out = "not even one image a step fits; choose a smaller network"
        way_out += hint_of_cudnn(error)
    else:
        way_out = f"batch_size={fitting} fits, as does a smaller network"
    return UserError(f"{device} has no memory for steps of {data.batch_size} images; {way_out}")


def fitting_batch_size(module: Classifier, trainer: L.Trainer, batch: Batch) -> int | None:
    """Return the largest half, quarter, eighth ... of a batch whose step has memory; None if one image is too many.

    Args:
        module: is moved to the Trainer's device; its gradients are lost.
        trainer: whose device and precision to use.
        batch: on any device.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    size = len(batch.y)
    while size := size // 2:
        try:
            module.to(device)
            # The optimiser's moments, which a failed first step has not made yet.
            moments = [torch.empty_like(parameter) for parameter in module.parameters() for _ in range(2)]
            _try_step(module, precision, Batch(*(part[:size].to(device) for part in batch)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        else:
            return size
        finally:
            moments = []  # noqa: F841 - frees them
            module.zero_grad()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return None


def _try_step(module: Classifier, precision: Precision, batch: Batch) -> None:
    """Make a step's two passes, in a frame of its own: cleared after a failure, it holds no activations."""
    with precision.forward_context():
        loss = module.step(precision.convert_input(batch)).loss
    torch.autograd.backward(loss)
