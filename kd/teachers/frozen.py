"""Networks that teach: frozen, alone or several as one, with the accuracy that they are on record with."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.errors import UserError
from kd.models.ensemble import Ensemble
from kd.models.output import Output
from kd.runs.weights import content_id, fill, load_weights

CLOSE = 0.01
"""Difference of two accuracies that rounding may make, unless already one image makes more."""

log = logging.getLogger(__name__)


class FrozenTeacher:
    """Answers batches with a network's `Output`, which nothing here ever changes.

    In eval mode, without gradients; deliberately no nn.Module, so that whatever holds it neither trains, saves nor
    switches it. It follows the batches to their device.

    Args:
        net: the network; it is put into eval mode and its parameters stop asking for gradients.
        id: what names these weights.
        prepare: makes a copy of the network that answers in its place, and faster.
    """

    def __init__(self, net: nn.Module, id: str, prepare: Callable[[nn.Module], nn.Module] = lambda net: net) -> None:
        self.net, self.id = net.eval().requires_grad_(False), id
        self._spokesman = prepare(self.net)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        weight = next(self._spokesman.parameters())
        if weight.device != batch.x.device:
            self._spokesman.to(batch.x.device)
        return cast(Output, self._spokesman(batch.x.to(weight.dtype)))

    @torch.no_grad()
    def itself(self, batch: Batch) -> Output:
        """What the network says that was prepared, with the precision in which it was trained and tested."""
        half = next(self._spokesman.parameters()).dtype == torch.bfloat16
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=half):
            return cast(Output, self.net.to(batch.x.device)(batch.x))

    def accuracy(self, batches: Iterable[Batch]) -> float:
        """Share of images that are classified right, in [0, 1]."""
        return _share(_hits(self, batches))


def load(net: nn.Module, path: Path, prepare: Callable[[nn.Module], nn.Module] = lambda net: net) -> FrozenTeacher:
    """A frozen teacher of the given architecture with the weights in a safetensors file, see `FrozenTeacher`.

    Raises:
        UserError: if the file is missing, damaged, or of another architecture or number of classes.
    """
    tensors, _ = load_weights(path)
    fill(net, tensors, path)
    return FrozenTeacher(net, content_id(tensors), prepare)


def joined(
    teachers: Sequence[FrozenTeacher], prepare: Callable[[nn.Module], nn.Module] = lambda net: net
) -> FrozenTeacher:
    """Several teachers who answer as one, see `kd.models.ensemble`; one is itself."""
    if len(teachers) == 1:
        return teachers[0]
    # Back from where one may have been asked itself: they have to be in one place.
    net = Ensemble(teacher.net.cpu() for teacher in teachers)
    return FrozenTeacher(net, content_id(net.state_dict()), prepare)


def verify(teacher: FrozenTeacher, batches: Iterable[Batch], claimed: float | None, path: Path) -> float:
    """The teacher's accuracy in [0, 1], measured, so that nothing is distilled from a teacher that went bad unnoticed.

    Args:
        batches: of the test split; may be gone through twice.
        claimed: the accuracy on record for these weights and data, if any; up to one point of difference, or one
            image, is taken for the rounding of another device or precision. A prepared copy that is further off may
            be unsure of few images: then the network itself is asked.

    Raises:
        UserError: if the two differ.
    """
    hits = _hits(teacher, batches)
    accuracy, close = _share(hits), max(CLOSE, 1.5 / len(hits))
    log.info("teacher %s: %.2f %% on the test split", path, 100 * accuracy)
    if claimed is not None and abs(accuracy - claimed) > close:
        accuracy = _share(_hits(teacher.itself, batches))
    if claimed is not None and abs(accuracy - claimed) > close:
        raise UserError(
            f"{path} is on record with {100 * claimed:.2f} % on this test split but reaches {100 * accuracy:.2f} %; "
            f"remove {path.parent} to have the teacher trained again"
        )
    return accuracy


def _hits(asked: Callable[[Batch], Output], batches: Iterable[Batch]) -> Tensor:
    """(N,), which images are classified right."""
    return torch.cat([(asked(batch).logits.argmax(dim=1) == batch.y).cpu() for batch in batches])


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
