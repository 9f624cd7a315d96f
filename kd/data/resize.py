"""Size and channels of images that a source has as arrays, changed as `kd.data.decode` changes those of files:

resized bilinear and antialiased, without regard to the aspect ratio; made grey as PIL does it.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.images import Images
from kd.data.stored import chunks
from kd.errors import UserError
from kd.ranges import Size, sides


def resized(x: Tensor, size: Size) -> Tensor:
    """Resize images (N, C, H, W), uint8, to a height and width.

    Raises:
        ValueError: for a size below 1.
    """
    shape = sides("data.image_size", size)
    if x.shape[-2:] == shape:
        return x
    made = torch.empty((*x.shape[:2], *shape), dtype=torch.uint8)
    for part in chunks(max(x, made, key=Tensor.numel)):  # in floating point they take four times the memory
        changed = F.interpolate(x[part].float(), size=shape, mode="bilinear", antialias=True)
        made[part] = changed.round().clamp(0, 255).to(torch.uint8)
    return made


def images_of_size(images: Images, size: Size) -> Images:
    """Return a data set with its images resized; their former size is noted."""
    height, width = images.train_x.shape[-2:]
    if (height, width) == sides("data.image_size", size):
        return images
    x, test_x = resized(images.train_x[:], size), resized(images.test_x[:], size)
    return replace(images, train_x=x, test_x=test_x, resized_from=images.resized_from or frozenset({(width, height)}))


def grey(x: Tensor) -> Tensor:
    """Make RGB images (N, 3, H, W), uint8, grey: (N, 1, H, W), as PIL does, 0.299 R + 0.587 G + 0.114 B."""
    made = torch.empty((len(x), 1, *x.shape[2:]), dtype=torch.uint8)
    for part in chunks(x):
        red, green, blue = x[part].int().unbind(dim=1)
        made[part, 0] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return made


def images_of_channels(images: Images, channels: int) -> Images:
    """Return a data set with its images grey, one channel, or in three channels.

    Raises:
        UserError: for images that are neither grey nor RGB.
    """
    if images.channels == channels:
        return images
    if {images.channels, channels} != {1, 3}:
        raise UserError(
            f"data.channels={channels} is for grey and RGB images, and those of {images.name} have {images.channels} "
            "channels; leave it out"
        )
    x, test_x = (grey(x[:]) if channels == 1 else x[:].repeat(1, 3, 1, 1) for x in (images.train_x, images.test_x))
    note = "made grey" if channels == 1 else "grey repeated over three channels"
    return replace(images, train_x=x, test_x=test_x, notes=(*images.notes, note))
