"""Logits of a network for every test image, written beside the run's record and read by the report. No torch import."""

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.files import replaced

FILE = "predictions.npz"


class Predictions(NamedTuple):
    """The logits of M test images in C classes, in the order of the test split."""

    labels: NDArray[np.int64]
    """(M,), in 0..C-1."""
    logits: NDArray[np.float32]
    """(M, C), the logits of the network."""
    teacher_logits: NDArray[np.float32] | None = None
    """(M, C), the logits of its teacher; None without a teacher."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(M,), whether the network classifies each image correctly."""
        right: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.labels
        return right


def write(predictions: Predictions, path: Path) -> None:
    """Write the file whole or not at all, with logits in float16.

    float16 holds bf16 values of ordinary size (between 1e-5 and 65504) exactly; fp32 is rounded to 11 bits.
    """
    labels, logits, teacher = predictions
    optional = {} if teacher is None else {"teacher_logits": _to_float16(teacher)}
    with replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, allow_pickle=False, labels=labels.astype(np.int16), logits=_to_float16(logits), **optional
        )


def read(path: Path) -> Predictions:
    """Read the predictions in a file.

    Raises:
        UserError: if the file is missing, damaged or of another format.
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


def near_chance(accuracy: float, labels: NDArray[np.int64]) -> str | None:
    """Return what is to be said of an accuracy that shows no knowledge of the images; None of any other.

    Chance is the accuracy of always naming the most frequent class, which is 1 / C for classes of equal size. An
    accuracy is no better if it is not significantly higher (one-sided binomial test at 5 %, by its normal
    approximation), and hardly better if it takes less than a twentieth of the way from chance to 1.

    Args:
        accuracy: a fraction of 1.
        labels: (M,), of the images that it was measured on.
    """
    counts = np.bincount(labels)
    chance = float(counts.max() / len(labels))
    significant = chance + 1.645 * math.sqrt(chance * (1 - chance) / len(labels))
    if accuracy > max(significant, chance + 0.05 * (1 - chance)):
        return None
    if significant >= 1 > chance:
        return f"which {len(labels)} test images cannot tell from chance ({100 * chance:.1f} %)"
    how = "hardly" if accuracy > significant else "no"
    return f"{how} better than chance ({100 * chance:.1f} % with {(counts > 0).sum()} classes)"


def _to_float16(logits: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = float(np.finfo(np.float16).max)
    return np.clip(logits, -limit, limit).astype(np.float16)
