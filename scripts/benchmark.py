"""Measure how fast training is, side by side with a textbook loop.

Each loop has a process of its own, and the processes take turns of a few steps: what slows the machine slows them all.

  textbook    torchvision transforms in a DataLoader with two workers (more on larger machines), fp32, a teacher's
              forward pass at every step
  train.py    what `python train.py` does, with Lightning's Trainer, without its progress bar
  changed     the same with the settings that are given here, if any: what is `speed.keep_memory=false` worth?

Networks, batch size and augmentation are the same. The images are noise, as speed does not depend on them. A ratio is
the median over rounds of one loop's images per second divided by the other's in the same round.

In every round the machine's own limits have a turn, too: large matrix products, and memory, copied (a = b) and added
(a = b + s c). The operations of a step of train.py are counted, and the bytes that they read and write one by one: how
long the step would take at each limit, as a share of its time, shows which one binds, and what is left to gain.

Memory is the most that a loop held at once in that training: of the GPU, or of the machine by the process and its
workers. Where Linux does not tell it, it is the most that the process has held since its start.
"""

import argparse
import ctypes
import gc
import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from functools import cache, partial
from multiprocessing import active_children
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import textbook
import torch
from limits import Limits, Work
from rich.console import Console
from steps import chosen_device, synchronize, torch_device
from turns import Timed, Turns, TurnsOver, processes, spawn, take_turns

from kd.app.check import check_command
from kd.app.compose import Command, compose
from kd.app.explain import explain
from kd.app.loading import loading
from kd.app.programs import check_settings, run_program
from kd.app.run import describe, run
from kd.data.images import Images
from kd.deploy.timing import memory_of
from kd.errors import UserError
from kd.models.cnn import CNN
from kd.report.speed import IMAGES, LOOPS, limits_to_rich, ratio, remarks, shares, to_rich
from kd.runs.provenance import measured_by
from kd.runs.results import Result
from kd.runs.weights import save_weights
from kd.terminal import Parser, file, positive, save
from kd.training.device import device_name
from kd.training.threads import SPINNING

WORKLOADS = {
    "teacher": ["method=teacher"],
    "student": ["method=standard"],
    "logits_live": ["method=logits", "speed.stored_logits=false"],
    "logits_stored": ["method=logits", "speed.stored_logits=true"],
    "feature_live": ["method=feature"],
}
TEACHER = "teacher.safetensors"
EPOCHS = 1_000_000
"""So many that no training ends before its turns."""
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""The environment of a process whose idle threads sleep after microseconds."""
LIMITS = "limits"
"""The process that measures the machine's limits."""


def main() -> int:
    return run_program("benchmark.py", arguments, benchmark, (RuntimeError,))


def benchmark(options: argparse.Namespace) -> None:
    """Measure and print what the options select."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        save_weights(CNN(32, 10, 32, "relu", 0.25, 0.5), folder / TEACHER, {})  # untrained, which costs no speed
        check_settings(options.overrides)
        for workload in options.workloads:
            changed = command(workload, "changed", options, folder)
            check_command(changed)
            refuse_other_steps(changed, options)
        figures = measure(options, folder)
    shown = to_rich(figures), *remarks(figures), limits_to_rich(figures)
    Console(width=110, soft_wrap=True).print(*shown, sep="\n", highlight=False)
    if options.json is not None:
        save(options.json, json.dumps(figures, indent=2) + "\n")


def refuse_other_steps(task: Command, options: argparse.Namespace) -> None:
    """Refuse settings of `changed` under which a turn is not what the options say.

    Raises:
        UserError: for other images a step, of which speeds are computed, or a training that may end before its turns.
    """
    recipe = task.cfg.recipe if "student" in task.cfg.spec.networks else task.cfg.teacher_recipe
    if recipe.batch_size != options.batch:
        raise UserError(f"batch_size={recipe.batch_size}: images a step are --batch, not batch_size")
    if recipe.epochs != EPOCHS:
        raise UserError(f"epochs={recipe.epochs}: a turn has --steps, not epochs")


def arguments() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python scripts/benchmark.py --quick --json speed.json",
    )
    add = parser.add_argument
    add("overrides", nargs="*", help="settings of the loop `changed`, as for train.py")
    add("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    workloads = f"of {', '.join(WORKLOADS)} (default: all)"
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME", help=workloads)
    add("--batch", type=positive, default=256, help="images a step (default: 256)")
    add("--rounds", type=positive, help="turns of each loop")
    add("--steps", type=positive, help="timed steps of a turn")
    add("--quick", action="store_true", help="fewer and shorter turns: under two minutes on two cores")
    add("--passive-textbook", action="store_true", help="idle threads of the textbook loop sleep")
    add("--json", type=file, metavar="FILE", help="write all figures")
    options = parser.parse_intermixed_args()
    options.device = chosen_device(options.device)
    steps = 100 if options.device == "gpu" else 12
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.steps = options.steps or (steps // 3 if options.quick else steps)
    options.images = IMAGES
    options.shrink = 1 if options.batch >= 64 else 16  # so few images are a trial
    options.warmup = max(2 * textbook.WORKERS, options.steps // 4)  # at least the batches that workers have prefetched
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures, as `--json` writes them."""
    loops = [*LOOPS, *(["changed"] if options.overrides else []), LIMITS]
    environments = {loop: dict(SPINNING) for loop in loops}
    environments["textbook"] = PASSIVE if options.passive_textbook else dict.fromkeys(SPINNING)
    with processes(partial(serve, options, folder), environments) as pipes:
        timed = {workload: take_turns(workload, pipes, options.rounds) for workload in options.workloads}
    workloads = {workload: entry(turns, options.steps * options.batch) for workload, turns in timed.items()}
    machine = {
        **measured_by("scripts/benchmark.py", device_name(torch_device(options.device))),
        "batch_size": options.batch,
        "rounds": options.rounds,
        "steps": options.steps,
    }
    return {
        "machine": machine,
        "overrides": options.overrides,
        "workloads": workloads,
        "shares": {workload: shares(figures, options.batch) for workload, figures in workloads.items()},
        "first_step_seconds": [first_step_seconds(options, folder) for _ in range(1 if options.quick else 3)],
        "ratios": {workload: ratio(figures, "train.py") for workload, figures in workloads.items()},
    }


def entry(turns: Timed, images: int) -> dict[str, Any]:
    """Return the figures of one workload, whose turns had this number of images each."""
    limits = turns.turns.pop(LIMITS)
    return {
        "images_per_second": {loop: [images / seconds for seconds in every] for loop, every in turns.turns.items()},
        "memory_gb": {loop: turns.ends[loop]["memory_gb"] for loop in turns.turns},
        "step": turns.ends["train.py"]["step"],
        "limits": {name: [measured[name] for measured in limits] for name in limits[0]},
    }


def serve(options: argparse.Namespace, folder: Path, loop: str, pipe: Connection) -> None:
    """Train the workloads that come through the pipe, in a process of one loop."""
    silence()
    wait = partial(synchronize, torch_device(options.device))
    turns = Turns(pipe, options.warmup, options.steps, wait, partial(peak_memory_gb, options))
    while True:
        work = Work() if loop == "train.py" else None
        try:
            workload = pipe.recv()
            forget_peak()
            if loop == LIMITS:
                measure_limits(pipe, options)
            elif loop == "textbook":
                train_textbook(workload, turns, options, folder)
            else:
                train_ours(workload, loop, turns, options, folder, work)
            raise RuntimeError("its training ended before its turns did")  # or the parent would wait for ever
        except TurnsOver as over:
            pipe.send({"memory_gb": over.last, "step": work and work.figures()})
        except (KeyboardInterrupt, SystemExit, EOFError, BrokenPipeError):
            return  # the parent has ended
        except Exception as error:
            pipe.send(f"{loop}, {workload}: {explain(error, options.overrides)}")
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            return


def measure_limits(pipe: Connection, options: argparse.Namespace) -> None:
    """Measure the device in place of training; see `turns`."""
    limits = Limits(torch_device(options.device), seconds=0.05 if options.quick else 0.1, shrink=options.shrink)
    pipe.send(None)
    while pipe.recv():
        pipe.send(limits.measure())
    raise TurnsOver


def train_textbook(workload: str, turns: Turns, options: argparse.Namespace, folder: Path) -> None:
    steps = textbook.train(
        workload, noise(options.images), folder / TEACHER, options.batch, torch_device(options.device)
    )
    turns.begin()
    for _ in steps:
        turns.step()


def train_ours(
    workload: str, loop: str, turns: Turns, options: argparse.Namespace, folder: Path, work: Work | None
) -> None:
    from paced import PacedBuilder  # loads Lightning, which the textbook and mistakes do without

    build = PacedBuilder(command(workload, loop, options, folder), noise(options.images), turns, options.rounds, work)
    # By hand: `describe` starts git, which would count as a worker in `peak_memory_gb`.
    record = Result(method=workload, seed=0, dataset="noise", epochs=1, status="running")
    run(build, record, folder / f"{loop}_{workload}")


def command(workload: str, loop: str, options: argparse.Namespace, folder: Path) -> Command:
    """Compose the run of `train.py` for a workload."""
    overrides = [
        *WORKLOADS[workload],
        *(f"{role}.{name}={p}" for role in ("teacher", "student") for name, p in textbook.DROPOUT.items()),
        f"teacher_store={folder / loop}",  # one for each loop: a process that trains a teacher holds its lock
        f"batch_size={options.batch}",
        f"epochs={EPOCHS}",
        f"trainer={options.device}",
        "trainer.enable_progress_bar=false",
    ]
    if workload not in ("teacher", "student"):
        overrides.append(f"teacher_weights={folder / TEACHER}")
    return compose(overrides + (options.overrides if loop == "changed" else []))


def first_step_seconds(options: argparse.Namespace, folder: Path) -> float:
    """Return the time from the start of a process to the end of its first training step."""
    started = time.perf_counter()
    process = spawn(train_one_step, options, folder, environment=dict(SPINNING))
    process.join()
    if process.exitcode:
        raise RuntimeError("the first training step was not reached")
    return time.perf_counter() - started


def train_one_step(options: argparse.Namespace, folder: Path) -> None:
    """Do what `python train.py data=digits method=standard` does, up to the end of the first step."""
    with loading():  # as train.py does
        from paced import Exit

        from kd.app.build import Builder

    silence()
    task = compose(["data=digits", "method=standard", f"trainer={options.device}"])
    check_command(task)
    run(Builder(task), describe(task), folder / "first_step", [Exit()])


@cache
def noise(count: int) -> Images:
    """Make a data set of CIFAR-10's shape with this many training images, but for a small test split."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count + 100, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.arange(len(x)) % 10
    return Images("noise", tuple("abcdefghij"), x[:count], y[:count], x[count:], y[count:])


def forget_peak() -> None:
    """Begin to measure peak memory anew, without what a training before has left."""
    gc.collect()  # a Trainer refers to itself
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(0)  # `speed.keep_memory` has kept what was freed
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb(options: argparse.Namespace) -> float:
    """Return the most memory, in GB (10^9 bytes), held since `forget_peak`: on a GPU, of the GPU's memory.

    On a processor it is the sum of what this process held at most and what each of its living workers did. Without
    Linux's /proc it is this process's alone, since its start.
    """
    if options.device == "gpu":
        return torch.cuda.max_memory_allocated() / 1e9
    own = memory_of("self", "VmHWM")
    if own is None:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return (own + sum(memory_of(worker.pid, "VmHWM") or 0 for worker in active_children())) / 1e9


def silence() -> None:
    """Leave out what every training logs and warns of, such as that this teacher, whose weights are random, is bad."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", message="The `srun` command is available")


if __name__ == "__main__":
    sys.exit(main())
