"""A teacher's logits for each view of each training image, stored in a file that all runs share.

A crop with padding 4 and a flip give 162 views of an image (`kd.data.augment`), so that a teacher's logits for
CIFAR-10's 50,000 training images are at most 8.1 million times ten numbers. A file has a header of 4096 bytes, then one
entry for view v of image i, at i * views + v:

    C logits, float16, then 32 bits of checksum

The checksum covers the logits, the entry's place, and the file's key: the hashes of the teacher's weights and of the
data, and the meaning of the views. An entry with a wrong checksum counts as missing: not yet computed, half-written by
a process that was killed, damaged, or of another teacher. So processes read and write the same file without waiting for
each other; at worst two compute the same logits.

Entries are read and written by system calls, not through a mapping: a file that somebody cuts or a disk that fails is
then a missing entry, and through a mapping the end of the process (SIGBUS).
"""

import hashlib
import json
import logging
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.batch import Batch, on_device
from kd.files import clear_leftovers, open_regular, replaced, reserve, shared_lock
from kd.hashing import digest
from kd.methods.base import Teacher
from kd.models.output import Output

HEADER = 4096

log = logging.getLogger(__name__)

Words = NDArray[np.uint16]


class RoundedLogits:
    """A teacher whose logits for training images are rounded to float16, as they are where a file has them.

    So a run has the same result with an empty file, with a full one, and where there can be none. The `Output` has no
    features, and the logits in the place of the embedding. That for other images is the teacher's own.

    Args:
        teacher: computes the logits.
        images: N, number of training images.
    """

    def __init__(self, teacher: Teacher, images: int) -> None:
        self.teacher, self.images = teacher, images

    def __call__(self, batch: Batch) -> Output:
        places = torch.stack([batch.index, batch.view]).cpu()  # of all copies the only one that waits for a GPU
        if not bool(((places[0] < self.images) & (places[1] >= 0)).all()):  # test images, views without a number
            return self.teacher(batch)
        logits = self.logits(batch, places)
        return Output(logits, (), logits)

    def logits(self, batch: Batch, places: Tensor) -> Tensor:
        """Return the logits (B, C) of numbered views, rounded; those of an image with one beyond float16 are exact.

        Args:
            batch: the images.
            places: (2, B), on the CPU, their `index` and `view`.
        """
        exact = self.teacher(batch).logits.float()
        rounded = exact.half().float()
        return torch.where(rounded.isfinite().all(dim=1, keepdim=True), rounded, exact)


class StoredLogits(RoundedLogits):
    """A teacher that returns stored logits where its file has them, and computes and stores the others.

    Args:
        teacher: computes the logits that are missing.
        path: the file, made by `prepare_file`.
        key, images, views, classes: as in `prepare_file`.
    """

    def __init__(
        self,
        teacher: Teacher,
        path: Path,
        key: dict[str, Any],
        images: int,
        views: int,
        classes: int,
    ) -> None:
        super().__init__(teacher, images)
        self.path, self.views, self.classes = path, views, classes
        self.requested = self.found = self.damaged = 0
        self.writable = True
        """Whether logits are added; another user's file may be for reading only."""
        try:
            self._file = os.open(path, os.O_RDWR)
        except OSError:
            self._file, self.writable = os.open(path, os.O_RDONLY), False
        weakref.finalize(self, os.close, self._file)
        # As many odd numbers as there are words: a random linear hash, another one for every key.
        noise = hashlib.shake_256(_canonical(key)).digest(8 * (classes + 1))
        self._factors = np.frombuffer(noise, np.uint64) | np.uint64(1)

    def logits(self, batch: Batch, places: Tensor) -> Tensor:
        rows = (places[0] * self.views + places[1]).numpy()
        entries = self._read(rows)
        words, sums = entries[:, :-2], np.ascontiguousarray(entries[:, -2:]).view(np.uint32)[:, 0]
        present = sums == self._checksums(words, rows)
        logits = on_device(torch.from_numpy(words.view(np.float16).astype(np.float32)), batch.x.device)
        self.requested += len(rows)
        self.found += int(present.sum())
        if not present.all():
            damaged = int((sums[~present] != 0).sum())
            if damaged and not self.damaged:
                log.warning(
                    "%s has entries that are damaged or just being written; the teacher is queried again", self.path
                )
            self.damaged += damaged
            # Places and not a mask, whose number of images would be another wait.
            missing = on_device(torch.from_numpy(np.flatnonzero(~present)), batch.x.device)
            computed = super().logits(Batch(*(part[missing] for part in batch)), places)
            self._store(rows[~present], computed)
            logits[missing] = computed
        return logits

    def summary(self) -> str:
        """Return how many of the requested logits were in the file, for the log."""
        return f"teacher's logits: {self.found} of {self.requested} were in {self.path}"

    def _store(self, rows: NDArray[np.int64], logits: Tensor) -> None:
        halves = logits.half().cpu()
        keep = halves.isfinite().all(dim=1).numpy()
        words = halves.numpy().view(np.uint16)[keep]
        sums = self._checksums(words, rows[keep])
        self._write(rows[keep], np.concatenate([words, sums[:, None].view(np.uint16)], axis=1))

    def _read(self, rows: NDArray[np.int64]) -> Words:
        """Return the entries (B, C + 2); zeros, as of missing ones, where the file has none."""
        width = 2 * (self.classes + 2)
        places = (HEADER + width * rows).tolist()
        try:
            content = [os.pread(self._file, width, place) for place in places]
        except OSError:  # of a failing disk
            content = [b""] * len(places)
        whole = b"".join(entry.ljust(width, b"\0") for entry in content)  # where the file was cut, an entry is short
        return np.frombuffer(whole, np.uint16).reshape(len(rows), self.classes + 2)

    def _write(self, rows: NDArray[np.int64], entries: Words) -> None:
        if not self.writable:
            return
        width = 2 * (self.classes + 2)
        try:
            for place, entry in zip((HEADER + width * rows).tolist(), entries, strict=True):
                os.pwrite(self._file, entry, place)
        except OSError as error:
            self.writable = False
            log.warning("%s: %s; the teacher's logits are no longer added to it", self.path, error.strerror)

    def _checksums(self, words: Words, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        # Modulo 2^64; the high half of such a sum depends on every bit.
        total: NDArray[np.uint64] = (words * self._factors[:-1]).sum(axis=1, dtype=np.uint64) + (
            rows.astype(np.uint64) + 1
        ) * self._factors[-1]
        high: NDArray[np.uint32] = (total >> np.uint64(32)).astype(np.uint32)
        high |= np.uint32(1)  # 0 is what an empty file holds
        return high


def open_logits(
    teacher: Teacher,
    folder: Path,
    key: dict[str, Any],
    images: int,
    views: int | None,
    classes: int,
    limit_gb: float,
) -> RoundedLogits | None:
    """Return a teacher with its logits stored in a file in `folder`.

    Where the file cannot be made, for its size or the state of the disk, the reason is in the log, and the logits are
    rounded all the same. None where views cannot be numbered, which the augmentation alone decides.

    Args:
        views: number of views of an image; None if they cannot be numbered.
        teacher, folder, key, images, classes, limit_gb: see `StoredLogits` and `prepare_file`.
    """
    if views is None:
        why = "with cutout, mixup or cutmix an image has too many views, as it has with a policy or a transform"
        log.info("the teacher's logits are not kept: %s", why)
        return None
    path = prepare_file(folder, key, images, views, classes, limit_gb)
    return RoundedLogits(teacher, images) if path is None else StoredLogits(teacher, path, key, images, views, classes)


def prepare_file(
    folder: Path, key: dict[str, Any], images: int, views: int, classes: int, limit_gb: float
) -> Path | None:
    """Return the file for a key in a folder, made anew if it is missing or not whole.

    Args:
        key: identifies teacher, data and augmentation, as plain JSON values.
        images: N, number of training images.
        views: V, number of views of an image.
        classes: C, number of classes.
        limit_gb: the largest size of the file in GB (10^9 bytes).

    Returns:
        The path; or None, with the reason in the log, if it would be too large or there is no space for it.
    """
    path = folder / f"{digest(key)}.logits"
    size = HEADER + images * views * 2 * (classes + 2)
    if size > limit_gb * 1e9:
        log.info(
            "the teacher's logits are not kept: %.1f GB for %d views of each image, and speed.stored_logits_gb=%g",
            size / 1e9,
            views,
            limit_gb,
        )
        return None
    header = _canonical(key).ljust(HEADER)
    try:
        if _is_whole(path, size, header):  # for those who may not take the lock
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with shared_lock(path.with_suffix(".lock")):
            if not path.exists():
                log.info("the teacher's logits are kept in %s (%.0f MB)", path, size / 1e6)
            elif path.stat().st_size != size:
                log.warning("%s is cut short or not whole; it is made again", path)
            elif not _is_whole(path, size, header):
                log.warning("%s is of another teacher or data set than its name says; it is made again", path)
            else:
                return path
            clear_leftovers(folder)
            with replaced(path) as temporary, open(temporary, "wb") as file:
                file.write(header)
                reserve(file, size)
    except OSError as error:
        log.warning("the teacher's logits are not kept: %s: %s", error.filename or path, error.strerror or error)
        return None
    return path


def _is_whole(path: Path, size: int, header: bytes) -> bool:
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size == size and file.read(HEADER) == header
    except FileNotFoundError:
        return False


def _canonical(key: dict[str, Any]) -> bytes:
    return json.dumps(key, sort_keys=True).encode()
