"""The images of finished runs, found again by the name that the runs give their data."""

from collections.abc import Callable
from pathlib import Path

from kd.data.images import Images


def by_name(root: Path, dataset: str, image_size: int | list[int] | None = None) -> Images:
    """Read the data set that is in a folder.

    Args:
        root: an existing folder, `data.root` of the runs; a missing one would start a download.
        dataset: its name in the runs' records; that of no known set is one of arrays, a folder of images, or parquet
            files.
        image_size: of the runs, for sets that can have any; None for the default.
    """
    from kd.data import arrays
    from kd.data.cifar import cifar10, cifar100
    from kd.data.digits import digits
    from kd.data.folder import folder
    from kd.data.npy import npy
    from kd.data.parquet import parquet
    from kd.data.tiny_imagenet import tiny_imagenet

    plain = dataset.partition(" (")[0]  # without "(JPEG)", and what a report says of trials or two sets of one name
    fixed: dict[str, Callable[[Path], Images]] = {"CIFAR-10": cifar10, "CIFAR-100": cifar100}  # of one size
    if plain in fixed:
        return fixed[plain](root)
    sized = {} if image_size is None else {"image_size": image_size}
    if plain == "digits":
        return digits(**sized)
    known: dict[str, Callable[..., Images]] = {
        "SVHN": arrays.svhn,
        "FashionMNIST": arrays.fashion_mnist,
        "STL-10": arrays.stl10,
        "Tiny ImageNet": tiny_imagenet,
    }
    other = npy if (root / "train_images.npy").exists() else parquet if any(root.rglob("*.parquet")) else folder
    return known.get(plain, other)(root, **sized)
