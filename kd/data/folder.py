"""Image files in one folder per class."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kd.data.decode import Decoded, cache_of, change_notes, decode, display_name
from kd.data.images import Images, draw_test_split
from kd.data.stored import Pixels
from kd.data.tree import SPLITS, Tree, check_class_names, in_order, split_folders
from kd.errors import UserError
from kd.ranges import Size
from kd.terminal import visible

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

MAX_BYTES = 2**30
"""Bytes of one image file, at most: more than any image of the allowed size needs."""

Classes = dict[str, list[Path]]
"""The image files of each class."""


def folder(
    root: str | os.PathLike[str],
    image_size: Size = 32,
    name: str | None = None,
    in_memory: bool = True,
    channels: int | None = None,
    keep: bool = False,
) -> Images:
    """Load the images root/train/<class>/**/*.png and root/test/<class>/**/*.png, or .jpg, .webp, .bmp, .gif, .tif.

    Classes are the folders' names, sorted, by value if all are whole numbers; images are in the order of their classes
    and paths. Without test/, val/ is the test split; where train/ is alone, it is a fifth of each of its classes, drawn
    with a fixed seed. Without any of them, the class folders lie in root itself and are split likewise.
    `Images.summary` has what was decided and what was passed over, see `kd.data.tree`.

    Args:
        root: the folder; `~` is expanded.
        image_size: height and width in pixels, one number for squares; images of another size are resized, see
            `kd.data.decode`.
        name: the data set's name, by default root's. " (JPEG)" is appended if any training image is one.
        in_memory: whether the pixels are decoded to memory, or once to files under root/.decoded.
        channels: 1 to have all images grey; 3 or None for RGB.
        keep: whether pixels in memory are also kept in files under root/.decoded, where that can be written, so that
            they need not be decoded again.

    Raises:
        UserError: for a missing or unreadable file or folder, no classes, a class without images or whose name is not
            text in one line, classes that differ between the splits, an image that cannot be decoded.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    try:
        tree = Tree(root, SUFFIXES)
        splits, notes = _splits(tree)
        train, test = (
            _load(split, classes, image_size, None if in_memory and not keep else root, channels, in_memory)
            for split, classes in zip(("train", "test"), splits, strict=True)
        )
    except OSError as error:
        raise UserError(
            f"{visible(error.filename)}: {error.strerror}; data.root must be a readable folder with "
            "train/<class>/*.png and test/<class>/*.png (or .jpg, .webp, .bmp, .gif, .tif)"
        ) from error
    return Images(
        name=display_name(name or visible(root.name), "JPEG" if train.jpeg else ""),
        classes=tuple(splits[0]),
        train_x=train.x,
        train_y=_labels(splits[0]),
        test_x=test.x,
        test_y=_labels(splits[1]),
        resized_from=train.resized_from | test.resized_from,
        notes=(*notes, *tree.notes(), *change_notes(train, test)),
    )


def folder_test(
    root: Path, classes: Sequence[str], image_size: Size, in_memory: bool = True, channels: int | None = None
) -> tuple[Pixels, Tensor]:
    """Load images in one folder a class, of a data set's classes or some of them: (M, C, H, W) uint8, and (M,) labels.

    If root has a test split, these are the folders in it; else in its validation split; else in root itself.

    Args:
        root: the folder.
        classes: names of the data set's classes, by label.
        image_size, in_memory, channels: as of `folder`.

    Raises:
        UserError: as `folder`, and for a folder that is called like none of the classes.
        OSError: for what cannot be read.
    """
    tree = Tree(root, SUFFIXES)
    found = split_folders(tree.entries(root).folders)
    split = found.get("test", found.get("val", root))
    named = _classes(tree, split)
    unknown = [label for label in named if label not in classes]
    if unknown:
        raise UserError(f"{visible(split)}: none of the data set's classes is called {_few(unknown)}")
    decoded = _load("also-test", named, image_size, None if in_memory else root, channels, in_memory)
    return decoded.x, torch.tensor([classes.index(label) for label, files in named.items() for _ in files])


def _splits(tree: Tree) -> tuple[tuple[Classes, Classes], tuple[str, ...]]:
    """Return the classes of train and test, and what was decided."""
    root = tree.root
    top = tree.entries(root)
    tree.pass_over(top.files, "outside of a class folder")
    found = split_folders(top.folders)
    if not found:
        note = "no split found: a fifth of each class, drawn with a fixed seed, is the test split"
        return _drawn(_unsplit(tree, top.folders)), (note,)
    notes = []
    if "test" in found and "val" in found:
        val = found.pop("val")
        unread = Tree(root, tree.suffixes).files(val)
        notes.append(f"{val.name}/ not used ({len(unread):,} images)")
    elif "val" in found:
        found["test"] = found.pop("val")
        notes.append(f"{found['test'].name}/ taken as the test split")
    if top.folders == [found.get("train")]:  # another folder beside it may be a test split of another name
        images = _classes(tree, found["train"])
        _require_two(found["train"], images)
        note = f"no test split found: a fifth of each class of {found['train'].name}/, drawn with a fixed seed, is it"
        return _drawn(images), (note,)
    for missing in {"train", "test"} - found.keys():
        there = ", ".join(f"{visible(folder.name)}/" for folder in top.folders)
        alone = " or leave train/ alone there," if missing == "test" else ""
        raise UserError(
            f"{visible(root)}: no {missing}/ there, but {there}; add it, or move the class folders into data.root "
            f"itself,{alone} to have a fifth of the images for testing{_aside(tree)}"
        )
    train, test = found["train"], found["test"]
    for other in top.folders:
        if SPLITS.get(other.name.lower()) is None:
            tree.pass_over_folder(other)
    classes = _classes(tree, train), _classes(tree, test)
    unmatched = [f"{train.name}/{visible(label)}" for label in classes[0] if label not in classes[1]]
    unmatched += [f"{test.name}/{visible(label)}" for label in classes[1] if label not in classes[0]]
    if unmatched:
        raise UserError(
            f"{visible(root)}: {train.name}/ and {test.name}/ must hold the same classes; add the counterpart of, or "
            f"delete, {_few(unmatched)}"
        )
    return classes, tuple(notes)


def _unsplit(tree: Tree, folders: list[Path]) -> Classes:
    """Return the classes of a root without train/ and test/."""
    for below in folders:
        inside = Tree(tree.root, ()).entries(below).folders
        if "train" in split_folders(inside):
            raise UserError(f"{visible(tree.root)}: train/ is in {visible(below.name)}/; set data.root to that")
    if len(folders) < 2:
        raise UserError(
            f"{visible(tree.root)}: neither train/ and test/ nor class folders in it; put images into train/<class>/ "
            f"and test/<class>/, or into <class>/{_aside(tree)}"
        )
    if not any(Tree(tree.root, tree.suffixes).entries(below).files for below in folders):
        names = _few([f"{visible(below.name)}/" for below in folders])
        raise UserError(f"{visible(tree.root)}: {names} hold folders and no images; is one of them train/ or test/?")
    classes = _read(tree, tree.root, folders)
    _require_two(tree.root, classes)
    return classes


def _require_two(where: Path, classes: Classes) -> None:
    """Refuse a class that a test split cannot be drawn from."""
    single = [label for label, files in classes.items() if len(files) < 2]
    if single:
        raise UserError(
            f"{visible(where)}: a single image in {_few(single)}, which cannot be split into training and "
            "test images; add one, or delete the class"
        )


def _drawn(classes: Classes) -> tuple[Classes, Classes]:
    """Draw a test split."""
    test = draw_test_split(_labels(classes)).tolist()
    paths = [(label, path) for label, files in classes.items() for path in files]
    splits: tuple[Classes, Classes] = ({label: [] for label in classes}, {label: [] for label in classes})
    for is_test, (label, path) in zip(test, paths, strict=True):
        splits[is_test][label].append(path)
    return splits


def _classes(tree: Tree, split: Path) -> Classes:
    """Return the classes of a split."""
    found = tree.entries(split)
    tree.pass_over(found.files, "outside of a class folder")
    if not found.folders:
        raise UserError(f"{visible(split)}: no class folders in it; put images into {split.name}/<class>/")
    return _read(tree, split, found.folders)


def _read(tree: Tree, split: Path, folders: list[Path]) -> Classes:
    """Return the sorted image files of each class folder."""
    by_name = {folder.name: folder for folder in folders}
    check_class_names(by_name, split)
    classes = {label: tree.files(by_name[label]) for label in in_order(by_name)}
    empty = [label for label, files in classes.items() if not files]
    if empty:
        raise UserError(
            f"{visible(split)}: no {', '.join(SUFFIXES)} images in {_few(empty)}; put some there or delete the "
            f"folder{_aside(tree)}"
        )
    return classes


def _aside(tree: Tree) -> str:
    """Return what was passed over, for the end of an error message."""
    return "".join(f" ({note})" for note in tree.notes())


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _load(
    split: str, classes: Classes, image_size: Size, cache_root: Path | None, channels: int | None, in_memory: bool
) -> Decoded:
    paths = [path for files in classes.values() for path in files]
    cache = None if cache_root is None else cache_of(cache_root, f"folder-{split}", paths, image_size, channels)
    encoded = ((str(path), _content(path)) for path in paths)
    return decode(encoded, len(paths), image_size, cache, channels, in_memory)


def _labels(classes: Classes) -> Tensor:
    """Return the labels (N,) of the images in order."""
    return torch.tensor([label for label, files in enumerate(classes.values()) for _ in files])


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{visible(path)}: a file of over 1 GiB, which is no image of usual size; delete it")
    return path.read_bytes()
