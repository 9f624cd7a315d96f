"""Compare trained networks in use: accuracy, size, speed and memory in PyTorch and ONNX Runtime, fp32, bf16 and int8.

Each network in each form has a process of its own, and the processes take turns of a few passes, A B C A B C: what
slows the machine slows them all.
"""

import argparse
import errno
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from turns import Turns, TurnsOver, processes, take_turns

from kd.app.programs import run_program
from kd.app.recorded import record_beside, recorded_data
from kd.deploy.runtime import required
from kd.deploy.timing import FORMS, Form, Passes
from kd.errors import UserError, reason_of
from kd.runs.given import weights_file
from kd.runs.provenance import measured_by
from kd.runs.results import Result
from kd.terminal import Parser, positive, visible
from kd.training.threads import SPINNING

if TYPE_CHECKING:
    from kd.data.images import Images
    from kd.deploy.table import Row, Timing
    from kd.inference import Predictor


class Trained(NamedTuple):
    """A network that was given."""

    name: str
    weights: Path
    predictor: "Predictor"
    facts: dict[str, Any]
    """Metadata of the weights."""
    record: Result | None
    """Record of its run, if it lies beside the weights."""

    @property
    def teacher(self) -> bool:
        return self.weights.name.startswith("teacher")


class Work(NamedTuple):
    """What a process is to run."""

    form: Form
    path: Path
    shape: tuple[int, ...]
    threads: int
    trust: bool
    steps: dict[int, tuple[int, int]]
    """Untimed and timed passes of a turn, by batch."""


def table(args: argparse.Namespace) -> None:
    """Measure, and write the tables and pictures.

    Raises:
        UserError: for a network that cannot be used; or, after the rest was written, for what failed in one form.
    """
    there = next(place for place in (args.out, *args.out.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"--out {there} is no folder")
    if not os.access(there, os.W_OK):  # before minutes of measuring
        raise UserError(f"--out {args.out} cannot be written: {os.strerror(errno.EACCES)}; choose another")
    for form in args.forms:
        if FORMS[form].suffix == ".onnx":
            for module in ("onnx", "onnxscript", "onnxruntime"):
                required(module)
    runs, settings = _runs_and_settings(args.runs)
    trained = _trained(runs, args.trust)
    images = _images(trained, settings)
    with tempfile.TemporaryDirectory() as folder:
        rows, works, failed = _forms(trained, images, args, Path(folder))
        if not rows:
            raise UserError("no network could be run in any form: " + "; ".join(failed))
        for threads in args.threads:
            for row, timings in zip(rows, _timings(works, threads, args), strict=True):
                row.timings += timings
    for path in _write(rows, trained, images, args, failed):
        print(visible(str(path)))
    if failed:
        raise UserError(f"left out, {len(failed)} of {len(failed) + len(rows)}: {'; '.join(failed)}")


def _runs_and_settings(given: list[str]) -> tuple[list[str], list[str]]:
    """Return networks and settings of the data: "./data=x" is a network."""
    settings = [text for text in given if re.match(r"[~+]*data[\w.@/]*=", text)]
    runs = [text for text in given if text not in settings]
    if not runs:
        raise UserError("give a run directory or its file of weights, too")
    return runs, settings


def _trained(runs: list[str], trust: bool) -> list[Trained]:
    """Load the networks, under names that differ."""
    from kd.inference import load
    from kd.runs.weights import load_weights

    found: list[Trained] = []
    for run in runs:
        weights = weights_file(run)
        predictor, facts = load(weights, trust), load_weights(weights)[1]
        if found and facts.get("data_id") != found[0].facts.get("data_id"):
            raise UserError(f"{run} was trained on other images than {runs[0]}; give networks of the same data set")
        record = record_beside(weights)
        name = base = weights.stem if record is None else f"{record.method}, {record.student or record.teacher}"
        number = 2
        while name in [other.name for other in found]:
            name, number = f"{base} ({number})", number + 1
        found.append(Trained(name, weights, predictor, facts, record))
    return found


def _images(trained: list[Trained], settings: list[str]) -> "Images":
    """Return the images of the first network whose record tells them, or those of the settings."""
    from kd.deploy.check import places

    with_command = (network for network in trained if network.record and network.record.command is not None)
    first = next(with_command, trained[0])
    has_images = first.record is None or first.record.command is not None  # the teacher store's records have none
    if not has_images and not any(text.startswith("data=") for text in settings):
        raise UserError("no record tells the images; give a student's run, too, or data=NAME data.root=DIR")
    predictor = first.predictor
    images = recorded_data(first.weights, settings, predictor.image_size, len(predictor.mean)).images
    for network in trained:
        places(images.classes, network.predictor)  # refuses other classes
        if network.predictor.image_size != predictor.image_size:
            raise UserError(f"{network.name} takes images of another size than {first.name}")
    return images


def _forms(
    trained: list[Trained], images: "Images", args: argparse.Namespace, folder: Path
) -> tuple[list["Row"], list[Work], list[str]]:
    """Write and check each network in each form; return rows, what is to be timed, and what failed."""
    import torch

    from kd.deploy.check import own_labels
    from kd.deploy.table import measured_row, write_form

    if args.calibrate > len(images.train_x):
        raise UserError(f"--calibrate {args.calibrate}: there are {len(images.train_x):,} training images")
    order = torch.randperm(len(images.train_x), generator=torch.Generator().manual_seed(0))
    calibration = images.train_x[order[: args.calibrate]]
    rows, works, failed = [], [], []
    for place, network in enumerate(trained):
        labels = own_labels(images.test_y, images.classes, network.predictor)
        for name in args.forms:
            form = FORMS[name]
            path = folder / f"{place}_{name}{form.suffix}"
            try:
                write_form(form, network.predictor, path, network.facts, calibration)
                row = measured_row(
                    network.name, network.weights, name, path, network.predictor, images.test_x, labels, args.trust
                )
            except (UserError, RuntimeError) as error:
                failed.append(f"{network.name}, {form.name}: {reason_of(error)}")
                continue
            rows.append(row)
            shape = tuple(images.test_x.shape[1:])
            works.append(Work(form, path, shape, 1, args.trust, args.steps))
            print(f"{visible(network.name)}, {form.name}: {row.accuracy:.2%}", file=sys.stderr)
    return rows, works, failed


def _timings(works: list[Work], threads: int, args: argparse.Namespace) -> Iterator[list["Timing"]]:
    """Time all works with a number of threads; yield the timings of each."""
    from kd.deploy.table import Timing

    named = {str(place): work._replace(threads=threads) for place, work in enumerate(works)}
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **SPINNING}
    try:
        with processes(partial(serve, named), dict.fromkeys(named, environment)) as pipes:
            timed = {batch: take_turns(batch, pipes, args.rounds) for batch in args.steps}
    except RuntimeError as error:
        raise UserError(f"with {threads} threads: {error}") from error
    for name in named:
        yield [
            Timing(
                threads,
                batch,
                [taken / args.steps[batch][1] for taken in turns.turns[name]],
                None if turns.ends[name] is None else 1e3 * turns.ends[name],
            )
            for batch, turns in timed.items()
        ]


def serve(works: dict[str, Work], name: str, pipe: Connection) -> None:
    """Run one of the works, in turns with the others: the process of a form."""
    work = works[name]
    passes = None
    while True:
        try:
            batch = pipe.recv()
            passes = passes or Passes(work.form, work.path, work.shape, work.threads, work.trust)
            one = passes.of(batch)
            turns = Turns(pipe, *work.steps[batch])
            turns.begin()
            while True:
                one()
                turns.step()
        except TurnsOver:
            pipe.send(passes.memory.gb() if passes else None)
        except (KeyboardInterrupt, EOFError, BrokenPipeError):
            return  # the parent has ended
        except Exception as error:
            pipe.send(f"{work.form.name}: {error}")
            return


def _write(
    rows: list["Row"], trained: list[Trained], images: "Images", args: argparse.Namespace, failed: list[str]
) -> list[Path]:
    from kd.deploy.picture import accuracy_against
    from kd.deploy.table import BATCHES, MEMORY, to_csv, to_markdown
    from kd.report.page import write
    from kd.report.sweeps import Picture
    from kd.report.text import escaped

    machine = _machine(args)
    figures = {
        "machine": machine,
        "data": {"name": images.name, "test_images": len(images.test_y)},
        "memory": MEMORY,
        "rows": [row.to_json() for row in rows],
        "left_out": failed,
    }
    teachers = [network.name for network in trained if network.teacher]
    fewest = args.threads[0]
    command = visible(machine["command"]).replace("`", "'")
    with_fewest = f"{fewest} thread{'s' if fewest > 1 else ''}"
    title = f"{images.name}, {len(images.test_y):,} test images"
    latency = f"ms an image, batch {BATCHES[0]}, {with_fewest}"
    drawn = [
        Picture(
            "latency.png",
            accuracy_against(rows, lambda row: row.timing(fewest, BATCHES[0]).ms, latency, teachers, title),
            f"Test accuracy against {latency}",
        ),
        Picture(
            "size.png",
            accuracy_against(rows, lambda row: row.file_mb, "size of the file, MB", teachers, title),
            "Test accuracy against the size of the file",
        ),
    ]
    lines = [
        f"# Deployment on {escaped(images.name)}",
        to_markdown(rows).rstrip(),
        f"Accuracy: one run each, n = 1 seed, on {len(images.test_y):,} test images, Wilson's interval at 95 %; "
        "against fp32 in PyTorch paired by image. Times and rates: median and quartiles "
        f"of {args.rounds} rounds, in which all forms take turns. PyTorch in eager mode, BatchNorm folded, channels "
        f"last; int8 calibrated on {args.calibrate:,} training images. One thread is one thread within and between "
        f"operations. Peak memory with {with_fewest}: {MEMORY}.",
        f"{escaped(machine['processor'])}, {machine['cores']} cores, bf16 in hardware: "
        f"{'yes' if machine['bf16'] else 'no'}; {machine['versions']}; {machine['date'][:10]}: "
        f"`{command}`.",
        *(f"Left out: {escaped(visible(text))}." for text in failed),
        *(f"![{escaped(picture.what, brackets=True)}]({picture.name})" for picture in drawn),
    ]
    texts = {
        "deploy.json": json.dumps(figures, indent=2) + "\n",
        "deploy.csv": to_csv(rows),
        "deploy.md": "\n\n".join(lines) + "\n",
    }
    return write(texts, drawn, args.out)


def _machine(args: argparse.Namespace) -> dict[str, Any]:
    """Return where, when and with what was measured."""
    import torch

    from kd.training.device import choose_precision, device_name

    processor = device_name(torch.device("cpu")).rpartition(" (")[0]
    facts = measured_by("scripts/deploy_table.py", processor)
    runtime = [f"onnxruntime {version('onnxruntime')}"] if any("onnx" in form for form in args.forms) else []
    return {
        "processor": facts.pop("device") or platform.machine(),
        "cores": _cores(),
        "bf16": choose_precision("auto", "cpu").startswith("bf16"),
        **facts,
        "versions": ", ".join([facts["versions"], *runtime]),
        "threads": args.threads,
        "rounds": args.rounds,
        "passes": {str(batch): list(steps) for batch, steps in args.steps.items()},
        "calibrate": args.calibrate,
    }


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arguments() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        epilog="examples:\n"
        "  python scripts/deploy_table.py teachers/8bfaa4799f5659b9 multirun/final/* --out docs/results/deploy_table\n"
        "  python scripts/deploy_table.py RUN_DIR data.root=DIR --forms torch_fp32 onnx_int8 --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_OR_WEIGHTS", help="networks; also settings of the data, as data.root=DIR")
    add("--out", type=Path, default=Path("deploy_table"), metavar="DIR", help="default: deploy_table")
    add("--forms", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM", help=f"of {', '.join(FORMS)}")
    add("--threads", nargs="+", type=positive, metavar="N", help="default: 1, and all cores")
    add("--rounds", type=positive, metavar="N", help="turns of each form (default: 15)")
    add("--calibrate", type=positive, default=512, metavar="N", help="training images for int8 (default: 512)")
    add("--quick", action="store_true", help="few and short turns, to try it out")
    add("--trust", action="store_true", help="weights of your own, whose network any code may build")
    options = parser.parse_intermixed_args()
    options.threads = sorted(set(options.threads or (1, _cores())))
    options.rounds = options.rounds or (2 if options.quick else 15)
    options.forms = [form for form in FORMS if form in options.forms]
    # Of a turn, untimed and timed: what the last process left in the caches is none of this one's own.
    options.steps = {1: (1, 3), 256: (1, 1)} if options.quick else {1: (20, 100), 256: (1, 3)}
    return options


def main() -> int:
    return run_program("deploy_table.py", _arguments, table)


if __name__ == "__main__":
    sys.exit(main())
