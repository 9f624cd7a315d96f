"""Logits of a network for every test image, written beside the run's record and read by the report. No torch import."""

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.files import open_regular, replaced

FILE = "predictions.npz"
LARGEST = float(np.finfo(np.float16).max)
"""Largest absolute value of a logit: larger ones are clipped on writing and refused on reading."""
MOST_BYTES = 1 << 30
"""Size of the largest file that is read, and of its arrays together."""
UNQUESTIONED = 64 << 20
"""Arrays of so many bytes are read however small the file is, as of a network that predicts the same for all images."""
EXPANSION = 20
"""How many times as large as the file its arrays may be beyond that."""
MEMBERS = 16
"""Arrays in a file: two or three, and what a newer version may add."""


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
        return correct(self.labels, self.logits)

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """(C,), the share of each class's images that are classified correctly; NaN for a class without images."""
        return class_accuracy(self.labels, self.logits)


def correct(labels: NDArray[np.int64], logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which images are classified right, (M,), of labels (M,) and logits (M, C)."""
    right: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return right


def class_accuracy(labels: NDArray[np.int64], logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the accuracy on the images of each class, (C,), in [0, 1]; NaN where a class has none."""
    classes = logits.shape[1]
    images = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[correct(labels, logits)], minlength=classes)
    shares: NDArray[np.float64] = np.divide(right, images, out=np.full(classes, np.nan), where=images > 0)
    return shares


def confusion(labels: NDArray[np.int64], logits: NDArray[Any]) -> NDArray[np.int64]:
    """Return the (C, C) counts of images by true class, the row, and predicted class, the column."""
    counts = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    return counts


def write(predictions: Predictions, path: Path) -> None:
    """Write the file whole or not at all, with logits in float16.

    float16 holds bf16 values of ordinary size (between 1e-5 and 65504) exactly; fp32 is rounded to 11 bits, but what
    the network predicts stays what it was.
    """
    labels, logits, teacher = predictions
    arrays: dict[str, Any] = {"labels": labels.astype(np.int32), "logits": _to_float16(logits)}
    if teacher is not None:
        arrays["teacher_logits"] = _to_float16(teacher)
    with replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(path: Path, images: int | None = None) -> Predictions:
    """Read the predictions in a file.

    Nothing in the file is trusted: kind, shape and size of every array are checked before memory is taken for it, and
    nothing is unpickled.

    Args:
        path: the file.
        images: how many images the run's record tells of; None if that is unknown.

    Raises:
        UserError: naming the file and its fault in one line, if it is missing, damaged or of another format, or holds
            other values than predictions can have.
    """
    try:
        with open_regular(path) as file:
            found = _read(file, images)
    except FileNotFoundError as error:
        raise UserError(f"no predictions at {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise UserError(f"{path} does not hold whole predictions: {error}") from error
    return found


class _Member(NamedTuple):
    """An array in the file, as its header describes it."""

    entry: zipfile.ZipInfo
    dtype: np.dtype[Any]
    transposed: bool
    """Whether the first index is the fastest, as in Fortran."""
    shape: tuple[int, ...]
    begin: int
    """Where its values begin."""


_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<dtype>[<>|][fiu][1248])', "
    rb"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<rows>\d{1,12}),(?: (?P<columns>\d{1,12}))?\), \} *\n",
    re.DOTALL,
)
"""Header of an array of one or two dimensions, see numpy.lib.format; NumPy's reader would evaluate it as Python."""


def _read(file: BinaryIO, images: int | None) -> Predictions:
    """Return what is in the file; or ValueError, among others."""
    size, count = _checked_size(file)
    with zipfile.ZipFile(file) as archive:
        names = [entry.filename for entry in archive.infolist()]
        if len(names) != count:  # a damaged length in the list hides what comes after it
            raise ValueError(f"{len(names)} arrays can be read of {count}")
        if len(set(names)) < len(names):
            raise ValueError("an array is there twice")
        missing = [name for name in ("labels", "logits") if f"{name}.npy" not in names]
        if missing:
            raise ValueError(f"it lacks {' and '.join(missing)}")
        labels = _member(archive, "labels", "iu", 1)
        logits = _member(archive, "logits", "f", 2)
        teacher = _member(archive, "teacher_logits", "f", 2) if "teacher_logits.npy" in names else None
        for entry in archive.infolist():
            archive.open(entry).close()  # an error where its name is damaged: the teacher's would else be left out
        M, C = logits.shape
        if labels.shape != (M,) or M * C == 0:
            raise ValueError(f"{labels.shape[0]:,} labels, logits of {M:,} images and {C:,} classes")
        if teacher is not None and teacher.shape != logits.shape:
            raise ValueError(f"the teacher's logits are {teacher.shape}, the student's {logits.shape}")
        if images is not None and images != M:
            raise ValueError(f"logits of {M:,} images, the record tells of {images:,}")
        if sum(member.entry.file_size for member in (labels, logits, teacher) if member) > _limit(size):
            raise ValueError(f"its arrays are larger than a file of {size:,} bytes can hold of predictions")
        y = _values(archive, labels)
        if int(y.min()) < 0 or int(y.max()) >= C:
            raise ValueError(f"labels from {y.min()} to {y.max()}, but {C} classes")
        taught = None if teacher is None else _logits(archive, teacher)
        return Predictions(y.astype(np.int64), _logits(archive, logits), taught)


def _checked_size(file: BinaryIO) -> tuple[int, int]:
    """Return size and members of the file, after a check of what `zipfile` reads at once and whole: the members' list.

    A list that an archive of many thousand members has elsewhere is refused.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 22))
    end = file.read(22)
    if size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20:,} MB")
    if len(end) < 22 or not end.startswith(b"PK\x05\x06"):
        raise ValueError("cut short or another kind of file")
    members, length, begin = struct.unpack("<10xHII2x", end)
    if members > MEMBERS or begin + length + 22 != size:
        raise ValueError("not an archive of a few arrays")
    return size, members


def _limit(size: int) -> int:
    return min(MOST_BYTES, max(UNQUESTIONED, EXPANSION * size))


def _member(archive: zipfile.ZipFile, name: str, kinds: str, dimensions: int) -> _Member:
    """Read the header of an array; or ValueError if it is no such array."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.flag_bits & 1:
        raise ValueError(f"{name} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in another way than NumPy does")
    with archive.open(entry) as file:
        header = _HEADER.match(file.read(256))
    if header is None or header.end() != 10 + int.from_bytes(header["length"], "little"):
        raise ValueError(f"{name} is no array of numbers in one or two dimensions")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(header[side]) for side in ("rows", "columns") if header[side] is not None)
    if dtype.kind not in kinds or len(shape) != dimensions:
        wanted = {"f": "floating-point numbers", "iu": "whole numbers"}[kinds]
        raise ValueError(f"{name} is {dtype} of shape {shape}, not {wanted} in {dimensions} dimensions")
    if header.end() + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{name} is said to have the shape {shape}, and its size is another")
    return _Member(entry, dtype, header["fortran"] == b"True", shape, header.end())


def _values(archive: zipfile.ZipFile, member: _Member) -> NDArray[Any]:
    with archive.open(member.entry) as file:
        content = file.read(member.entry.file_size)
        file.read(1)  # the end, where the checksum is compared
    values: NDArray[Any] = np.frombuffer(content, member.dtype, offset=member.begin)
    return values.reshape(member.shape[::-1]).T if member.transposed else values.reshape(member.shape)


def _logits(archive: zipfile.ZipFile, member: _Member) -> NDArray[np.float32]:
    """Return logits in float32; or ValueError if one is not finite, or larger than any that is written."""
    values = _values(archive, member)
    low, high = float(values.min()), float(values.max())  # NaN if one is
    if not (low >= -LARGEST and high <= LARGEST):
        raise ValueError(
            "some logits are NaN or infinite: the network diverged, or the file is damaged"
            if not math.isfinite(low + high)
            else f"logits from {low:g} to {high:g}, beyond ±{LARGEST:g}"
        )
    return values.astype(np.float32)


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
    """Return them rounded, the largest of each image still the largest.

    Of an image whose largest is beyond the range all are moved by the same amount, which changes no probability.
    """
    largest = logits.max(axis=1, keepdims=True)
    # Below it there is room for smaller ones, wherever it was.
    within = np.clip(largest, -LARGEST / 2, LARGEST)
    moved = np.where(abs(largest) < LARGEST, logits, logits - largest + within)
    rounded = np.clip(moved, -LARGEST, LARGEST).astype(np.float16)
    predicted = logits.argmax(axis=1)
    (tied,) = np.nonzero(rounded.argmax(axis=1) != predicted)
    rows, best = rounded[tied], rounded[tied, predicted[tied]][:, None]
    below = np.where(rows < best, rows, np.nextafter(best, np.float16(-np.inf)))
    below[np.arange(len(tied)), predicted[tied]] = best[:, 0]
    rounded[tied] = below
    return rounded
