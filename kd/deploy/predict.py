"""Classify images with a trained network: the program `scripts/predict.py`, where installed `kd-predict`."""

import argparse
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from rich.cells import cell_len
from torch import Tensor

from kd.data.folder import SUFFIXES
from kd.data.tree import Tree
from kd.errors import UserError
from kd.inference import LARGEST_FILE, Prediction, Predictor, decoded_image, load, read_image
from kd.report.text import cell, encodable
from kd.terminal import Parser, end_with_the_pipe, file, outcome, positive, visible, with_progress
from kd.training.device import choose_device

STDIN = "-"
WIDEST = 60
"""Characters of a column."""

SHEET = 100
"""Images of a picture sheet."""
THUMBNAIL = (256, 256)
"""Width and height in pixels that an image is shrunk to for it, at most."""


class Answer(NamedTuple):
    """What the networks make of one image."""

    name: str
    """Name of its file, as it was given or found."""
    top: list[Prediction]
    """The most probable classes, the best first."""
    teacher: list[Prediction] | None
    """The same by the network beside it."""


class _Input(NamedTuple):
    name: str
    x: list[Tensor]
    """(1, C, H, W) for each network."""


class Classification:
    """Classifies images batch by batch; those that cannot be read are reported and left out.

    Args:
        networks: the network, and perhaps another one whose answers are shown beside.
        top: how many classes of each image, at least 1.
        batch_size: of images that are classified together, at least 1.
        on_error: called with what is wrong with an image, in one line.
        on_image: called with each image that was read, upright and RGB.
    """

    def __init__(
        self,
        networks: Sequence[Predictor],
        top: int,
        batch_size: int,
        on_error: Callable[[str], None],
        on_image: Callable[[Image.Image], None] = lambda image: None,
    ) -> None:
        self.networks, self.top, self.batch_size = networks, top, batch_size
        self.on_error, self.on_image = on_error, on_image

    def answers(self, names: Iterable[str]) -> Iterator[Answer]:
        """Yield the answer to each image that can be read, in order."""
        inputs = self._inputs(names)
        while batch := list(islice(inputs, self.batch_size)):
            columns = [
                ranked(network, torch.cat(x), self.top)
                for network, x in zip(self.networks, zip(*(image.x for image in batch), strict=True), strict=True)
            ]
            for image, *tops in zip(batch, *columns, strict=True):
                yield Answer(image.name, tops[0], tops[1] if len(tops) > 1 else None)

    def _inputs(self, names: Iterable[str]) -> Iterator[_Input]:
        for name in names:
            try:
                image = read(name)
                # Resized here: a batch of photos as they are could be larger than the memory.
                x = [network.preprocess(image) for network in self.networks]
            except UserError as error:
                self.on_error(str(error))
                continue
            self.on_image(image)
            yield _Input(name, x)


@torch.inference_mode()
def ranked(predictor: Predictor, x: Tensor, top: int) -> list[list[Prediction]]:
    """Return the most probable classes of each preprocessed image, at most `top`, the best first."""
    best = predictor.probabilities(x).topk(min(top, len(predictor.classes)))
    return [
        [Prediction(predictor.classes[place], value) for place, value in zip(places, values, strict=True)]
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def read(name: str) -> Image.Image:
    """Return the image in a file, upright and RGB, or that on standard input for "-".

    Raises:
        UserError: naming it, for what is missing, no file, or no image.
    """
    if name != STDIN:
        return read_image(name)
    try:
        return decoded_image("the image on standard input", sys.stdin.buffer.read(LARGEST_FILE))
    except OSError as error:
        raise UserError(f"standard input: {error.strerror or error}") from error


def found(argument: str) -> list[str]:
    """Return the files that an argument means: folders and patterns are searched, everything else is as it is.

    Raises:
        UserError: for a folder or pattern without images.
    """
    path = Path(os.path.expanduser(argument))
    if os.path.isdir(path):  # unlike Path.is_dir, without an error for a name that is too long
        return _inside(path)
    if argument == STDIN or os.path.exists(path) or not glob.has_magic(argument):
        return [argument if argument == STDIN else str(path)]
    matching = sorted(glob.glob(str(path), recursive=True))
    if not matching:
        raise UserError(f"{visible(argument)}: nothing has a name of this pattern")
    files = [_inside(Path(match)) if os.path.isdir(match) else [match] for match in matching]
    return list(dict.fromkeys(chain.from_iterable(files)))


def _inside(folder: Path) -> list[str]:
    try:
        files = [str(file) for file in Tree(folder, SUFFIXES).files(folder)]
    except OSError as error:
        raise UserError(f"{visible(error.filename or folder)}: {error.strerror or error}") from error
    if not files:
        raise UserError(f"{visible(folder)}: no images in this folder ({', '.join(SUFFIXES)})")
    return files


class Line:
    """An answer as a line of text, in columns.

    Args:
        names: of all images, for the width of the first column.
        classes: for the width of the others.
    """

    def __init__(self, names: Sequence[str], classes: Iterable[str]) -> None:
        self.width = min(max((cell_len(visible(name)) for name in names), default=0), WIDEST)
        self.class_width = min(max(cell_len(visible(name)) for name in classes), WIDEST)

    def __call__(self, answer: Answer) -> str:
        parts = [_padded(answer.name, self.width), *map(self._ranked, answer.top)]
        if answer.teacher is not None:
            parts += ["| teacher:", *map(self._ranked, answer.teacher)]
        return encodable("  ".join(parts).rstrip(), sys.stdout.encoding or "ascii")

    def _ranked(self, prediction: Prediction) -> str:
        return f"{_padded(prediction.label, self.class_width)} {percent(prediction.probability):>7}"


def _padded(name: str, width: int) -> str:
    """Return a name with blanks behind it, up to a width in columns of the terminal."""
    return visible(name) + " " * (width - cell_len(visible(name)))


def json_line(answer: Answer) -> str:
    """Return an answer as an object of JSON, on one line."""
    return json.dumps(
        {
            "image": visible(answer.name),
            "top": [prediction._asdict() for prediction in answer.top],
            **({} if answer.teacher is None else {"teacher": [prediction._asdict() for prediction in answer.teacher]}),
        },
        ensure_ascii=False,
    )


def csv_line(answer: Answer) -> str:
    """Return an answer as a row of a CSV: image, then class and probability in turn, the teacher's last."""
    cells: list[object] = [visible(answer.name)]
    for prediction in [*answer.top, *(answer.teacher or [])]:
        cells += [prediction.label, f"{prediction.probability:.6f}"]
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(map(cell, cells))
    return row.getvalue()


def csv_header(top: int, teacher: bool) -> str:
    """Return the names of the columns of `csv_line`."""
    of = [f"{whose}{what}{'' if place == 1 else f'_{place}'}"
          for whose in (["", "teacher_"] if teacher else [""])
          for place in range(1, top + 1)
          for what in ("class", "probability")]  # fmt: skip
    return ",".join(["image", *of])


def percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def main() -> int:
    """Run the program, and return its exit code: 1 if anything could not be read, 130 if Ctrl-C interrupted it."""
    end_with_the_pipe()
    program = Path(sys.argv[0]).name
    return outcome(program, lambda: _classify(program))


def _classify(program: str) -> int:
    args = _arguments()
    device = _device(args.device)
    networks = [load(path, args.trust).to(device) for path in (args.network, args.teacher) if path is not None]
    failures = 0

    def fail(line: str) -> None:
        nonlocal failures
        failures += 1
        print(f"{program}: {visible(line)}", file=sys.stderr)

    names: list[str] = []
    for argument in args.images:
        try:
            names += found(argument)
        except UserError as error:
            fail(str(error))
    pictures: list[Image.Image] = []

    def keep(image: Image.Image) -> None:
        if args.sheet is not None and len(pictures) < SHEET:
            pictures.append(image.copy())
            pictures[-1].thumbnail(THUMBNAIL)

    top = min(args.top, *(len(network.classes) for network in networks))  # as many of either: columns of one table
    classification = Classification(networks, top, args.batch_size, fail, keep)
    if args.csv:
        print(csv_header(top, args.teacher is not None))
    form: Callable[[Answer], str] = csv_line
    if not args.csv:
        form = json_line if args.json else Line(names, networks[0].classes)
    shown: list[Answer] = []
    classified = 0
    inputs = names if sys.stdout.isatty() else with_progress(names, "classifying images")  # a bar disturbs the lines
    for answer in classification.answers(inputs):
        print(form(answer), flush=sys.stdout.isatty())
        classified += 1
        if len(shown) < len(pictures):
            shown.append(answer)
    if shown:
        from kd.deploy.sheet import Shown, draw  # matplotlib takes a second

        drawn = [
            Shown(picture, answer.name, answer.top[0], answer.teacher[0] if answer.teacher else None)
            for picture, answer in zip(pictures, shown, strict=True)
        ]
        draw(args.sheet, drawn, classified)
    return int(failures > 0)


def _device(name: str) -> torch.device:
    if name == "auto":
        return choose_device("auto", 1)
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: torch {torch.__version__} finds no such device here") from error


def _arguments() -> argparse.Namespace:
    program = Path(sys.argv[0]).name
    program = f"python scripts/{program}" if program.endswith(".py") else program
    parser = Parser(
        description="Classify images with a trained network. Prints a line for each: its most probable classes. Exit\n"
        "code 1 if any image could not be read; the others are classified nevertheless.",
        epilog="examples:\n"
        f"  {program} runs/2026-01-31/12-00-00-123456 cat.png photos/ 'more/**/*.jpg'\n"
        f"  {program} student.safetensors photos/ --top 3 --csv > classes.csv\n"
        f"  {program} RUN_DIR photos/ --teacher teachers/8bfaa4799f5659b9 --sheet sheet.png\n"
        f"  curl -s https://example.com/cat.png | {program} RUN_DIR -",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", metavar="RUN_OR_WEIGHTS", help="run directory, or its file of weights")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="file, folder, pattern, or - for an image on standard input"
    )
    parser.add_argument("--top", type=positive, default=1, metavar="K", help="classes of each image (default: 1)")
    parser.add_argument("--teacher", metavar="RUN_OR_WEIGHTS", help="another network, whose classes are shown beside")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print an object of JSON a line")
    form.add_argument("--csv", action="store_true", help="print a table with commas")
    parser.add_argument("--sheet", type=file, metavar="FILE", help=f"draw the first {SHEET} images with their classes")
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N", help="default: 256")
    devices = "cpu, cuda, cuda:1, mps; default: cuda where there is one, else cpu"
    parser.add_argument("--device", default="auto", help=devices)
    parser.add_argument(
        "--trust", action="store_true", help="weights of your own, which may name any code to build their network"
    )
    return parser.parse_args()
