"""Encoded images to tensors: what the sources that read image files share."""

import io
from collections.abc import Callable, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from kd.errors import UserError
from kd.ranges import require


def decode(encoded: Sequence[bytes], where: Callable[[int], str], size: int) -> Tensor:
    """The pixels of N image files: (N, 3, size, size), uint8, RGB.

    Images of another size are resized, bilinear and antialiased, without regard to their aspect ratio.

    Args:
        encoded: the files' contents, of any format that PIL reads.
        where: what to call image i in an error.
        size: height and width in pixels, at least 1.

    Raises:
        UserError: for an image that cannot be decoded.
        ValueError: for a size below 1.
    """
    require("data.image_size", size)
    pixels = bytearray()
    # No threads: on images this small PIL holds the interpreter's lock, and two threads were slower than one.
    for i, data in enumerate(encoded):
        try:
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.mode != "RGB":
                image = image.convert("RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            pixels += image.tobytes()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{where(i)}: damaged, or not an image; copy or download it again") from error
    return torch.frombuffer(pixels, dtype=torch.uint8).view(-1, size, size, 3).permute(0, 3, 1, 2).contiguous()


def named(name: str, encoded: Iterable[bytes]) -> str:
    """The data set's name, with " (JPEG)" if any image is one: pixels that were re-encoded are not the original's."""
    return f"{name} (JPEG)" if any(data.startswith(b"\xff\xd8") for data in encoded) else name
