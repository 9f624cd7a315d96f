"""scikit-learn's handwritten digits: real images that need no download."""

import torch
import torch.nn.functional as F

from kd.data.images import Images, draw_test_split
from kd.ranges import Size, sides


def digits(image_size: Size = 32) -> Images:
    """Load 1,797 handwritten digits in ten classes, grey 8x8 images bundled with scikit-learn.

    Grey levels 0..16 are scaled to 0..255, resized to `image_size` pixels (bilinear) and repeated over three
    channels. The original has no test split of its own; ours is 20 % of each class, rounded, drawn with a fixed
    seed, so that it is the same in every run: 1,438 training and 359 test images.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
    (its test part), through `sklearn.datasets.load_digits`.

    Raises:
        ValueError: for an image size below 1.
    """
    from sklearn.datasets import load_digits

    size = sides("data.image_size", image_size)
    original = load_digits()
    grey = torch.from_numpy(original.images).float()[:, None] * (255 / 16)
    x = F.interpolate(grey, size=size, mode="bilinear", antialias=min(size) < 8).round().to(torch.uint8)
    x = x.repeat(1, 3, 1, 1)
    y = torch.from_numpy(original.target).long()
    test = draw_test_split(y)
    sizes = frozenset() if size == (8, 8) else frozenset({(8, 8)})
    return Images("digits", tuple("0123456789"), x[~test], y[~test], x[test], y[test], sizes)
