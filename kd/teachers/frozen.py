"""Frozen teachers: one network or several as one, what they were trained on, and their accuracy."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.errors import UserError, reason_of
from kd.methods.base import restored_net
from kd.models.ensemble import Ensemble
from kd.models.output import Output, checked
from kd.runs.described import are_numbers
from kd.runs.weights import content_id, fill, read_weights, renamed
from kd.terminal import with_progress

CLOSE = 0.01
"""Largest difference of two accuracies that is put down to rounding, unless one image alone makes a larger one."""

SAME_NORMALISATION = 0.02
"""Largest difference of two means or standard deviations, fractions of a pixel's range, that a teacher hardly notices:
JPEG copies and other splits of a data set stay below it."""

log = logging.getLogger(__name__)


class FrozenTeacher:
    """A function from batches to a network's `Output`, in eval mode and without gradients.

    Deliberately no nn.Module, so that a module that holds it neither trains, saves nor switches it. The network moves
    to the device of the batches.

    Args:
        net: the network, which returns `Output`. It is put into eval mode and its parameters no longer require
            gradients.
        id: what names these weights.
        prepare: makes the copy of the network that is used for inference, such as a faster one; by default it is the
            network itself.
    """

    def __init__(self, net: nn.Module, id: str, prepare: Callable[[nn.Module], nn.Module] = lambda net: net) -> None:
        self.net, self.id = net.eval().requires_grad_(False), id
        self.inference_net = prepare(self.net)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        """Return the output for a batch, in the precision of the inference copy.

        Raises:
            TypeError: if the network returns anything but an `Output`.
        """
        weight = next(self.inference_net.parameters())
        if weight.device != batch.x.device:
            self.inference_net.to(batch.x.device)
        return checked(self.inference_net(batch.x.to(weight.dtype)), self.net)

    @torch.no_grad()
    def forward_as_trained(self, batch: Batch) -> Output:
        """Return the output of the network itself, not of its copy: as it was trained and tested.

        Where the copy is in bf16, the network runs under bf16 autocast, else in fp32.
        """
        half = next(self.inference_net.parameters()).dtype == torch.bfloat16
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=half):
            return checked(self.net.to(batch.x.device)(batch.x), self.net)

    def accuracy(self, batches: Iterable[Batch]) -> float:
        """Return the share of images that are classified right, in [0, 1]."""
        return _share(_hits(self, batches))


def freeze(net: nn.Module, id: str = "") -> FrozenTeacher:
    """Turn a network into a teacher for `kd.distill`, `kd.Distiller` or `Method.step`.

    Args:
        net: the network, which returns `Output`, as those of `kd.models`, `kd.wrap` and `kd.load` do. It is frozen
            itself and not copied.
        id: what names its weights, where that matters.
    """
    return FrozenTeacher(net, id)


class Fitted(NamedTuple):
    """A network with the weights in a file."""

    net: nn.Module
    """The network that was given, with what the method in the file's metadata keeps around it, as simkd does."""
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    notes: list[str]
    """What was done to make them fit."""


def fitted(net: nn.Module, path: Path) -> Fitted:
    """Fill a network with the weights in a file of any program, see `kd.runs.weights.read_weights`.

    Args:
        net: of the file's architecture; its weights are replaced.

    Raises:
        UserError: if the file is missing, damaged, of another architecture or number of classes, or not finite.
    """
    tensors, metadata = read_weights(path)
    try:
        net = restored_net(net, tensors, metadata.get("method"))
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot build the layers that its method keeps: {reason_of(error)}") from error
    tensors, notes = renamed(net, tensors)
    fill(net, tensors, path)
    return Fitted(net, tensors, metadata, [f"{path}: {note}" for note in notes])


def load(
    net: nn.Module,
    path: Path,
    prepare: Callable[[nn.Module], nn.Module] = lambda net: net,
    name: Callable[[str], str] = lambda content: content,
) -> FrozenTeacher:
    """Return a frozen teacher with the weights in a file, see `FrozenTeacher` and `fitted`.

    Args:
        net: of the file's architecture; its weights are replaced.
        name: makes what names the teacher of what names its weights.

    Raises:
        UserError: if the file is missing, damaged, of another architecture or number of classes, or not finite.
    """
    found = fitted(net, path)
    for note in found.notes:
        log.info("%s", note)
    return FrozenTeacher(found.net, name(content_id(found.tensors)), prepare)


def check_origin(metadata: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> list[str]:
    """Compare what a teacher was trained on with what it is to be shown.

    Args:
        metadata: of the teacher's file.
        own: the same of the data, as the teacher is shown them: classes, image_size, mean, std, data_id, dataset.
        path: the file, for messages.

    Returns:
        Warnings, for a file that says nothing about its data, or comes from other images of the same classes.

    Raises:
        UserError: if the classes, their order, the image size or the normalisation differ.
    """
    classes = metadata.get("classes")
    if not isinstance(classes, list) or not all(are_numbers(metadata.get(name)) for name in ("mean", "std")):
        return [
            f"{path} does not say what it was trained on; the order of its classes and its normalisation are trusted"
        ]
    if metadata.get("data_id") == own["data_id"]:
        return []
    metadata = {**metadata, **_own_view(metadata.get("model"))}
    classes = metadata["classes"]
    source = f"teacher_weights={path} comes from {metadata.get('dataset', 'other data')}, "
    advice = "; give weights of this data, or leave teacher_weights out to have a teacher trained"
    ours = list(own["classes"])
    if len(classes) != len(ours):
        raise UserError(f"{source}with {len(classes)} classes instead of {len(ours)}{_SETTABLE['classes']}{advice}")
    for place, (theirs, our) in enumerate(zip(classes, ours, strict=True)):
        if theirs != our:
            difference = f"whose class {place} is {theirs!r:.60}, and here it is {our!r:.60}"
            raise UserError(f"{source}{difference}{_SETTABLE['classes']}{advice}")
    size = metadata.get("image_size", own["image_size"])
    if _both_sides(size) != _both_sides(own["image_size"]):
        difference = f"with images of {size} pixels, and here they have {own['image_size']}"
        raise UserError(f"{source}{difference}{_SETTABLE['size']}{advice}")
    for name in ("mean", "std"):
        there, here = metadata[name], own[name]
        if len(there) != len(here) or any(abs(a - b) > SAME_NORMALISATION for a, b in zip(there, here, strict=True)):
            numbers = " and here ".join("(" + ", ".join(f"{value:.3f}" for value in v) + ")" for v in (there, here))
            difference = f"normalised otherwise: the {name} of its pixels is {numbers}"
            raise UserError(f"{source}{difference}{_SETTABLE['mean']}{advice}")
    return [f"{path} was trained on other images of the same classes ({metadata.get('dataset', 'of an unknown name')})"]


def _both_sides(size: object) -> object:
    """Return height and width of what is one number for squares; anything else as it is."""
    return [size, size] if isinstance(size, int) else list(size) if isinstance(size, tuple) else size


_SETTABLE = {
    "classes": " (teacher.classes=[...] maps them, for teacher=torchvision, timm and custom)",
    "size": " (teacher.size= resizes them, for teacher=torchvision, timm and custom)",
    "mean": " (teacher.mean= and std= normalise them so, for teacher=torchvision, timm and custom)",
}


def _own_view(model: object) -> dict[str, Any]:
    """What a network's own settings, in a file's metadata, put in the place of its data's, see `External.view`."""
    settings = model if isinstance(model, dict) else {}
    view = {name: settings[name] for name in ("mean", "std") if are_numbers(settings.get(name))}
    if isinstance(settings.get("classes"), list):
        view["classes"] = settings["classes"]
    return view if settings.get("size") is None else {**view, "image_size": settings["size"]}


def joined(
    teachers: Sequence[FrozenTeacher],
    prepare: Callable[[nn.Module], nn.Module] = lambda net: net,
    name: Callable[[str], str] = lambda content: content,
    images: Tensor | None = None,
) -> FrozenTeacher:
    """Join several teachers into an ensemble; a single one is returned as it is.

    Args:
        prepare, name: as in `load`.
        images: as of `kd.models.ensemble.Ensemble`.
    """
    if len(teachers) == 1:
        return teachers[0]
    net = Ensemble((teacher.net for teacher in teachers), images)
    return FrozenTeacher(net, name(content_id(net.state_dict())), prepare)


def verify(
    teacher: FrozenTeacher, batches: Iterable[Batch], claimed: float | None, path: Path, advice: str = ""
) -> float:
    """Measure the teacher's accuracy, in [0, 1], so that nothing is distilled from damaged weights.

    Args:
        batches: of the test split; may be iterated over twice.
        claimed: the accuracy on record for these weights and data, if any. A difference of up to one point, or of one
            image, is put down to the rounding of another device or precision. An inference copy that is further off
            may be so by rounding, too, where there are few images: then the network itself is measured.
        path: its file.
        advice: what to do if the two differ; by default, to remove the file's directory from the store.

    Raises:
        UserError: if the two differ.
    """
    hits = _hits(teacher, batches)
    accuracy, close = _share(hits), max(CLOSE, 1.5 / len(hits))
    log.info("teacher %s: %.2f %% on the test split", path, 100 * accuracy)
    if claimed is not None and abs(accuracy - claimed) > close:
        accuracy = _share(_hits(teacher.forward_as_trained, batches))
        teacher.net.cpu()  # where networks are put together with it
    if claimed is not None and abs(accuracy - claimed) > close:
        raise UserError(
            f"{path} is on record with {100 * claimed:.2f} % on this test split but reaches {100 * accuracy:.2f} %; "
            f"{advice or f'remove {path.parent} to have the teacher trained again'}"
        )
    return accuracy


def _hits(forward: Callable[[Batch], Output], batches: Iterable[Batch]) -> Tensor:
    """(N,), whether each image is classified right."""
    tested = with_progress(batches, "testing the teacher")
    return torch.cat([(forward(batch).logits.argmax(dim=1) == batch.y).cpu() for batch in tested])


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
