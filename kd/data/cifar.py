"""CIFAR-10 and CIFAR-100, from torchvision's files, a parquet mirror, a tree of images, or the network."""

import os
import re
import shutil
import stat
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd.data.decode import display_name
from kd.data.folder import folder
from kd.data.images import Images
from kd.data.parquet import has_parquet, parquet
from kd.data.tree import Tree, in_order, split_folders
from kd.errors import UserError
from kd.files import clear_leftovers, shared_lock, temporary_path
from kd.terminal import visible

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

DEFAULT_ROOT = "data"
"""Root in conf/data/cifar10.yaml: the one folder that is created if it is missing. Another one is probably misspelt."""

COUNTS = (50_000, 10_000)
"""Training and test images, of CIFAR-10 and CIFAR-100 alike."""

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"

CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""

ALSO_CALLED = {"plane": "airplane", "car": "automobile", "cra": "crab"}
"""Names of classes in well-known copies; "cra" is that of the Hugging Face hub."""


def cifar10(root: str | os.PathLike[str]) -> Images:
    """Load CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in ten classes.

    The first of these that exists under root is read: torchvision's cifar-10-batches-py/ or
    cifar-10-python.tar.gz; a parquet mirror (see `kd.data.parquet`); a tree with train/ (see `kd.data.folder`).
    If there is none, the archive is downloaded. Archive and download are verified by torchvision's checksums. A mirror
    or tree must have 32x32 pixels and CIFAR-10's class names, or the names "0" to "9" and all 60,000 images. It is
    called "CIFAR-10 (JPEG)" if it was re-encoded, "CIFAR-10 (600 of 60,000 images)" if it is a part. Its pixels are
    kept in root/.decoded where that can be written, so that they are decoded once.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.

    Args:
        root: the folder; `~` is expanded. If it is missing it is created, but only if it is called `data`, as the
            default is.

    Raises:
        UserError: for a missing folder, damaged or unreadable files, another data set than CIFAR-10, a download that
            fails. Nothing of a failed download or an interrupted extraction is left; what a kill leaves of one, the
            next one removes.
    """
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, "CIFAR-10", CIFAR10_CLASSES.split(), root)


def cifar100(root: str | os.PathLike[str]) -> Images:
    """Load CIFAR-100 with its 100 fine labels: 50,000 training and 10,000 test images of 32x32 pixels.

    Found, checked and downloaded as `cifar10`, from cifar-100-python/ and cifar-100-python.tar.gz; same source.

    Args:
        root: as of `cifar10`.

    Raises:
        UserError: as `cifar10`.
    """
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, "CIFAR-100", CIFAR100_CLASSES.split(), root)


def _cifar(source: "type[CIFAR10]", name: str, classes: list[str], root: str | os.PathLike[str]) -> Images:
    root = Path(os.path.abspath(os.path.expanduser(root)))
    try:
        _check_root(name, root)
        if (root / source.base_folder).exists() or (root / source.filename).exists():
            return _original(source, name, root)
        if has_parquet(root):
            return _recognised(parquet(root, name=name, keep=True), "parquet", name, classes, root)
        if "train" in split_folders(Tree(root, ()).entries(root).folders):
            return _recognised(folder(root, name=name, keep=True), "folder", name, classes, root)
        return _original(source, name, root)
    except OSError as error:
        raise UserError(
            f"{name} cannot be read from {visible(root)} or put there: {error}; mend that or set data.root=DIR to "
            "another folder"
        ) from error


def _check_root(name: str, root: Path) -> None:
    """Create the default folder if it is missing; refuse any other that is no folder."""
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise UserError(f"{visible(root)} is a file, not a folder; set data.root=DIR to where {name} is")
    except (FileNotFoundError, NotADirectoryError) as error:
        if root.name != DEFAULT_ROOT or not root.parent.is_dir():
            raise UserError(
                f"no folder {visible(root)}; create it to have {name} downloaded there, or set data.root=DIR to "
                f"where {name} is"
            ) from error
        root.mkdir(exist_ok=True)


def _recognised(images: Images, kind: str, name: str, classes: list[str], root: Path) -> Images:
    """Return images that are those of a data set, or a part of them, under the name that is due to them.

    Raises:
        UserError: if they are not.
    """
    called = [ALSO_CALLED.get(plain, plain) for plain in (re.sub("[ -]", "_", c.lower()) for c in images.classes)]
    counts = len(images.train_y), len(images.test_y)
    numbered = in_order(images.classes) == [str(i) for i in range(len(classes))]
    wrong = []
    if len(images.classes) != len(classes) or not (set(called) == set(classes) or (numbered and counts == COUNTS)):
        few = ", ".join(images.classes[:5]) + (", ..." if len(images.classes) > 5 else "")
        wrong.append(f"{len(images.classes):,} classes ({few})")
    if images.resized_from:
        wrong.append(" and ".join(f"{width}x{height}" for width, height in sorted(images.resized_from)[:3]) + " pixels")
    if counts[0] > COUNTS[0] or counts[1] > COUNTS[1]:
        wrong.append(f"{counts[0]:,} training and {counts[1]:,} test images")
    if wrong:
        raise UserError(
            f"{visible(root)}: not {name}, but {', '.join(wrong)}; set data.root=DIR to where {name} is, or train on "
            f"this with data={kind} data.root={visible(root)}"
        )
    if not numbered and called != classes:
        # A plane sorts elsewhere than an airplane, and further test sets are in the published order.
        place = torch.tensor([classes.index(label) for label in called])
        labels = place[images.train_y], place[images.test_y]
        images = replace(images, classes=tuple(classes), train_y=labels[0], test_y=labels[1])
    part = "" if counts == COUNTS else f"{sum(counts):,} of {sum(COUNTS):,} images"
    return replace(images, name=display_name(name, "JPEG" if images.name != name else "", part))


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
    lock = root / f".{source.base_folder}.lock"
    with shared_lock(lock):  # the jobs of a sweep begin together, and one of them is to download
        scratch = str(temporary_path(extracted))
        try:
            if extracted.exists():
                return
            clear_leftovers(root, source.base_folder)
            os.mkdir(scratch)
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
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            lock.unlink(missing_ok=True)  # whoever waits for it finds the folder then, or tries by itself


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
