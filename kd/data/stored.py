"""Pixels that stay on disk and are read when they are looked up.

They are read by system calls, not through a mapping: a file that somebody cuts, or a disk that fails, is then an error,
and through a mapping the end of the process (SIGBUS).
"""

import os
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd.data.tree import printable
from kd.errors import UserError
from kd.files import open_regular

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
            at_once = max(1, AT_ONCE // self._size)
            parts = [(place, min(at_once, stop - place)) for place in range(start, stop, at_once)]
        else:
            parts = [(place, 1) for place in rows.tolist()]
        count = sum(length for _, length in parts)
        try:
            content = bytearray().join(
                os.pread(self._descriptor, self._size * length, self._start + self._size * place)
                for place, length in parts
            )
        except OSError as error:
            raise UserError(f"{printable(self.file)}: {error.strerror}") from error
        if len(content) != count * self._size:
            raise UserError(f"{printable(self.file)}: was cut while it was in use; give the same command again")
        return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:]))


Pixels = Tensor | StoredPixels
"""(N, 3, H, W), uint8, in memory or on disk. `x[:]` is a tensor of all of them."""
