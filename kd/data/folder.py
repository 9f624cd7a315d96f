"""Image files in one folder per class."""

import os
from pathlib import Path

import torch
from torch import Tensor

from kd.data.decode import Decoded, cache_path, decode, display_name
from kd.data.images import Images
from kd.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg"}


def folder(
    root: str | os.PathLike[str], image_size: int = 32, name: str | None = None, in_memory: bool = True
) -> Images:
    """Load the images root/train/<class>/*.{png,jpg,jpeg} and root/test/<class>/*.{png,jpg,jpeg}.

    Classes are the folders' names, sorted; images are in the order of their classes and file names. Hidden files
    and folders and those with another suffix are skipped.

    Args:
        root: the folder with train/ and test/; `~` is expanded.
        image_size: height and width in pixels; images of another size are resized, see `kd.data.decode`.
        name: the data set's name, by default root's. " (JPEG)" is appended if any training image is one.
        in_memory: whether the pixels are decoded to memory, or once to files under root/.decoded.

    Raises:
        UserError: for a missing or unreadable file or folder, no classes, a class without images, classes that
            differ between train/ and test/, an image that cannot be decoded.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    try:
        train, test = _classes(root / "train"), _classes(root / "test")
        unmatched = [f"train/{label}" for label in train if label not in test]
        unmatched += [f"test/{label}" for label in test if label not in train]
        if unmatched:
            raise UserError(
                f"{root}: train/ and test/ must hold the same classes; add the counterpart of, or delete, "
                f"{', '.join(unmatched)}"
            )
        cache_root = None if in_memory else root
        (train_x, jpeg), train_y = _load(train, image_size, cache_root)
        (test_x, _), test_y = _load(test, image_size, cache_root)
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}; data.root must be a readable folder with train/<class>/*.png and "
            "test/<class>/*.png (or .jpg)"
        ) from error
    return Images(display_name(name or root.name, jpeg), tuple(train), train_x, train_y, test_x, test_y)


def _classes(split: Path) -> dict[str, list[Path]]:
    """Return the sorted image files of each class."""
    labels = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not labels:
        raise UserError(f"{split}: no class folders in it; put images into {split}/<class>/")
    files = {
        label: sorted(
            path
            for path in (split / label).iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        for label in labels
    }
    empty = [label for label in labels if not files[label]]
    if empty:
        raise UserError(f"{split}: no .png or .jpg images in {', '.join(empty)}; put some there or delete the folder")
    return files


def _load(classes: dict[str, list[Path]], image_size: int, cache_root: Path | None) -> tuple[Decoded, Tensor]:
    """Return images and labels (N,)."""
    paths = [path for files in classes.values() for path in files]
    cache = None if cache_root is None else cache_path(cache_root, paths, image_size)
    encoded = ((str(path), path.read_bytes()) for path in paths)
    labels = torch.tensor([label for label, files in enumerate(classes.values()) for _ in files])
    return decode(encoded, len(paths), image_size, cache), labels
