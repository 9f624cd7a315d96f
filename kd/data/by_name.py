"""The images of finished runs, found again by the name that the runs give their data."""

import re
from pathlib import Path

from kd.data.images import Images


def by_name(root: Path, dataset: str, image_size: int | list[int] | None = None) -> Images:
    """Read the data set that is in a folder.

    Args:
        root: an existing folder, `data.root` of the runs; a missing one would start a download.
        dataset: its name in the runs' records; neither CIFAR-10 nor CIFAR-100: a folder of images, or parquet files.
        image_size: of the runs, for images of one's own; None for the default.
    """
    from kd.data.cifar import cifar10, cifar100
    from kd.data.folder import folder
    from kd.data.parquet import parquet

    cifar = re.match(r"CIFAR-(10|100)\b", dataset)
    if cifar:
        return cifar10(root) if cifar[1] == "10" else cifar100(root)
    read = parquet if any(root.rglob("*.parquet")) else folder
    return read(root) if image_size is None else read(root, image_size)
