"""A whole data set as uint8 tensors, as every source returns it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kd.data.stored import Pixels, chunks
from kd.data.subset import drawn_of_each
from kd.errors import UserError
from kd.terminal import with_progress

TEST_FRACTION = 0.2
SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """A labelled image data set with its train and test splits, in memory or on disk."""

    name: str
    """The display name, shown beside every figure measured on the data, as in "CIFAR-10 (JPEG)"."""
    classes: tuple[str, ...]
    """Class names; label i means classes[i]."""
    train_x: Pixels
    """(N, C, H, W), uint8; C is 3 for RGB, 1 for grey, or what arrays have."""
    train_y: Tensor
    """(N,), int64."""
    test_x: Pixels
    """(M, C, H, W), uint8."""
    test_y: Tensor
    """(M,), int64."""
    resized_from: frozenset[tuple[int, int]] = frozenset()
    """Width and height in pixels of the images before they were resized; empty if none was."""
    notes: tuple[str, ...] = ()
    """How the images were found and prepared, as far as a user could expect otherwise; parts of `summary`."""

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return self.train_x.shape[1]

    @property
    def image_size(self) -> int | list[int]:
        """Height and width in pixels: one number for squares, else both."""
        height, width = self.train_x.shape[2:]
        return height if height == width else [height, width]

    @property
    def summary(self) -> str:
        """One line: numbers of images and classes, and what was passed over or changed on the way."""
        classes = f"{len(self.classes):,} {'class' if len(self.classes) == 1 else 'classes'}"
        counts = f"{len(self.train_y):,} training and {len(self.test_y):,} test images, {classes}"
        resized = []
        if self.resized_from:
            ordered = [f"{width}x{height}" for width, height in sorted(self.resized_from)]
            few = " and ".join(ordered)
            many = f"{len(ordered):,} sizes between {ordered[0]} and {ordered[-1]}"
            height, width = self.train_x.shape[-2:]
            resized = [f"resized from {few if len(ordered) <= 2 else many} to {width}x{height}"]
        return f"{self.name}: {', '.join([counts, *self.notes, *resized])}"

    @cached_property
    def id(self) -> str:
        """16 hex digits that depend on every pixel and label, and on nothing else, such as the files' location."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(str(tuple(part.shape)).encode())
            for places in with_progress(list(chunks(part)), "reading images"):  # some are larger than memory
                digest.update(part[places].contiguous().numpy().data)
        return digest.hexdigest()

    @cached_property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per-channel mean and standard deviation of all training pixels, as fractions of their range.

        Training and validation images both count, so that the values do not depend on the split. The deviation is at
        least 1 / 255: a channel without contrast becomes 0, and not NaN.
        """
        values = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(self.train_x.shape[1], 256, dtype=torch.int64)
        for places in with_progress(list(chunks(self.train_x)), "measuring images"):
            part = self.train_x[places]
            for channel in range(len(counts)):  # one at a time: counting takes eight times the memory of the pixels
                counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
        means, stds = [], []
        for count in counts:
            share = count.double() / count.sum()
            mean = (share * values).sum()
            means.append(mean.item())
            stds.append(max(1 / 255, (share * (values - mean) ** 2).sum().sqrt().item()))
        return tuple(means), tuple(stds)


def require_classes(images: Images) -> None:
    """Check that there are classes to tell apart.

    Raises:
        UserError: for a single class.
    """
    if len(images.classes) < 2:
        raise UserError(f"{images.name} has one class only, {images.classes[0]}: there is nothing to tell apart")


def require_labelled(images: object) -> None:
    """Check what a function of one's own returns as a data set.

    Raises:
        UserError: for anything but `Images` of uint8 pixels and of labels that number the classes from 0.
    """
    if not isinstance(images, Images):
        raise UserError(f"the source of the data has to return kd.data.images.Images, not {type(images).__name__}")
    for split, x, y in (("training", images.train_x, images.train_y), ("test", images.test_x, images.test_y)):
        if x.dtype != torch.uint8 or len(x.shape) != 4:
            raise UserError(f"{split} images must be uint8 of shape (N, C, H, W), got {x.dtype} of {tuple(x.shape)}")
        if y.dtype != torch.int64 or tuple(y.shape) != (len(x),):
            raise UserError(f"{split} labels must be int64 of shape ({len(x)},), got {y.dtype} of {tuple(y.shape)}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(images.classes):
            raise UserError(
                f"{split} labels go from {y.min()} to {y.max()}, and there are {len(images.classes)} classes; number "
                "them from 0"
            )


def draw_test_split(y: Tensor) -> Tensor:
    """Choose test images for data that has no test split: (N,) bool, the same in every run.

    A fifth of each class, rounded, at least one image, is drawn with a fixed seed.

    Args:
        y: (N,), labels.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    return drawn_of_each(y, lambda size: max(1, round(TEST_FRACTION * size)), generator)
