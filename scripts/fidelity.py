"""Write a page on fidelity to the teacher, calibration, and what distillation changed image by image."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd.errors import UserError
from kd.report.arguments import out_dir, parser
from kd.report.text import visible
from kd.terminal import end_with_the_pipe, tolerant_stdout

if TYPE_CHECKING:
    from kd.data.images import Images
    from kd.report.fidelity.page import Pixels
    from kd.report.fidelity.study import Study


def main() -> int:
    tolerant_stdout()
    try:
        args = _arguments()
        # matplotlib and scipy take a second, too long for help
        from kd.report.fidelity.page import named, write_page
        from kd.report.fidelity.study import collect, study

        found = study(collect(args.dirs), args.baseline)
        pixels = _pixels(args.images, found) if args.images else named(found)
        written = write_page(found, pixels, out_dir(args))
    except UserError as error:
        print(f"fidelity.py: {visible(str(error))}", file=sys.stderr)
        return 1
    print(*(visible(str(path)) for path in written), sep="\n")
    return 0


def _pixels(root: Path, study: "Study") -> "Pixels":
    """Read the test images and check that their labels and classes are those of the runs."""
    if not root.is_dir():  # a missing directory would start a download
        raise UserError(f"{root}: no such directory; give the one that the images are in, data.root of the runs")
    from kd.report.fidelity.metadata import class_names
    from kd.report.fidelity.page import Pixels

    images = _images(root, study)
    classes = class_names(images.classes)
    differ = "labels" if not np.array_equal(images.test_y.numpy(), study.labels) else ""
    if study.data and not differ:
        differ = "classes" if study.data.classes != classes else ""
    if differ:
        raise UserError(f"{root}: not the images that the runs were tested on, their {differ} differ")
    return Pixels(images.test_x[:].permute(0, 2, 3, 1).numpy(), classes)


def _images(root: Path, study: "Study") -> "Images":
    """Read the data set that is in a folder, by the name that the runs give it."""
    from kd.data.cifar import cifar10, cifar100  # loads torch
    from kd.data.folder import folder
    from kd.data.parquet import parquet

    cifar = re.match(r"CIFAR-(10|100)\b", study.dataset)
    if cifar:
        return cifar10(root) if cifar[1] == "10" else cifar100(root)
    read = parquet if any(root.rglob("*.parquet")) else folder
    return read(root, study.data.image_size) if study.data else read(root)


def _arguments() -> argparse.Namespace:
    with_images = parser(
        "Is distillation really at work? Compares students with their teacher and with a student that had\n"
        "none, image by image: agreement, KL, calibration before and after temperature scaling, gains by\n"
        "class, and the images that distillation fixed and broke. Reads every result.json with a predictions.npz\n"
        "beside it, and names of classes from the weights; writes fidelity.md, fidelity.csv and pictures.",
        "  python train.py -m method=standard,logits,feature seed=0,1,2 hydra.sweep.dir=multirun/final\n"
        "  python scripts/fidelity.py multirun/final --images data --out docs/fidelity",
    )
    with_images.add_argument(
        "--images", type=Path, metavar="ROOT", help="where the images are, data.root of the runs, to show some"
    )
    return with_images.parse_args()


if __name__ == "__main__":
    end_with_the_pipe()
    sys.exit(main())
