"""scikit-learn's handwritten digits: real images that need no download."""

import torch
import torch.nn.functional as F

from kd.data.images import Images
from kd.ranges import require

TEST_FRACTION = 0.2
SPLIT_SEED = 0


def digits(image_size: int = 32) -> Images:
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

    require("data.image_size", image_size)
    original = load_digits()
    grey = torch.from_numpy(original.images).float()[:, None] * (255 / 16)
    x = F.interpolate(grey, size=(image_size, image_size), mode="bilinear").round().to(torch.uint8)
    x = x.repeat(1, 3, 1, 1)
    y = torch.from_numpy(original.target).long()

    generator = torch.Generator().manual_seed(SPLIT_SEED)
    test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(10):
        members = (y == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        test[members[order[: round(TEST_FRACTION * len(members))]]] = True
    return Images("digits", tuple("0123456789"), x[~test], y[~test], x[test], y[test])
