"""Batches, as every step reads them."""

from typing import NamedTuple

import torch
from torch import Tensor


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; a GPU goes on with its work meanwhile, and this process with its own."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def require_batch(batch: object) -> None:
    """Refuse what a loader of one's own makes otherwise.

    Raises:
        TypeError: for anything but a `Batch`.
    """
    if not isinstance(batch, Batch):
        raise TypeError(
            f"a batch is a {type(batch).__name__}, and has to be a kd.Batch; of a loader of pairs of image and label: "
            "collate_fn=lambda pairs: kd.Batch.of(*default_collate(pairs))"
        )


class Batch(NamedTuple):
    """B images on the device that trains, augmented and normalised."""

    x: Tensor
    """(B, channels, H, W), float, zero mean and unit variance per channel over the training images."""
    y: Tensor
    """(B,), int64 labels in [0, C); (B, C), float, the share of each class, where images are mixed, times the weight of
    the class, where classes are weighted."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    """(B,), int64, which image of its data set this is, the same in every epoch and run; test images are counted
    on after the training images. -1 where it is not known, or is a mixture."""
    view: Tensor
    """(B,), int64, which crop and flip of it this is (see `kd.data.augment`); -1 where views cannot be numbered."""

    @property
    def labels(self) -> Tensor:
        """(B,), int64: the label, or of mixed images that of the largest share, weighted where classes are."""
        return self.y.argmax(dim=1) if self.y.is_floating_point() else self.y

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Batch":
        """Return a batch of images and labels from anywhere: `index` and `view` are -1, for unknown."""
        unknown = torch.full((len(y),), -1, device=y.device)
        return cls(x, y, unknown, unknown)
