"""Write a page on fidelity to the teacher, calibration, and what distillation changed image by image."""

import argparse
import sys
from pathlib import Path

from kd.report.arguments import out_dir, parser
from kd.terminal import end_with_the_pipe, outcome, visible


def main() -> int:
    return outcome("fidelity.py", work)


def work() -> None:
    """Do what the command line selects."""
    args = _arguments()
    # matplotlib and scipy take a second, too long for help
    from kd.report.fidelity.page import named, write_page
    from kd.report.fidelity.pixels import read
    from kd.report.fidelity.study import collect, study

    found = study(collect(args.dirs), args.baseline)
    pixels = read(args.images, found) if args.images else named(found)
    written = write_page(found, pixels, out_dir(args))
    print(*(visible(str(path)) for path in written), sep="\n")


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
