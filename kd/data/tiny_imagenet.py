"""Tiny ImageNet in the folders that it is published in."""

import os
from pathlib import Path

import torch

from kd.data.decode import Decoded, cache_of, change_notes, decode
from kd.data.images import Images
from kd.data.tree import check_class_names
from kd.errors import UserError
from kd.files import read_regular
from kd.ranges import Size
from kd.terminal import visible

SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MOST_BYTES = 64 << 20
"""Bytes of a text file or an image, at most: more than any needs."""


def tiny_imagenet(
    root: str | os.PathLike[str], image_size: Size = 64, in_memory: bool = True, channels: int | None = None
) -> Images:
    """Load Tiny ImageNet: 100,000 training images of 64x64 pixels in 200 classes.

    The 10,000 of its validation split are the test split; the files of test/ have no labels and are not used. Read are
    wnids.txt, words.txt, train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt, under root or
    root/tiny-imagenet-200. Labels are in the order of wnids.txt. A class is called by its first word in words.txt, or
    by its wnid where two would be called the same.

    Source: CS231n, Stanford, http://cs231n.stanford.edu/tiny-imagenet-200.zip.

    Args:
        root: the folder; `~` is expanded.
        image_size, in_memory, channels: as of `kd.data.folder.folder`.

    Raises:
        UserError: for a missing or unreadable file, an image without a class or a class without images, an image that
            cannot be decoded.
    """
    top = Path(os.path.abspath(os.path.expanduser(root)))
    top = top / "tiny-imagenet-200" if (top / "tiny-imagenet-200").is_dir() else top
    try:
        wnids = _lines(top / "wnids.txt")
        train = [(path, wnid) for wnid in wnids for path in sorted((top / "train" / wnid / "images").glob("*.JPEG"))]
        annotated = [line.split("\t") for line in _lines(top / "val" / "val_annotations.txt")]
        test = sorted((top / "val" / "images" / parts[0], parts[1]) for parts in annotated if len(parts) > 1)
        for where, found in (("train", train), ("val", test)):
            lacking = sorted(set(wnids) - {wnid for _, wnid in found})
            unknown = sorted({wnid for _, wnid in found} - set(wnids))
            if lacking or unknown:
                what = f"no images of {lacking[0]}" if lacking else f"images of {unknown[0]}, which wnids.txt lacks"
                raise UserError(f"{visible(top / where)}: {visible(what)}; unpack {SOURCE} again")
        splits = [
            _decoded(split, [path for path, _ in found], image_size, None if in_memory else top, channels)
            for split, found in (("train", train), ("val", test))
        ]
        names = _names(top, wnids)
    except OSError as error:
        raise UserError(
            f"{visible(error.filename or top)}: {error.strerror or error}; data.root must be what {SOURCE} unpacks to"
        ) from error
    check_class_names(names, top)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    y = [torch.tensor([labels[wnid] for _, wnid in found]) for found in (train, test)]
    return Images(
        "Tiny ImageNet",
        names,
        splits[0].x,
        y[0],
        splits[1].x,
        y[1],
        splits[0].resized_from | splits[1].resized_from,
        ("val/ taken as the test split", *change_notes(*splits)),
    )


def _decoded(split: str, paths: list[Path], size: Size, cache_root: Path | None, channels: int | None) -> Decoded:
    cache = None if cache_root is None else cache_of(cache_root, f"tiny-imagenet-{split}", paths, size, channels)
    return decode(((str(path), read_regular(path, MOST_BYTES)) for path in paths), len(paths), size, cache, channels)


def _lines(path: Path) -> list[str]:
    return [line for line in read_regular(path, MOST_BYTES).decode("utf-8", "replace").splitlines() if line.strip()]


def _names(top: Path, wnids: list[str]) -> tuple[str, ...]:
    """Return the classes' names."""
    words = dict(line.split("\t", 1) for line in _lines(top / "words.txt") if "\t" in line)
    first = {wnid: words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids}
    called = list(first.values())
    return tuple(name if called.count(name) == 1 else wnid for wnid, name in first.items())
