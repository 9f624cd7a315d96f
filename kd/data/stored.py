"""Pixels that stay on disk and are read when they are looked up.

They are read by system calls, not through a mapping: a file that somebody cuts, or a disk that fails, is then an error,
and through a mapping the end of the process (SIGBUS).
"""

import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.errors import UserError
from kd.files import open_regular
from kd.terminal import visible

AT_ONCE = 2**24
"""Bytes of one read, which may have no more than 2 GB."""


class StoredPixels:
    """The images in an .npy file, (N, C, H, W), uint8; `x[index]` and `x[start:stop]` are tensors, as of a tensor.

    Args:
        file: where they are.

    Raises:
        OSError: for a file that cannot be opened, or is no regular file.
        ValueError: for another array than one of images, or a file that is not whole.
    """

    dtype = torch.uint8

    def __init__(self, file: Path) -> None:
        self.file = file
        with open_regular(file) as opened:
            if np.lib.format.read_magic(opened) != (1, 0):
                raise ValueError("another version of the format")
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(opened)
            self._start = opened.tell()
            self.shape = torch.Size(shape)
            if dtype != np.uint8 or by_columns or len(shape) != 4:
                raise ValueError(f"{dtype} of shape {shape}, not images")
            self._size = self.shape[1:].numel()
            if os.fstat(opened.fileno()).st_size != self._start + len(self) * self._size:
                raise ValueError("not whole")
            self._descriptor = os.dup(opened.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise ValueError(f"pixels on disk are read in their order, not in steps of {step}")
            found = torch.empty((max(0, stop - start), *self.shape[1:]), dtype=torch.uint8)
            parts = [(start + part.start, found[part]) for part in chunks(found)]
        else:
            found = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
            parts = list(zip(rows.tolist(), found, strict=True))
        for place, target in parts:
            try:
                count = os.preadv(self._descriptor, [target.numpy().data], self._start + self._size * place)
            except OSError as error:
                raise UserError(f"{visible(self.file)}: {error.strerror}") from error
            if count != target.numel():
                raise UserError(f"{visible(self.file)}: was cut while it was in use; give the same command again")
        return found


def chunks(x: "Tensor | StoredPixels | NDArray[np.uint8]") -> Iterator[slice]:
    """Yield slices of images, one after the other, that together are all; each has 16 MB of pixels at most, or one."""
    at_once = max(1, AT_ONCE // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), at_once):
        yield slice(start, min(start + at_once, len(x)))


Pixels = Tensor | StoredPixels
"""(N, C, H, W), uint8, in memory or on disk. `x[:]` is a tensor of all of them."""
