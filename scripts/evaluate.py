"""Measure a trained network on labelled images: accuracy with its interval, calibration, classes, agreement."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kd.app.programs import add_network, run_program
from kd.app.recorded import recorded_data, split
from kd.ranges import sides
from kd.runs.given import weights_file
from kd.terminal import Parser, file, save, visible

if TYPE_CHECKING:
    from kd.app.build import Builder
    from kd.deploy.evaluate import Evaluation
    from kd.inference import Predictor

FEW_CLASSES = 20
"""Classes of which a table shows all; of more, those with the lowest accuracy."""


def run(args: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        UserError: for weights or images that cannot be used, or no validation images where they are needed.
    """
    weights = weights_file(args.network)
    from kd.deploy.evaluate import evaluate, store_temperature
    from kd.inference import load
    from kd.report.fidelity.measures import agreement, kl

    network = load(weights, args.trust)
    other = None if args.other is None else load(args.other, args.trust)
    build = recorded_data(weights, args.settings, network.image_size, len(network.mean))
    classes = build.images.classes
    if args.fit_temperature:
        network.temperature = 1.0
        which = f"validation split of {build.images.name}, split_seed {build.settings['data']['split_seed']}"
        fitted = evaluate(network, *split(build, "val", weights), classes)
        network.temperature = store_temperature(weights, fitted, which)
        print(f"temperature {network.temperature:.3f}, fitted on the {which}; stored beside the weights")
    found = evaluate(network, *split(build, args.split, weights), classes)
    facts = {"network": str(weights), "data": build.images.name, "split": args.split, **found.to_json()}
    show(found, f"{build.images.name}, {args.split} split, {len(found.labels):,} images")
    if other is not None:
        shown = _as_shown_to(other, network, build, weights, args.settings)
        others = evaluate(other, *split(shown, args.split, weights), classes)
        same, distance = agreement(found.logits, others.logits), kl(others.logits, found.logits)
        facts["other"] = {"network": str(args.other), "agreement": same, "kl": distance, **others.to_json()}
        print(
            f"{visible(str(args.other))}: accuracy {others.accuracy:.2%}; the same class for {same:.2%} of the images, "
            f"KL(it || this) {distance:.3f} nats"
        )
    if args.json is not None:
        save(args.json, json.dumps({**facts, "temperature": network.temperature}, indent=2) + "\n")


def _as_shown_to(
    other: "Predictor", network: "Predictor", build: "Builder", weights: Path, settings: list[str]
) -> "Builder":
    """Return what builds the same images in the size and the channels of another network."""
    form = [(sides("image_size", one.image_size), len(one.mean)) for one in (other, network)]
    if form[0] == form[1]:
        return build
    (height, width), channels = form[0]
    shape = [f"data.image_size=[{height},{width}]", f"data.channels={channels if channels in (1, 3) else 'null'}"]
    return recorded_data(weights, [*settings, *shape], other.image_size, channels)


def show(found: "Evaluation", title: str) -> None:
    """Print the figures, and a table of the classes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kd.deploy.evaluate import most_confused
    from kd.runs.predictions import class_accuracy

    low, high = found.interval
    console = Console()
    console.print(Text(visible(title), style="bold"))
    console.print(
        Text(
            f"accuracy {found.accuracy:.2%} [{low:.2%}, {high:.2%}], balanced {found.balanced_accuracy:.2%}, "
            f"NLL {found.nll:.4f} nats, ECE {found.ece:.2%}"
        ),
        soft_wrap=True,
    )
    table = Table("class", box=None)
    for header in ("images", "accuracy", "most often taken for"):
        table.add_column(header, justify="left" if header.startswith("most") else "right")
    shares, confused = class_accuracy(found.labels, found.logits), most_confused(found)
    counts = found.confusion.sum(axis=1)
    places = [place for place in range(len(found.classes)) if counts[place]]
    if len(places) > FEW_CLASSES:
        places = sorted(places, key=lambda place: float(shares[place]))[:FEW_CLASSES]
    for place in places:
        wrong = confused[place]
        table.add_row(
            Text(visible(found.classes[place])),
            f"{counts[place]:,}",
            f"{shares[place]:.2%}",
            Text(f"{visible(wrong[0])}, {wrong[1]:.1%}" if wrong else ""),
        )
    console.print(table)
    some = int((counts > 0).sum())
    if len(places) < some:
        console.print(f"These are the {len(places)} of {some} classes with the lowest accuracy.")
    if some < len(found.classes):
        console.print(f"{len(found.classes) - some} of {len(found.classes)} classes have no images here.")


def _arguments() -> argparse.Namespace:
    parser = Parser(
        description="Measure a trained network on labelled images; by default on the test split of its own run.",
        epilog="examples:\n"
        "  python scripts/evaluate.py RUN_DIR\n"
        "  python scripts/evaluate.py RUN_DIR --split val --fit-temperature\n"
        "  python scripts/evaluate.py student.safetensors data=folder data.root=my_images --other RUN_DIR",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_network(parser)
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="default: test")
    parser.add_argument("--other", metavar="RUN_OR_WEIGHTS", help="another network, to compare predictions with")
    parser.add_argument(
        "--fit-temperature",
        action="store_true",
        help="fit a temperature on the validation split, and store it beside the weights, where kd.load finds it",
    )
    parser.add_argument("--json", type=file, metavar="FILE", help="write all figures there, with the confusion matrix")
    return parser.parse_intermixed_args()


def main() -> int:
    return run_program("evaluate.py", _arguments, run)


if __name__ == "__main__":
    sys.exit(main())
