"""A data set in NumPy's own files: images with any number of channels."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.decode import read_only
from kd.data.images import Images, draw_test_split
from kd.data.resize import images_of_channels, images_of_size
from kd.data.tree import check_class_names, in_order
from kd.errors import UserError
from kd.files import open_regular, read_regular
from kd.ranges import Size
from kd.terminal import visible

CLASSES = "classes.txt"
MOST_BYTES = 1 << 20
"""Bytes of the file with the names of classes, at most."""


def npy(
    root: str | os.PathLike[str],
    image_size: Size | None = None,
    channels: int | None = None,
    in_memory: bool = True,
) -> Images:
    """Load root/train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.

    Images are (N, H, W) or (N, H, W, C), uint8, and keep their C channels. Labels are (N,) or (N, 1), whole numbers
    from 0. Without the files of test, a fifth of each class, drawn with a fixed seed, is the test split. Classes are
    called as the lines of root/classes.txt, or else by their numbers. Nothing is unpickled.

    Args:
        root: the folder; `~` is expanded. Its name is the data set's.
        image_size: height and width in pixels that images are resized to, one number for squares; None for their own.
        channels: 1 for grey images, made of RGB ones where they are not; 3 for RGB; None for those of the files.
        in_memory: whether images are read; otherwise they are mapped, and a batch is read when it is needed.

    Raises:
        UserError: for a missing file, one that is no such array or not whole, labels that are none of a class's, fewer
            than two images of a class that a test split is drawn of, images to be changed that are not in memory.
    """
    top = Path(os.path.abspath(os.path.expanduser(root)))
    if not in_memory and (image_size is not None or channels is not None):
        raise UserError(
            "data.in_memory=false reads the arrays as they are; leave out data.image_size and data.channels, or store "
            "arrays of that size"
        )
    try:
        x, y = _split(top, "train", in_memory)
        has_test = (top / "test_images.npy").exists() or (top / "test_labels.npy").exists()
        test_x, test_y = _split(top, "test", in_memory) if has_test else (None, None)
        names = _names(top, y if test_y is None else torch.cat([y, test_y]))
    except OSError as error:
        raise UserError(f"{visible(error.filename or top)}: {error.strerror or error}") from error
    notes: tuple[str, ...] = ()
    if test_x is None or test_y is None:
        notes = ("no test split found: a fifth of each class, drawn with a fixed seed, is the test split",)
        least = y.bincount(minlength=len(names)).min()
        if least < 2 or not in_memory:
            why = "a class has fewer than two images" if in_memory else "with data.in_memory=false none is drawn"
            raise UserError(f"{visible(top)}: no test_images.npy there, and {why}; add it and test_labels.npy")
        chosen = draw_test_split(y)
        x, y, test_x, test_y = x[~chosen], y[~chosen], x[chosen], y[chosen]
    elif test_x.shape[1:] != x.shape[1:]:
        shapes = " and ".join(str(tuple(part.shape[1:])) for part in (x, test_x))
        raise UserError(f"{visible(top)}: images for training and test differ in channels, height or width: {shapes}")
    images = Images(visible(top.name), names, x, y, test_x, test_y, notes=notes)
    if image_size is not None:
        images = images_of_size(images, image_size)
    return images if channels is None else images_of_channels(images, int(channels))


def open_array(file: Path) -> NDArray[Any]:
    """Map the array in a file; objects, which would have to be unpickled, are refused.

    Raises:
        UserError: for a file that holds no whole array of numbers.
        OSError: for a file that is missing or cannot be read.
    """
    try:
        open_regular(file).close()
        # Not copy on write, which limits of memory count as if all of it were copied.
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{visible(file)}: not a whole .npy array of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{visible(file)}: an archive of arrays, not one array")
    return array


def _split(top: Path, split: str, in_memory: bool) -> tuple[Tensor, Tensor]:
    """Return the images (N, C, H, W) and labels (N,) of a split."""
    data, file = top / f"{split}_images.npy", top / f"{split}_labels.npy"
    x, y = open_array(data), open_array(file)
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
        raise UserError(
            f"{visible(data)}: {x.dtype} of shape {x.shape}, not images: uint8, from 0 to 255, of (N, H, W) or "
            "(N, H, W, C)"
        )
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] != x.shape[1]:
        raise UserError(f"{visible(data)}: of shape {x.shape}, (N, C, H, W) by its looks; store (N, H, W, C)")
    whole = y.dtype.kind in "iu" and y.shape in ((len(x),), (len(x), 1))
    labels = y.reshape(-1).astype(np.int64) if whole else np.array([-1])
    if labels.min() < 0:  # also of unsigned ones that stand for -1
        raise UserError(
            f"{visible(file)}: {y.dtype} of shape {y.shape}, not labels of {len(x):,} images: whole numbers from 0"
        )
    pixels = read_only(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2)
    # Of grey images `contiguous` would return the mapped tensor itself.
    return pixels.clone(memory_format=torch.contiguous_format) if in_memory else pixels, torch.from_numpy(labels)


def _names(top: Path, y: Tensor) -> tuple[str, ...]:
    """Return the classes' names: the lines of a file, or numbers."""
    count, file = int(y.max()) + 1, top / CLASSES
    if not file.exists():
        if count > len(y):
            raise UserError(f"{visible(top)}: a label of {count - 1:,} and {len(y):,} images; number classes from 0")
        return tuple(in_order(map(str, range(count))))
    names = tuple(read_regular(file, MOST_BYTES).decode("utf-8", "replace").splitlines())
    check_class_names(names, file)
    if len(names) < count or len(set(names)) < len(names):
        raise UserError(f"{visible(file)}: {len(set(names)):,} different names, and labels up to {count - 1:,}")
    return names
