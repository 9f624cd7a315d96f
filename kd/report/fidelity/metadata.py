"""What the weights beside a run's predictions tell of its data. No torch: only the file's header is read."""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from kd.report.text import visible

WEIGHTS = "student.safetensors"


class Data(NamedTuple):
    """Classes and image size of a run's data set."""

    classes: tuple[str, ...]
    """Names by label, without control characters."""
    image_size: int
    """Height and width in pixels."""


def read(path: Path) -> Data | None:
    """Return what the metadata of a file say; None without a whole file, or in a file of another program."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        classes, size = json.loads(metadata["classes"]), json.loads(metadata["image_size"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return None
    if not isinstance(classes, list) or not isinstance(size, int):
        return None
    return Data(tuple(visible(str(name)) for name in classes), size)
