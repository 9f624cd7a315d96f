"""What a network said to every test image: written beside the run's record, read by the report. No torch import."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.files import replaced

FILE = "predictions.npz"


class Predictions(NamedTuple):
    """Of M test images in C classes, in the order of the test split."""

    labels: NDArray[np.int64]
    """(M,), in 0..C-1."""
    logits: NDArray[np.float32]
    """(M, C), the network's."""
    teacher_logits: NDArray[np.float32] | None = None
    """(M, C), its teacher's; None for a network that had none."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(M,), which images the network classifies right."""
        right: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.labels
        return right


def write(predictions: Predictions, path: Path) -> None:
    """Write the file whole or not at all. Logits are kept in float16.

    That holds bf16 of ordinary size (beyond 1e-5 and below 65504) to the bit; fp32 is rounded to 11 bits.
    """
    labels, logits, teacher = predictions
    taught = {} if teacher is None else {"teacher_logits": _halved(teacher)}
    with replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, labels=labels.astype(np.int16), logits=_halved(logits), **taught)


def read(path: Path) -> Predictions:
    """The predictions in a file.

    Raises:
        UserError: if there is none, or it is damaged or no such file.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            teacher = arrays["teacher_logits"].astype(np.float32) if "teacher_logits" in arrays else None
            found = Predictions(arrays["labels"].astype(np.int64), arrays["logits"].astype(np.float32), teacher)
    except FileNotFoundError as error:
        raise UserError(f"no predictions at {path}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} does not hold whole predictions: {error}") from error
    shapes = {found.logits.shape} if teacher is None else {found.logits.shape, teacher.shape}
    if not found.labels.shape == found.logits.shape[:1] or found.logits.ndim != 2 or len(shapes) > 1:
        raise UserError(f"{path} does not hold whole predictions: {found.labels.shape} labels, {found.logits.shape}")
    return found


def _halved(logits: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = float(np.finfo(np.float16).max)
    return np.clip(logits, -limit, limit).astype(np.float16)
