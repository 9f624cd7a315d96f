"""Write a page on fidelity to the teacher, calibration, and what distillation changed image by image."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.report.arguments import parser
from kd.runs.results import REPORT

if TYPE_CHECKING:
    from kd.report.fidelity.page import Pixels


def main() -> int:
    args = _arguments()
    # matplotlib and scipy take a second, too long for help
    from kd.report.fidelity.page import named, write_page
    from kd.report.fidelity.study import collect, study

    try:
        found = study(collect(args.dirs), args.baseline)
        pixels = _pixels(args.images, found.labels) if args.images else named(found)
        written = write_page(found, pixels, args.out or args.dirs[0] / REPORT)
    except UserError as error:
        print(f"fidelity.py: {error}", file=sys.stderr)
        return 1
    print(*written, sep="\n")
    return 0


def _pixels(root: Path, labels: NDArray[np.int64]) -> "Pixels":
    """Read CIFAR-10's test images and check that their labels are those of the runs."""
    if not root.is_dir():  # a missing directory would start a download
        raise UserError(f"{root}: no such directory; give the one that CIFAR-10 is in")
    from kd.data.cifar import cifar10  # loads torch
    from kd.report.fidelity.page import Pixels

    images = cifar10(root)
    if not np.array_equal(images.test_y.numpy(), labels):
        raise UserError(f"{root}: not the images that the runs were tested on, their labels differ")
    return Pixels(images.test_x.permute(0, 2, 3, 1).numpy(), images.classes)


def _arguments() -> argparse.Namespace:
    with_images = parser(
        "Is distillation really at work? Compares students with their teacher and with a student that had\n"
        "none, image by image: agreement, KL, calibration before and after temperature scaling, gains by\n"
        "class, and the images that distillation fixed and broke. Reads every result.json with a predictions.npz\n"
        "beside it; writes fidelity.md, fidelity.csv and pictures.",
        "  python train.py -m method=standard,logits,feature seed=0,1,2 hydra.sweep.dir=multirun/final\n"
        "  python scripts/fidelity.py multirun/final --images data --out docs/fidelity",
    )
    with_images.add_argument(
        "--images", type=Path, metavar="ROOT", help="where CIFAR-10 is, to show images and name classes"
    )
    return with_images.parse_args()


if __name__ == "__main__":
    sys.exit(main())
