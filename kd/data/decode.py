"""Decoding of image files to tensors, for all sources that read files."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kd.errors import UserError
from kd.files import replaced
from kd.hashing import digest
from kd.ranges import require


class Decoded(NamedTuple):
    x: Tensor
    """(N, 3, size, size), uint8, RGB."""
    jpeg: bool
    """Whether any of the images is a JPEG: pixels that were re-encoded are not the original's."""


def decode(encoded: Iterable[tuple[str, bytes]], n: int, size: int, cache: Path | None = None) -> Decoded:
    """Decode N image files.

    Images of another size are resized, bilinear and antialiased, without regard to their aspect ratio.

    Args:
        encoded: the name of each image for errors, and its file's content, in any format that PIL reads; N pairs.
        n: N.
        size: height and width in pixels, at least 1.
        cache: a path without suffix, see `cache_path`, for the decoded pixels: read if they were decoded before, else
            written, and memory-mapped. By default the pixels are in memory.

    Raises:
        UserError: for an image that cannot be decoded, pixels that cannot be written.
        ValueError: for a size below 1.
    """
    require("data.image_size", size)
    shape = (n, 3, size, size)
    if cache is None:
        pixels = np.empty(shape, np.uint8)
        return Decoded(torch.from_numpy(pixels), _fill(pixels, encoded))
    file, jpeg_mark = cache.with_suffix(".npy"), cache.with_suffix(".jpeg")
    try:
        if _mapped(file, shape) is None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with replaced(file) as temporary:
                pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                if _fill(pixels, encoded):
                    jpeg_mark.touch()
                pixels.flush()
        return Decoded(torch.from_numpy(_mapped(file, shape)), jpeg_mark.exists())
    except OSError as error:
        where = Path(error.filename or file)
        if cache.parent not in (where, *where.parents):
            raise  # an image that cannot be read
        raise UserError(
            f"{file}: {error.strerror or error}; data.in_memory=false keeps decoded pixels there"
        ) from error


def display_name(name: str, jpeg: bool) -> str:
    """Return the data set's name, marked if its images were re-encoded as JPEG."""
    return f"{name} (JPEG)" if jpeg else name


def cache_path(root: Path, files: Iterable[Path], size: int) -> Path:
    """Return the path under root for the decoded pixels of some files; it changes when any of the files does.

    Raises:
        OSError: for a file that is missing.
    """
    known = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return root / ".decoded" / digest([known, size])


def _mapped(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the array in a file, memory-mapped; None if it is missing or not whole."""
    try:
        # Copy on write: torch has no read-only tensors, and these are never written to.
        pixels: NDArray[np.uint8] = np.load(file, mmap_mode="c")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape else None


def _fill(pixels: NDArray[np.uint8], encoded: Iterable[tuple[str, bytes]]) -> bool:
    """Decode into (N, 3, size, size), and return whether any image is a JPEG."""
    size = pixels.shape[-2:]
    jpeg = False
    # No threads: on images this small PIL holds the interpreter's lock, and two threads were slower than one.
    for target, (name, data) in zip(pixels, encoded, strict=True):
        try:
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.mode != "RGB":
                image = image.convert("RGB")
            if image.size != size:
                image = image.resize(size, Image.Resampling.BILINEAR)
            target[:] = np.asarray(image).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{name}: damaged, or not an image; copy or download it again") from error
        jpeg |= data.startswith(b"\xff\xd8")
    return jpeg
