"""CIFAR-10 and CIFAR-100, from torchvision's files, a parquet mirror, a tree of images, or the network."""

import os
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd.data.folder import folder
from kd.data.images import Images
from kd.data.parquet import parquet
from kd.errors import UserError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def cifar10(root: str | os.PathLike[str]) -> Images:
    """Load CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in ten classes.

    The first of these that exists under root is read: torchvision's cifar-10-batches-py/ or
    cifar-10-python.tar.gz; a parquet mirror (see `kd.data.parquet`); a tree with train/ (see `kd.data.folder`).
    If there is none, the archive is downloaded. Archive and download are verified by torchvision's checksums. A mirror
    is checked for its number of classes and is called "CIFAR-10 (JPEG)" if it was re-encoded.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.

    Args:
        root: the folder; `~` is expanded. It is created if it is missing.

    Raises:
        UserError: for damaged or unreadable files, another data set than CIFAR-10, a download that fails. Nothing
            of a failed download or an interrupted extraction is left.
    """
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, "CIFAR-10", 10, root)


def cifar100(root: str | os.PathLike[str]) -> Images:
    """Load CIFAR-100 with its 100 fine labels: 50,000 training and 10,000 test images of 32x32 pixels.

    Found, checked and downloaded as `cifar10`, from cifar-100-python/ and cifar-100-python.tar.gz; same source.

    Args:
        root: the folder; `~` is expanded. It is created if it is missing.

    Raises:
        UserError: as `cifar10`.
    """
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, "CIFAR-100", 100, root)


def _cifar(source: "type[CIFAR10]", name: str, classes: int, root: str | os.PathLike[str]) -> Images:
    root = Path(os.path.abspath(os.path.expanduser(root)))
    try:
        if (root / source.base_folder).exists() or (root / source.filename).exists():
            return _original(source, name, root)
        if any(root.rglob("*train*.parquet")):
            images = parquet(root, name=name)
        elif (root / "train").is_dir():
            images = folder(root, name=name)
        else:
            return _original(source, name, root)
    except OSError as error:
        raise UserError(
            f"{name} cannot be read from {root} or put there: {error}; mend that or set data.root=DIR to another folder"
        ) from error
    if len(images.classes) != classes:
        raise UserError(
            f"{root}: the data there has {len(images.classes)} classes, {name} has {classes}; set data.root=DIR to "
            f"where {name} is"
        )
    return images


def _original(source: "type[CIFAR10]", name: str, root: Path) -> Images:
    """Read torchvision's files, unpacked or downloaded first where needed."""
    extracted = root / source.base_folder
    if not extracted.exists():
        _extract(source, name, root)
    try:
        train, test = source(root, train=True), source(root, train=False)
    except RuntimeError as error:  # a checksum is wrong or a file missing
        raise UserError(f"{extracted}: damaged or incomplete; delete it, and the next run makes it anew") from error
    return Images(name, tuple(train.classes), *_tensors(train), *_tensors(test))


def _tensors(data: "CIFAR10") -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


def _extract(source: "type[CIFAR10]", name: str, root: Path) -> None:
    """Unpack torchvision's folder into root: whole or not at all, also if interrupted or run twice at a time."""
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive, extracted = root / source.filename, root / source.base_folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as scratch:
        if not archive.exists():
            _download(source, name, root, scratch)
            archive = Path(scratch, source.filename)
        elif not check_integrity(archive, source.tgz_md5):
            raise UserError(f"{archive}: cut short or damaged; delete it, and the next run downloads it again")
        extract_archive(archive, scratch)
        try:
            os.rename(Path(scratch, source.base_folder), extracted)
        except OSError:
            if not extracted.exists():  # else another run was first
                raise


def _download(source: "type[CIFAR10]", name: str, root: Path, target: str) -> None:
    from torchvision.datasets.utils import download_url

    alternatives = (
        f"Put {source.filename}, parquet files (*train*.parquet, *test*.parquet) or train/<class>/*.png and "
        "test/<class>/*.png there, set data.root=DIR to where they are, or try data=digits, which needs no download."
    )
    try:
        download_url(source.url, target, source.filename, source.tgz_md5)
    except (OSError, HTTPException) as error:
        raise UserError(f"no {name} in {root}, and it cannot be downloaded: {error}\n{alternatives}") from error
    except RuntimeError as error:
        raise UserError(
            f"no {name} in {root}, and what {source.url} sends has a wrong checksum; try again later\n{alternatives}"
        ) from error
