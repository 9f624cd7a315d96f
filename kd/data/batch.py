"""What every step reads."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B images on the device that trains, augmented and normalised."""

    x: Tensor
    """(B, 3, H, W), float, zero mean and unit variance per channel over the training images."""
    y: Tensor
    """(B,), int64 labels in [0, C)."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a batch
    """(B,), int64, which image of its data set this is, the same in every epoch and run; test images are counted
    on after the training images."""
    view: Tensor
    """(B,), int64, which crop and flip of it this is (see `kd.data.augment`); -1 where views cannot be numbered."""
