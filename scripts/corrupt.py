"""Write corrupted test images of a data set, to measure networks on by data.also_test."""

import argparse
import sys
from pathlib import Path

from kd.app.compose import compose, escaped
from kd.app.programs import check_data_settings, command_line, refuse_setting, run_program
from kd.errors import UserError
from kd.terminal import Parser, positive, whole


def run(args: argparse.Namespace) -> None:
    """Read the test split, and write it corrupted.

    Raises:
        UserError: for a setting that is none of the data's, images that are neither grey nor RGB, or a folder that
            cannot be used.
    """
    check_data_settings(args.settings)
    command = compose(["data.in_memory=true", *args.settings])
    from kd.app.build import Builder
    from kd.data.corrupt import KINDS, SEVERITIES, write

    images = Builder(command).images
    if images.channels not in (1, 3):
        raise UserError(f"images of {images.name} have {images.channels} channels; grey and RGB can be corrupted")
    pixels = images.test_x[:][:: args.every].permute(0, 2, 3, 1).contiguous().numpy()
    write(pixels, images.test_y[:: args.every].numpy(), args.directory, args.seed)
    print(
        f"{args.directory}: {len(pixels):,} test images of {images.name}, {len(KINDS)} kinds, {SEVERITIES} severities"
    )
    used = command_line([f"data.also_test=['{escaped(str(args.directory))}']"])
    print(f"measure on them: python train.py ... {used}")


def _arguments() -> argparse.Namespace:
    parser = Parser(
        description="Corrupt the test images of a data set in five severities, in the form of CIFAR-10-C: noise,\n"
        "blur, brightness, contrast, pixels, JPEG (Hendrycks, Dietterich 2019, arXiv 1903.12261).",
        epilog="example:\n"
        "  python scripts/corrupt.py corrupted data=cifar10\n"
        "  python train.py method=logits 'data.also_test=[corrupted]'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="a new folder, for 40 times the test images")
    parser.add_argument("settings", nargs="*", metavar="data.NAME=VALUE", help="the images, as for train.py")
    parser.add_argument("--every", type=positive, default=1, metavar="K", help="take every K-th image (default: 1)")
    parser.add_argument("--seed", type=whole, default=0, help="of the noise (default: 0)")
    args = parser.parse_intermixed_args()
    refuse_setting(str(args.directory), "scripts/corrupt.py DIR")
    return args


def main() -> int:
    return run_program("corrupt.py", _arguments, run)


if __name__ == "__main__":
    sys.exit(main())
