"""scikit-learn's handwritten digits: real images that need no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.images import Images, draw_test_split
from kd.ranges import Size, sides


def digits(image_size: Size = 32) -> Images:
    """Load 1,797 handwritten digits in ten classes, grey 8x8 images bundled with scikit-learn.

    Grey levels 0..16 are scaled to 0..255, resized to `image_size` pixels (bilinear) and repeated over three
    channels. The original has no test split of its own; ours is 20 % of each class, rounded, drawn with a fixed
    seed, so that it is the same in every run: 1,438 training and 359 test images.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
    (its test part), as `sklearn.datasets.load_digits` has them.

    Raises:
        ValueError: for an image size below 1.
    """
    size = sides("data.image_size", image_size)
    pixels, y = _original()
    grey = pixels.float().reshape(-1, 1, 8, 8) * (255 / 16)
    x = F.interpolate(grey, size=size, mode="bilinear", antialias=min(size) < 8).round().to(torch.uint8)
    x = x.repeat(1, 3, 1, 1)
    test = draw_test_split(y)
    sizes = frozenset() if size == (8, 8) else frozenset({(8, 8)})
    return Images("digits", tuple("0123456789"), x[~test], y[~test], x[test], y[test], sizes)


def _original() -> tuple[Tensor, Tensor]:
    """Return grey levels (N, 64), 0 to 16, and labels (N,), int64."""
    package = find_spec("sklearn")
    file = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():  # importing scikit-learn takes as long as an epoch of these images
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    original = load_digits()
    return torch.from_numpy(original.data), torch.from_numpy(original.target).long()
