"""Measure what every method of conf/method costs a training step beyond `logits`: time and memory.

A step is a student's and a live teacher's forward pass with the method's terms, the backward pass, and SGD's update, on
images of noise. All methods take turns of a few steps: what slows the machine slows them all. A factor is the median
over rounds of a method's time divided by that of `logits` in the same round. Memory is the most that one step holds
beyond what lies there between steps: activations, gradients, temporary tensors.
"""

import argparse
import json
import logging
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from steps import chosen_device, synchronize, timed, torch_device
from torch.profiler import ProfilerActivity, profile

from kd.app.check import check_command
from kd.app.compose import Command, compose, conf_dir, settings_of
from kd.app.programs import check_settings, run_program
from kd.data.batch import Batch
from kd.data.images import Images
from kd.errors import UserError
from kd.report.speed import median_ratio
from kd.runs.provenance import measured_by
from kd.teachers.frozen import FrozenTeacher
from kd.terminal import Parser, file, positive, save
from kd.training.device import device_name

if TYPE_CHECKING:
    from kd.app.build import Builder

BASELINE = "logits"
IMAGES = 50_000
"""Training images, of which a method may have a memory."""


def main() -> int:
    return run_program("method_cost.py", arguments, work, (RuntimeError,))


def work(options: argparse.Namespace) -> None:
    """Measure, print and write what the options select."""
    figures = measure(options)
    text = markdown(figures)
    Console(soft_wrap=True).print(text, highlight=False, markup=False, end="")
    if options.json is not None:
        save(options.json, json.dumps(figures, indent=2) + "\n")
    if options.markdown is not None:
        save(options.markdown, text)


def methods() -> list[str]:
    """Return the methods whose steps differ: those that teach a student, and no chain of such."""
    names = []
    for path in sorted((conf_dir() / "method").glob("*.yaml")):
        settings = settings_of(path)
        if "student" in (settings.get("spec") or {}).get("networks", ["student"]) and "chain" not in settings:
            names.append(path.stem)
    return names


def arguments() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python scripts/method_cost.py --methods crd rkd --json cost.json --markdown cost.md",
    )
    add = parser.add_argument
    add("overrides", nargs="*", help="settings of all runs, as for train.py")
    add("--methods", nargs="+", metavar="NAME", help="default: all of conf/method")
    pairs = "student and teacher (default: cnn16:cnn32; also: wrn22_2:wrn16_8)"
    add("--pairs", nargs="+", default=["cnn16:cnn32"], metavar="STUDENT:TEACHER", help=pairs)
    add("--batches", nargs="+", type=positive, default=[64, 256], metavar="B", help="images a step (default: 64 256)")
    add("--rounds", type=positive, default=7, help="turns of each method (default: 7)")
    add("--steps", type=positive, help="timed steps of a turn (default: 3, on a GPU 30)")
    add("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    add("--json", type=file, metavar="FILE", help="write all figures")
    add("--markdown", type=file, metavar="FILE", help="write the tables")
    options = parser.parse_intermixed_args()
    options.device = chosen_device(options.device)
    options.steps = options.steps or (30 if options.device == "gpu" else 3)
    check_settings(options.overrides)
    known = methods()
    for name in options.methods or ():
        if name not in known:
            raise UserError(f"--methods: no method {name} to measure; there are {', '.join(known)}")
    for pair in options.pairs:
        if len(pair.split(":")) != 2:
            raise UserError(f"--pairs: {pair} is no STUDENT:TEACHER, such as cnn16:cnn32")
    chosen = known if options.methods is None else options.methods
    options.methods = [BASELINE, *(name for name in chosen if name != BASELINE)]
    return options


def noise_builder(command: Command) -> "Builder":
    """Return what builds what `train.py` builds, but for a data set without pixels."""
    from kd.app.build import Builder  # Lightning takes five seconds, too long for help and mistakes

    class NoiseBuilder(Builder):
        @cached_property
        def images(self) -> Images:
            blank, labels = torch.zeros((), dtype=torch.uint8), torch.arange(IMAGES) % 10
            x = blank.expand(IMAGES, 3, 32, 32)
            return Images("noise", tuple("abcdefghij"), x, labels, x[:10], labels[:10])

    return NoiseBuilder(command)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures, as `--json` writes them."""
    logging.disable(logging.WARNING)
    tables = [table(pair, batch, options) for pair in options.pairs for batch in options.batches]
    machine = {
        **measured_by("scripts/method_cost.py", device_name(torch_device(options.device))),
        "rounds": options.rounds,
        "steps": options.steps,
    }
    return {"machine": machine, "overrides": options.overrides, "tables": tables}


def table(pair: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all methods for two networks and one batch size."""
    steps: dict[str, Callable[[], None]] = {}
    parameters, refused, memory = {}, {}, {}
    for name in options.methods:
        try:
            steps[name], parameters[name] = training(name, pair, batch, options)
            steps[name]()  # allocates the optimiser's momentum
            memory[name] = peak_memory(steps[name], options)
        except UserError as error:
            if name == BASELINE:
                raise
            refused[name] = str(error)
    seconds = timed(steps, options.rounds, options.steps, torch_device(options.device))
    baseline = seconds[BASELINE]
    rows = {
        name: {
            "ms": statistics.median(taken) * 1e3,
            "factor": median_ratio(taken, baseline),
            "ms_beyond": statistics.median(a - b for a, b in zip(taken, baseline, strict=True)) * 1e3,
            "mb": memory[name] / 1e6,
            "mb_beyond": (memory[name] - memory[BASELINE]) / 1e6,
            "parameters": parameters[name],
            "seconds": taken,
        }
        for name, taken in seconds.items()
    }
    return {"pair": pair, "batch_size": batch, "methods": rows, "refused": refused}


def training(name: str, pair: str, batch: int, options: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """Return a function that trains one step, and how many parameters are the method's own.

    Raises:
        UserError: if the method does not fit the networks.
    """
    student, teacher = pair.split(":")
    command = compose(
        [
            *(f"method={name}", f"student={student}", f"teacher={teacher}", f"trainer={options.device}"),
            *("speed.stored_logits=false", *options.overrides),
        ]
    )
    check_command(command)
    build = noise_builder(command)
    device = torch_device(options.device)
    torch.manual_seed(0)
    frozen = None
    if build.first_teachers:
        frozen = FrozenTeacher(build.net(build.first_teachers[0].network), "", build.inference_copy)
    module = build.module(build.student, build.net(build.student.network), frozen).to(device).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=0.9)
    x = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=build.speed.memory_format)
    index = torch.arange(batch, device=device)
    images = Batch(x, index % 10, index, torch.full_like(index, -1))
    half = build.precision.startswith("bf16")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            terms = module.step(images).terms
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()  # here, so that gradients are memory of the step

    return step, sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in module.net.parameters())


def peak_memory(step: Callable[[], None], options: argparse.Namespace) -> int:
    """Return the most bytes that one step holds beyond what is there before it."""
    if options.device == "gpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        synchronize(torch_device(options.device))
        return torch.cuda.max_memory_allocated() - before
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler's own messages
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def markdown(figures: dict[str, Any]) -> str:
    """Return the tables as Markdown, one a pair of networks: a row a method, the cheapest first."""
    parts = []
    for pair in dict.fromkeys(table["pair"] for table in figures["tables"]):
        tables = [table for table in figures["tables"] if table["pair"] == pair]
        parts.append("\n".join(_lines(pair, tables)))
    machine = figures["machine"]
    note = f"{machine['device']}; medians over {machine['rounds']} rounds of {machine['steps']} steps."
    return "\n\n".join([*parts, note]) + "\n"


def _lines(pair: str, tables: list[dict[str, Any]]) -> Iterator[str]:
    student, teacher = pair.split(":")
    heads = [f"B={table['batch_size']}: ms | × {BASELINE} | MB" for table in tables]
    yield f"| {student} from {teacher} | {' | '.join(heads)} | parameters |"
    yield f"| :--- | {' | '.join(['---: | ---: | ---:'] * len(tables))} | ---: |"
    first = tables[0]["methods"]
    for name in sorted(first, key=lambda name: first[name]["factor"]):
        cells = (table["methods"].get(name) for table in tables)
        shown = [f"{c['ms']:.1f} | {c['factor']:.2f} | {c['mb']:.1f}" if c else " | | " for c in cells]
        yield f"| {name} | {' | '.join(shown)} | {first[name]['parameters']:,} |"
    for name, reason in tables[0]["refused"].items():
        yield f"\n{name} is not measured: {reason}"


if __name__ == "__main__":
    sys.exit(main())
