"""What to do about a device that is out of memory: the batch size that fits, found by trying."""

import traceback

import lightning as L
import torch

from kd.data.batch import Batch
from kd.data.module import DataModule
from kd.errors import UserError
from kd.training.modules import Classifier


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error is that of a GPU, or of a processor, that has no more memory to give."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


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
        if not lacks_memory(second):
            raise
        return UserError(f"{device} has no memory for all images; give data.in_memory=false")
    fitting = fitting_batch_size(module, trainer, batch)
    if fitting is None:
        way_out = "not even one image a step fits; choose a smaller network"
    else:
        way_out = f"batch_size={fitting * trainer.world_size} fits, as does a smaller network"
    return UserError(f"{device} has no memory for steps of {data.batch_size} images; {way_out}")


def fitting_batch_size(module: Classifier, trainer: L.Trainer, batch: Batch) -> int | None:
    """Return the largest half, quarter, eighth ... of a batch whose step has memory; None if one image is too many.

    Args:
        module: is moved to the Trainer's device; its gradients are lost.
        trainer: whose device and precision to use.
        batch: on any device.
    """
    device = trainer.strategy.root_device
    size = len(batch.y)
    while size := size // 2:
        try:
            module.to(device)
            # The optimiser's moments, which a failed first step has not made yet.
            moments = [torch.empty_like(parameter) for parameter in module.parameters() for _ in range(2)]
            with trainer.precision_plugin.forward_context():
                terms = module.step(Batch(*(part[:size].to(device) for part in batch))).terms
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
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
