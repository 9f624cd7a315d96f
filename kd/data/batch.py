"""Batches, as every step reads them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B images on the device that trains, augmented and normalised."""

    x: Tensor
    """(B, 3, H, W), float, zero mean and unit variance per channel over the training images."""
    y: Tensor
    """(B,), int64 labels in [0, C)."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    """(B,), int64, which image of its data set this is, the same in every epoch and run; test images are counted
    on after the training images. -1 where it is not known."""
    view: Tensor
    """(B,), int64, which crop and flip of it this is (see `kd.data.augment`); -1 where views cannot be numbered."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Batch":
        """Return a batch of images and labels from anywhere: `index` and `view` are -1, for unknown."""
        unknown = torch.full_like(y, -1, dtype=torch.int64)
        return cls(x, y, unknown, unknown)
