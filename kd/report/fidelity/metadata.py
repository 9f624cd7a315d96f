"""What the weights beside a run's predictions tell of its data. No torch: only the file's header is read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from kd.files import open_regular
from kd.report.text import shortened
from kd.terminal import visible

MOST_HEADER = 16 << 20
"""Bytes of the largest header that is read, which describes all tensors."""
MOST_PIXELS = 4096


class Data(NamedTuple):
    """Classes and image size of a run's data set."""

    classes: tuple[str, ...]
    """Names by label, see `class_names`."""
    image_size: int | list[int]
    """Height and width in pixels; one number for squares."""


def read(path: Path) -> Data | None:
    """Return what the metadata of a file say; None without a whole file, or in a file of another program."""
    try:
        with open_regular(path) as file:
            if int.from_bytes(file.read(8), "little") > MOST_HEADER:
                return None
        with safe_open(path, framework="np") as weights:
            metadata = weights.metadata() or {}
        classes, size = json.loads(metadata["classes"]), json.loads(metadata["image_size"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return None
    if not isinstance(classes, list) or not all(type(name) is str for name in classes):
        return None
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    fits = all(type(side) is int and 0 < side <= MOST_PIXELS for side in sides)
    return Data(class_names(classes), size) if fits else None


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of classes as a page shows them."""
    return tuple(shortened(visible(name)) for name in names)
