"""Further test sets: other images of the same classes, on which a trained network is tested once more.

Read are CIFAR-10-C and CIFAR-10.1 in the forms that they are published in, and folders of image files.
"""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kd.data.decode import read_only
from kd.data.folder import folder_test
from kd.data.images import Images
from kd.data.npy import open_array
from kd.data.stored import Pixels
from kd.errors import UserError
from kd.terminal import visible

SEVERITIES = 5
"""Equal parts of each file of CIFAR-10-C, one after the other, from mild to severe."""
CORRUPTIONS = 15
"""The files of CIFAR-10-C that a mean is made of."""
BESIDE = frozenset({"gaussian_blur", "saturate", "spatter", "speckle_noise"})
"""Files of CIFAR-10-C that are for validation, and in no published mean."""


class AlsoTest(NamedTuple):
    """M labelled images of the classes of a data set, beside its own test split."""

    name: str
    """As in "cifar10.1_v6", or "CIFAR-10-C/fog/3" for a part."""
    x: Pixels
    """(M, C, H, W), uint8, mapped from the file where it is an array."""
    y: Tensor
    """(M,), int64."""
    mean_of: str | None = None
    """The name of the mean that a part counts in; None for none."""


def also_test(paths: Sequence[str], images: Images, in_memory: bool = True) -> tuple[AlsoTest, ...]:
    """Open further test sets, each a folder of one of these forms:

    * labels.npy (M,) and arrays of M images, as CIFAR-10-C has them: each array is five severities of M / 5 images.
      The mean over all but `BESIDE` is named after the folder, with the number of corruptions if it is not 15.
    * pairs NAME_data.npy and NAME_labels.npy, as CIFAR-10.1 has them. Each is a test set.
    * image files in one folder a class, or those in its test/ or val/; see `kd.data.folder.folder_test`.

    Arrays of images are (M, H, W, C), uint8, of the height, width and channels of the data set, or (M, H, W); they are
    mapped, not read. Their labels are trusted to be in the order of the data set's classes.

    Sources: Hendrycks, Dietterich 2019, arXiv 1903.12261; Recht et al. 2018, arXiv 1806.00451.

    Args:
        paths: the folders; `~` is expanded.
        images: the data set whose classes these are.
        in_memory: as of `kd.data.folder.folder`.

    Raises:
        UserError: for a missing folder, a file that is no such array or not whole, labels or class folders that are
            none of the data set's classes, two test sets of one name.
    """
    opened = [_opened(Path(os.path.abspath(os.path.expanduser(path))), images, in_memory) for path in paths]
    names: list[str] = []
    for tests in opened:  # a mean over parts is a figure by its name, too
        names += [test.name for test in tests] + sorted({test.mean_of for test in tests if test.mean_of is not None})
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"data.also_test has two test sets called {twice}; rename the folder of one")
    return tuple(chain.from_iterable(opened))


def _opened(path: Path, images: Images, in_memory: bool) -> list[AlsoTest]:
    if not path.is_dir():
        raise UserError(f"data.also_test: no folder {visible(path)}")
    try:
        arrays = sorted(path.glob("*.npy"))
        if path / "labels.npy" in arrays:
            return _corrupted(path, [file for file in arrays if file.name != "labels.npy"], images)
        names = sorted(file.name.removesuffix("_data.npy") for file in path.glob("*_data.npy"))
        if names:
            return [
                AlsoTest(visible(name), *_pair(path / f"{name}_data.npy", path / f"{name}_labels.npy", images))
                for name in names
            ]
        if images.channels not in (1, 3):
            raise UserError(
                f"data.also_test: image files are grey or RGB, and images of {images.name} have {images.channels} "
                "channels; give arrays in .npy files"
            )
        x, y = folder_test(path, images.classes, images.image_size, in_memory, images.channels)
        return [AlsoTest(visible(path.name), x, y)]
    except OSError as error:
        raise UserError(f"data.also_test: {visible(error.filename or path)}: {error.strerror or error}") from error


def _corrupted(path: Path, files: Sequence[Path], images: Images) -> list[AlsoTest]:
    """Return the severities of each corruption."""
    if not files:
        raise UserError(f"data.also_test: {visible(path)}: labels.npy and no arrays of images beside it")
    counted = [file for file in files if file.stem not in BESIDE]
    part = "" if len(counted) == CORRUPTIONS else f" ({len(counted)} of {CORRUPTIONS} corruptions)"
    found = []
    for file in files:
        x, y = _pair(file, path / "labels.npy", images)
        if len(y) % SEVERITIES:
            raise UserError(f"{visible(file)}: {len(y):,} images, which are not {SEVERITIES} severities of equal size")
        for severity, (some_x, some_y) in enumerate(zip(x.chunk(SEVERITIES), y.chunk(SEVERITIES), strict=True), 1):
            name = f"{visible(path.name)}/{visible(file.stem)}/{severity}"
            found.append(AlsoTest(name, some_x, some_y, visible(path.name) + part if file in counted else None))
    return found


def _pair(data: Path, labels: Path, images: Images) -> tuple[Tensor, Tensor]:
    """Return images (M, C, H, W), mapped, and their labels (M,)."""
    x, y = open_array(data), open_array(labels)
    channels, height, width = images.train_x.shape[1:]
    if channels == 1 and x.ndim == 3:
        x = x[..., None]
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != channels or not len(x):
        raise UserError(f"{visible(data)}: {x.dtype} of shape {x.shape}, not images: uint8 of (M, H, W, {channels})")
    if x.shape[1:3] != (height, width):
        raise UserError(
            f"{visible(data)}: images of {x.shape[2]}x{x.shape[1]} pixels, those of {images.name} have "
            f"{width}x{height}; data.also_test takes a folder of image files of any size"
        )
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise UserError(f"{visible(labels)}: {y.dtype} of shape {y.shape}, not labels of {len(x):,} images")
    if not 0 <= int(y.min()) <= int(y.max()) < len(images.classes):
        raise UserError(
            f"{visible(labels)}: labels from {y.min()} to {y.max()}, and {images.name} has "
            f"{len(images.classes):,} classes"
        )
    return read_only(x).permute(0, 3, 1, 2), torch.from_numpy(y.astype(np.int64))
