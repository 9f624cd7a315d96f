"""Which teacher: trained once, kept under the hash of what made it, loaded frozen.

A store entry is the run directory of the training that made it, named by the digest of its recipe, plus `entry.json`:

    <store>/<id>/teacher.safetensors   the weights
    <store>/<id>/result.json           how it did
    <store>/<id>/entry.json            recipe and checksum, looked at on every loading
    <store>/<id>.partial/              a training that is going on, or was interrupted and will be continued
    <store>/<id>.lock                  held while it is going on
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.errors import UserError
from kd.hashing import digest
from kd.models.ensemble import Ensemble
from kd.models.output import Output
from kd.record import first_process, write_once
from kd.results import FILE, Result, read
from kd.weights import checksum, content_id, fill, load_weights

WEIGHTS = "teacher.safetensors"
ENTRY = "entry.json"
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


def find_or_train(store: Path, recipe: dict[str, Any], train: Callable[[Path], object]) -> Path:
    """The directory of the teacher that `recipe` makes, trained first if the store has none.

    Of several processes that want the same teacher at once, one trains and the others wait. What an interrupted
    training left is handed to the next one.

    Args:
        store: directory of all teachers.
        recipe: everything that decides what the teacher becomes, resolved, as plain JSON values.
        train: trains, tests and leaves `teacher.safetensors` and `result.json` in the directory it is given, which may
            hold what an interrupted call left there.

    Raises:
        UserError: if the entry was made by another recipe or is damaged, or the store cannot be written.
    """
    name = digest(recipe)
    entry, partial = store / name, store / f"{name}.partial"
    if not entry.exists():
        try:
            store.mkdir(parents=True, exist_ok=True)
            lock = _locked(store / f"{name}.lock")
        except OSError as error:
            raise UserError(f"teacher_store={store} cannot be written: {error.strerror}") from error
        with lock:
            if not entry.exists():
                log.info("training the teacher, to be kept in %s", entry)
                partial.mkdir(exist_ok=True)
                train(partial)
                facts = {"recipe": recipe, "sha256": checksum(partial / WEIGHTS)}
                (partial / ENTRY).write_text(json.dumps(facts, indent=2, sort_keys=True))
                os.rename(partial, entry)
    _check(entry, recipe)
    return entry


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


def adopt(entry: Path, record: Result, directory: Path) -> Result:
    """Make a run that wants nothing but the teacher look like the training in the store that it came from.

    Args:
        entry: the store's directory of that teacher.
        record: of the run, which keeps its own settings, teacher and its accuracy.
        directory: of the run.
    """
    if first_process():
        shutil.copytree(entry, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ENTRY, FILE))
    result = replace(
        read(entry / FILE),
        teacher_id=record.teacher_id,
        teacher_test_acc=record.teacher_test_acc,
        data_id=record.data_id,
        command=record.command,
        variant=record.variant,
        fingerprint=record.fingerprint,
        group=record.group,
    )
    write_once(result, directory / FILE)
    return result


def _hits(asked: Callable[[Batch], Output], batches: Iterable[Batch]) -> Tensor:
    """(N,), which images are classified right."""
    return torch.cat([(asked(batch).logits.argmax(dim=1) == batch.y).cpu() for batch in batches])


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def _locked(path: Path) -> AbstractContextManager[object]:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is training this teacher; waiting for it")
        return lock.acquire()


def _check(entry: Path, recipe: dict[str, Any]) -> None:
    advice = f"remove {entry} to have it trained again"
    try:
        facts = json.loads((entry / ENTRY).read_text())
        digest = checksum(entry / WEIGHTS)
        made_by, recorded = facts["recipe"], facts["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the teacher in {entry} is damaged ({error}); {advice}") from error
    if made_by != recipe:
        raise UserError(f"the teacher in {entry} was made by another recipe than its name says; {advice}")
    if recorded != digest:
        raise UserError(f"the teacher in {entry} is damaged (its weights do not match their checksum); {advice}")
