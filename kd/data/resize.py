"""One resize policy for images that a source has as arrays: bilinear and antialiased, without regard to the aspect
ratio, as `kd.data.decode` does it with files."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.images import Images
from kd.ranges import require

AT_ONCE = 1000


def resized(x: Tensor, size: int) -> Tensor:
    """Resize images (N, C, H, W), uint8, to (N, C, size, size).

    Raises:
        ValueError: for a size below 1.
    """
    require("data.image_size", size)
    if x.shape[-2:] == (size, size):
        return x
    made = torch.empty((*x.shape[:2], size, size), dtype=torch.uint8)
    for start in range(0, len(x), AT_ONCE):  # in floating point they take four times the memory
        part = x[start : start + AT_ONCE].float()
        small = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        made[start : start + AT_ONCE] = small.round().clamp(0, 255).to(torch.uint8)
    return made


def images_of_size(images: Images, size: int) -> Images:
    """Return a data set with its images resized; their former size is noted."""
    height, width = images.train_x.shape[-2:]
    if (height, width) == (size, size):
        return images
    x, test_x = resized(images.train_x[:], size), resized(images.test_x[:], size)
    return replace(images, train_x=x, test_x=test_x, sizes=images.sizes or frozenset({(width, height)}))
