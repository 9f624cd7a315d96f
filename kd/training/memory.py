"""What to do about a GPU that is out of memory: the batch size that fits, found by trying."""

import traceback

import lightning as L
import torch

from kd.data.batch import Batch
from kd.data.module import DataModule
from kd.errors import UserError
from kd.training.modules import Classifier


def out_of_memory(error: torch.OutOfMemoryError, module: Classifier, data: DataModule, trainer: L.Trainer) -> UserError:
    """Return the message for a training that ran out of a GPU's memory, with the batch size that fits.

    Args:
        error: what ended the training.
        module: what was trained.
        data: its batches.
        trainer: after its failure.
    """
    traceback.clear_frames(error.__traceback__)  # they hold the activations of the failed step
    try:
        batch = next(iter(data.train_dataloader()))
    except torch.OutOfMemoryError:
        return UserError("the GPU has no memory for all images; give data.in_memory=false")
    fitting = fitting_batch_size(module, trainer, batch)
    if fitting is None:
        way_out = "not even one image a step fits; choose a smaller network"
    else:
        way_out = f"batch_size={fitting * trainer.world_size} fits, as does a smaller network"
    return UserError(f"the GPU has no memory for steps of {data.batch_size} images; {way_out}")


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
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
        else:
            return size
        finally:
            moments = []  # noqa: F841 - frees them
            module.zero_grad()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return None
