"""Export a trained network to ONNX, torch.export, safetensors or ExecuTorch, and check the file on the test images."""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kd.app.programs import add_network, run_program
from kd.app.recorded import recorded_data
from kd.deploy.runtime import EXECUTORCH, SUFFIXES, required
from kd.errors import UserError
from kd.files import replaced
from kd.runs.given import weights_file
from kd.terminal import Parser, file, positive

if TYPE_CHECKING:
    from torch import Tensor


SAME = 0.99
"""Share of test images that a file must classify as the network does; one of rounding errors alone has more."""
MOST_LOST = 0.01
"""Share of held-out training images that int8 may lose; more than that is refused."""
HELD_OUT = 2000
"""Training images that this is measured on, none of them among those for calibration."""


def export(args: argparse.Namespace) -> None:
    """Write the file, and print what it is and what it loses.

    Raises:
        UserError: for what cannot be exported, or loses too much; no file is left then.
    """
    weights = weights_file(args.network)
    kind = ".int8" if args.int8 else ".bf16" if args.bf16 else ""
    target = args.out or weights.with_name(weights.stem + kind + SUFFIXES[args.format])
    if not os.path.lexists(weights):
        raise UserError(f"no weights at {weights}")
    _refuse_target(target, args)
    if target.exists() and target.samefile(weights):
        raise UserError(f"{target} is what is to be exported; give another --out")
    from kd.deploy import export as forms
    from kd.deploy.check import check, own_labels
    from kd.deploy.quantise import to_int8
    from kd.inference import load, temperature_file
    from kd.runs.weights import load_weights

    predictor = load(weights, args.trust)
    images = recorded_data(weights, args.settings, predictor.image_size, len(predictor.mean)).images
    test_y, train_y = (own_labels(labels, images.classes, predictor) for labels in (images.test_y, images.train_y))
    deployed = forms.Deployed(predictor, args.preprocessing)
    calibration, held_out = _calibration_and_held_out(len(train_y), args.calibrate) if args.int8 else (None, None)
    facts = {**load_weights(weights)[1], "preprocessing": args.preprocessing, "license": args.license}
    tempered = predictor.temperature != 1 and not args.preprocessing and args.format != "safetensors"
    if tempered:
        facts["temperature"] = predictor.temperature
    with replaced(target) as temporary:
        if args.format == "safetensors":
            forms.to_safetensors(predictor, temporary, facts, args.bf16)
            run = forms.safetensors_runner(temporary, args.trust)
        elif args.format == "torch_export":
            forms.to_torch_export(deployed, temporary, facts)
            run = forms.torch_export_runner(temporary)
        elif args.format == "executorch":
            forms.to_executorch(deployed, temporary, facts)
            run = forms.executorch_runner(temporary)
        else:
            if calibration is None:
                forms.to_onnx(deployed, temporary, facts)
            else:
                to_int8(deployed, temporary, facts, images.train_x[calibration])
            run = forms.onnx_runner(temporary)
        if held_out is not None:
            lost = -check(run, deployed, predictor, images.train_x[held_out], train_y[held_out]).change
            if lost > MOST_LOST and not args.force:
                raise UserError(
                    f"int8 loses {100 * lost:.1f} points on {len(held_out):,} training images that it was not "
                    "calibrated on; --calibrate more images, keep fp32, or write it nevertheless by --force"
                )
        found = check(run, deployed, predictor, images.test_x, test_y)
        if found.same < SAME and not (args.int8 or args.bf16):
            raise UserError(
                f"{deployed.kind} was exported, but the file classifies only {found.same:.2%} of the test images as it "
                "does: some value in its forward() became a constant, such as one by way of .numpy() or .item()"
            )
    if args.format == "safetensors":
        if predictor.temperature != 1:
            shutil.copyfile(temperature_file(weights), temperature_file(target))
        else:
            temperature_file(target).unlink(missing_ok=True)  # of what the file held before
    size = f"{target.stat().st_size / 1e6:.2f} MB"
    gives = "probabilities" if args.preprocessing else "logits"
    shape = ", ".join(["batch", *map(str, deployed.example(1).shape[1:])])
    takes = f"{'uint8 pixels' if args.preprocessing else 'normalised images'} ({shape})"
    print(f"{target}: {size}, {takes} -> {gives} (batch, {len(predictor.classes)})")
    print(
        f"{images.name}, {len(test_y):,} test images: {found.same:.2%} the same prediction as PyTorch, {gives} differ "
        f"by {found.largest:.1e} at most"
    )
    if tempered:
        print(f"divide its logits by the temperature, {predictor.temperature:.4g}, which is in the file's metadata")
    low, high = found.interval
    reference = found.reference_right.mean()
    print(f"accuracy of the file {found.accuracy:.2%} [{low:.2%}, {high:.2%}], of PyTorch {reference:.2%}")
    if args.int8:
        low, high = found.change_interval
        print(f"int8 changes it by {100 * found.change:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]")


def _calibration_and_held_out(images: int, calibrate: int) -> "tuple[Tensor, Tensor]":
    """Return the places of training images to calibrate on, and of others to measure the loss on."""
    import torch

    if images <= calibrate:
        raise UserError(f"--calibrate {calibrate}: there are {images:,} training images, and some are to measure with")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[:calibrate], order[calibrate : calibrate + HELD_OUT]


def _refuse_target(target: Path, args: argparse.Namespace) -> None:
    if args.int8 and args.format != "onnx":
        raise UserError(f"--int8 goes with --format onnx, not {args.format}")
    if args.bf16 and args.format != "safetensors":
        raise UserError(f"--bf16 goes with --format safetensors, not {args.format}")
    if args.preprocessing and args.format == "safetensors":
        raise UserError("--preprocessing does not go with --format safetensors; kd.load has it")
    if args.format == "executorch":
        required("executorch.exir", EXECUTORCH)
    if target.suffix != SUFFIXES[args.format]:
        raise UserError(f"--out {target}: a file of {args.format} ends in {SUFFIXES[args.format]}")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{target.parent} cannot be written to; give another --out")
    if os.path.lexists(target) and not args.overwrite:
        raise UserError(f"{target} is there; give another --out, or --overwrite")


def _arguments() -> argparse.Namespace:
    parser = Parser(
        description="Export a trained network, and compare the file with it on the test images of its run.",
        epilog="examples:\n"
        "  python scripts/export.py RUN_DIR --preprocessing\n"
        "  python scripts/export.py RUN_DIR --int8 --calibrate 1000 --out student.int8.onnx\n"
        "  python scripts/export.py RUN_DIR --format safetensors --bf16\n"
        "  python scripts/export.py student.safetensors data=cifar10 data.root=data --format torch_export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_network(parser)
    parser.add_argument("--format", choices=list(SUFFIXES), default="onnx", help="default: onnx")
    parser.add_argument("--out", type=file, metavar="FILE", help="default: beside the weights, by their name")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--preprocessing",
        action="store_true",
        help="take uint8 pixels (batch, height, width, 3) and return probabilities; else normalised images and logits",
    )
    parser.add_argument("--int8", action="store_true", help="weights and activations of 8 bits")
    parser.add_argument("--bf16", action="store_true", help="layers' weights of 16 bits, with --format safetensors")
    parser.add_argument(
        "--calibrate",
        type=positive,
        default=512,
        metavar="N",
        help="training images that give their ranges (default: 512)",
    )
    parser.add_argument("--force", action="store_true", help="write an int8 file that loses much, too")
    parser.add_argument("--license", default="not stated", metavar="NAME", help="of the weights, for the metadata")
    return parser.parse_intermixed_args()


def main() -> int:
    return run_program("export.py", _arguments, _writing)


def _writing(args: argparse.Namespace) -> None:
    try:
        export(args)
    except OSError as error:
        raise UserError(f"{error.filename or 'the file'}: {error.strerror}; give another --out") from error


if __name__ == "__main__":
    sys.exit(main())
