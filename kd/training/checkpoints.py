"""Checkpoints of a training: written whole, with a checksum, and checked before anything is continued from them."""

import hashlib
import io
import math
import os
import shlex
import shutil
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from kd.errors import UserError
from kd.files import replaced
from kd.runs.weights import is_packed
from kd.training.callbacks import History
from kd.training.ema import WeightAverage

PREVIOUS = "previous.ckpt"
"""Beside a checkpoint: the one that it replaced, until the run is done."""
MARK = b"kd sha256 "
SEAL = len(MARK) + 2 * hashlib.sha256().digest_size
"""Bytes of the checksum at the end of a file: the comment of the zip archive that `torch.save` writes."""
NO_COMMENT = b"PK\5\6", b"\0\0"
"""How the last 22 bytes of a zip archive begin and end if it has no comment."""

RESTORED = (History.__qualname__, WeightAverage.__qualname__)
"""Callbacks whose state a training continues with."""


class _UnfitError(Exception):
    """What is wrong with a checkpoint: the rest of a sentence that begins with its path."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Replace a checkpoint in one step, keep the one before it, and refuse one that is damaged or not this training's.

    The SHA-256 of a file is its archive's comment, so that both are replaced by the same rename. Checkpoints of older
    versions have none: of these, the archive's own CRC-32 of each part is checked.

    Lightning's own plugin writes to the system's temporary folder first. If that is on another file system, the only
    checkpoint is then overwritten in place, and lost if that is interrupted. It also reads what is damaged.

    Args:
        training: names the training, by all that decides what comes of it.
        epochs: number of epochs of the whole training.
    """

    def __init__(self, training: str, epochs: int) -> None:
        self.training, self.epochs = training, epochs

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch's own writing to a file raises no OSError on a full disk
        torch.save({**checkpoint, "training": self.training}, buffer)
        with replaced(target) as temporary:
            # Released, as Python 3.13 prints an error if a buffer ends before its views, such as after a full disk.
            with open(temporary, "wb") as file, buffer.getbuffer() as whole, whole[:-2] as archive:
                file.write(archive)
                file.write(length := SEAL.to_bytes(2, "little"))
                digest = hashlib.sha256(archive)
                digest.update(length)
                file.write(MARK + digest.hexdigest().encode())
            # Only now, and by a further name: at any moment there is a whole file under each name.
            _keep(target)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[[Tensor, str], Tensor] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint, never unpickling more than tensors and plain values.

        Raises:
            UserError: if it is damaged or does not belong to this training, with how to go on.
        """
        target = Path(path)
        try:
            return self._read(target, map_location)
        except _UnfitError as fault:
            advice, previous = "remove it to begin this training anew", target.with_name(PREVIOUS)
            with suppress(_UnfitError):
                done = _done(self._read(previous, map_location))
                move = shlex.join(["mv", str(previous), str(target)])
                advice = (
                    f"to continue from the checkpoint before it, of epoch {done} of {self.epochs}, type {move} and "
                    "then the same command again"
                )
            raise UserError(f"{target} {fault}; {advice}") from fault

    def _read(self, path: Path, map_location: Any) -> dict[str, Any]:
        """Return a file's content, or raise `_UnfitError`."""
        if not path.is_file():
            raise _UnfitError("is not a file")
        try:
            _refuse_damage(path)
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        except (PermissionError, _UnfitError):
            raise
        except Exception as error:  # whatever its content leads to; torch's advice is to unpickle it all the same
            raise _UnfitError("is damaged (it cannot be read as tensors and plain values)") from error
        try:
            _refuse_misfit(checkpoint, self.training, self.epochs, path.stat().st_size)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _UnfitError(f"is not laid out as a checkpoint ({type(error).__name__}: {error})") from error
        # Lightning's own callbacks have nothing that should be restored, and would even remove files by name.
        kept = {name: state for name, state in checkpoint["callbacks"].items() if name in RESTORED}
        return {**checkpoint, "callbacks": kept}


def _keep(target: Path) -> None:
    """Give a checkpoint that is about to be replaced a second name, as the one before."""
    if not target.is_file() or target.is_symlink():
        return
    previous = target.with_name(PREVIOUS)
    try:
        with replaced(previous) as temporary:
            temporary.unlink()
            os.link(target, temporary)
    except OSError:  # a file system without links, or another user's file
        with replaced(previous) as temporary:
            shutil.copyfile(target, temporary)


def _refuse_damage(path: Path) -> None:
    """Raise `_UnfitError` for a file that is not as it was written, as far as this can be told."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - SEAL))
        end = file.read()
        if end.startswith(MARK):
            digest, left = hashlib.sha256(), size - SEAL
            file.seek(0)
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            if end[len(MARK) :] != digest.hexdigest().encode():
                raise _UnfitError("is damaged (its checksum does not match)")
        elif not (end[-22:].startswith(NO_COMMENT[0]) and end.endswith(NO_COMMENT[1])):
            raise _UnfitError("is damaged (its end is missing or changed)")
    with zipfile.ZipFile(path) as archive:
        if is_packed(archive, size):
            raise _UnfitError("is damaged (it is packed)")
        broken = None if end.startswith(MARK) else archive.testzip()
    if broken is not None:
        raise _UnfitError(f"is damaged ({broken} in it has another checksum)")


def _refuse_misfit(checkpoint: Any, training: str, epochs: int, size: int) -> None:
    """Refuse what a file holds if this training cannot be continued from it.

    Args:
        checkpoint: what the file holds.
        training, epochs: see `AtomicCheckpoints`.
        size: of the file, in bytes.

    Raises:
        _UnfitError: with the reason.
        KeyError, TypeError, ValueError, AttributeError, RuntimeError: if it is not laid out as a checkpoint.
    """
    if not isinstance(checkpoint, dict):
        raise TypeError("not a mapping")
    if checkpoint.get("training", training) != training:  # older versions did not name it
        raise _UnfitError("belongs to another training (other settings, images or teacher)")
    weights = checkpoint["state_dict"]
    if not weights:
        raise ValueError("no weights")
    average = checkpoint["callbacks"].get(WeightAverage.__qualname__)
    averaged = [] if average is None else average["average"]
    for name, tensor in [*weights.items(), *((f"average {i}", tensor) for i, tensor in enumerate(averaged))]:
        if tensor.numel() > size:
            raise ValueError(f"{name} is larger than the file")
        if tensor.is_floating_point() and not (tensor < math.inf).all():
            raise _UnfitError(f"is useless: its {name} holds NaN or infinity, as of a training that diverged")
    done, steps = _done(checkpoint), _steps(checkpoint)
    history = checkpoint["callbacks"][History.__qualname__]
    rows, _ = history["rows"], float(history["images"]) + float(history["seconds"] or 0)
    if not 0 < done <= epochs or [row["epoch"] for row in rows] != list(range(done)) or checkpoint["epoch"] != done - 1:
        raise _UnfitError(
            f"does not fit: it has done {done} epochs, its history lists {len(rows)}, and the training has {epochs}"
        )
    (optimizer,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    if checkpoint["global_step"] != steps or schedule.get("last_epoch", steps) != steps:
        raise _UnfitError(
            f"does not fit: its optimiser has done {steps} steps, and its learning rate schedule another number"
        )
    if average is not None:
        shapes = [tensor.shape for tensor in weights.values() if tensor.is_floating_point()]
        if average["steps"] != steps or any(tensor.shape not in shapes for tensor in averaged):
            raise _UnfitError(f"does not fit: its average is of other weights, or not of {steps} steps")
    if not optimizer["state"] and any(group.get("momentum") or "betas" in group for group in optimizer["param_groups"]):
        raise KeyError("state of the optimiser")


def _done(checkpoint: Mapping[str, Any]) -> int:
    """Return the number of epochs that a training continues after."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def _steps(checkpoint: Mapping[str, Any]) -> int:
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    return int(progress["optimizer"]["step"]["total"]["completed"])
