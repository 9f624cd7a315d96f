"""Data sets that are published as files of arrays: SVHN, FashionMNIST, STL-10."""

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.images import Images
from kd.data.resize import images_of_size
from kd.errors import UserError
from kd.files import open_regular, read_regular
from kd.ranges import Size
from kd.terminal import visible

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
MOST_BYTES = 4 << 30
"""Bytes of one array, at most: several times as many as the largest has."""


def svhn(root: str | os.PathLike[str], image_size: Size = 32) -> Images:
    """Load the cropped digits of SVHN from root/train_32x32.mat and root/test_32x32.mat; extra_32x32.mat is not used.

    73,257 training and 26,032 test images of 32x32 pixels; label 10 of the files is digit 0.

    Source: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011,
    http://ufldl.stanford.edu/housenumbers.

    Args:
        root: the folder; `~` is expanded.
        image_size: height and width in pixels, one number for squares; other images are resized, see `kd.data.resize`.

    Raises:
        UserError: for a missing, damaged or unreadable file.
        ValueError: for an image size below 1.
    """
    files = [
        _found(root, f"{split}_32x32.mat", "http://ufldl.stanford.edu/housenumbers") for split in ("train", "test")
    ]
    return images_of_size(_images("SVHN", "0123456789", [_matlab(file) for file in files], files), image_size)


def fashion_mnist(root: str | os.PathLike[str], image_size: Size = 28) -> Images:
    """Load FashionMNIST from root/train-images-idx3-ubyte.gz and its three companions, packed or unpacked.

    60,000 training and 10,000 test images of 28x28 pixels, grey: their one channel is repeated over three. Folders that
    torchvision makes, FashionMNIST/raw/, are found.

    Source: Xiao et al. 2017, arXiv 1708.07747, https://github.com/zalandoresearch/fashion-mnist.

    Args, raises: as `svhn`.
    """
    below = ("", "FashionMNIST/raw", "raw")
    parts: list[Part] = []
    files: list[Path] = []
    for split in ("train", "t10k"):
        names = f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"
        x, y = (_found(root, name, "https://github.com/zalandoresearch/fashion-mnist", below, ".gz") for name in names)
        grey = torch.from_numpy(_idx(x, 3))[:, None].expand(-1, 3, -1, -1).contiguous()
        parts.append((grey, torch.from_numpy(_idx(y, 1).astype(np.int64))))
        files.append(x)
    return images_of_size(_images("FashionMNIST", FASHION, parts, files), image_size)


def stl10(root: str | os.PathLike[str], image_size: Size = 96) -> Images:
    """Load STL-10 from root/train_X.bin, train_y.bin, test_X.bin and test_y.bin, or those in root/stl10_binary/.

    5,000 training and 8,000 test images of 96x96 pixels. The 100,000 without labels are not used.

    Source: Coates et al., "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011,
    https://cs.stanford.edu/~acoates/stl10.

    Args, raises: as `svhn`.
    """
    parts: list[Part] = []
    files: list[Path] = []
    for split in ("train", "test"):
        names = f"{split}_X.bin", f"{split}_y.bin"
        x, y = (_found(root, name, "https://cs.stanford.edu/~acoates/stl10", ("", "stl10_binary")) for name in names)
        pixels = _bytes(x)
        if len(pixels) % (3 * 96 * 96):
            raise UserError(f"{visible(x)}: {len(pixels):,} bytes, which are no images of 96x96 pixels; is it whole?")
        # Each channel is stored column by column.
        images = torch.from_numpy(pixels).view(-1, 3, 96, 96).transpose(2, 3).contiguous()
        parts.append((images, torch.from_numpy(_bytes(y).astype(np.int64)) - 1))
        files.append(x)
    return images_of_size(_images("STL-10", STL10, parts, files), image_size)


Part = tuple[Tensor, Tensor]
"""Images (N, 3, H, W), uint8, and their labels (N,)."""


def _images(name: str, classes: Sequence[str], parts: Sequence[Part], files: Sequence[Path]) -> Images:
    """Put training and test images together; every label must be that of a class, and every image must have one."""
    for (x, y), file in zip(parts, files, strict=True):
        if y.shape != (len(x),) or not len(x):
            raise UserError(f"{visible(file)}: {len(x):,} images and labels of shape {tuple(y.shape)}; is it whole?")
        if not 0 <= int(y.min()) <= int(y.max()) < len(classes):
            raise UserError(
                f"{visible(file)}: its labels are from {y.min()} to {y.max()} here, and {name} has "
                f"{len(classes)} classes"
            )
    train, test = parts
    return Images(name, tuple(classes), *train, *test)


def _found(
    root: str | os.PathLike[str], name: str, source: str, below: Sequence[str] = ("",), packed: str = ""
) -> Path:
    """Return the path of a file in root, or in one of some folders below it, unpacked or packed."""
    top = Path(os.path.abspath(os.path.expanduser(root)))
    candidates = [top / folder / (name + suffix) for folder in below for suffix in dict.fromkeys(("", packed))]
    for path in candidates:
        if path.exists():
            return path
    raise UserError(
        f"{visible(top)}: no {name}{packed} there; get it from {source}, or set data.root=DIR to where it is"
    )


def _bytes(file: Path) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(bytearray(read_regular(file, MOST_BYTES)), np.uint8)
    except OSError as error:
        raise UserError(f"{visible(file)}: {error.strerror or error}") from error


def _matlab(file: Path) -> Part:
    """Return images and labels of one of SVHN's files: X (32, 32, 3, N) and y (N, 1)."""
    from scipy.io import loadmat

    content = io.BytesIO(_bytes(file).data)
    try:
        found: dict[str, Any] = loadmat(content, variable_names=["X", "y"])
        x, y = found["X"], found["y"]
    except Exception as error:  # scipy raises anything about a damaged file
        raise UserError(f"{visible(file)}: damaged or another kind of file; get it again") from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[2] != 3 or y.dtype.kind not in "iuf":
        raise UserError(f"{visible(file)}: X is {x.dtype} of shape {x.shape}, not the images of SVHN")
    pixels = torch.from_numpy(np.ascontiguousarray(x.transpose(3, 2, 0, 1)))
    labels = torch.from_numpy(y.reshape(-1).astype(np.int64))
    return pixels, torch.where(labels == 10, 0, labels)


def _idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of bytes in an idx file, packed by gzip or not; see http://yann.lecun.com/exdb/mnist."""
    try:
        with open_regular(file) as opened, gzip.open(opened) if file.suffix == ".gz" else opened as unpacked:
            head = unpacked.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise ValueError(f"no idx file of bytes in {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            size = math.prod(shape)
            if size > MOST_BYTES:
                raise ValueError(f"an array of shape {shape}")
            content = unpacked.read(size + 1)
        if len(content) != size:
            raise ValueError(f"an array of shape {shape} in {len(content):,} bytes")
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{visible(file)}: damaged or another kind of file ({error}); get it again") from error
    except OSError as error:
        raise UserError(f"{visible(file)}: {error.strerror or error}") from error
    return np.frombuffer(bytearray(content), np.uint8).reshape(shape)
