"""The parts of `gpu_check.py` that measure: limits, loops, students side by side, large networks.

Each part is a generator of rows. Loops are compared in turns, each in a process of its own, so that one that fails is
named and the others go on. A row has the images per second of every round; its ratio is the median over rounds of that
divided by what the first loop of the part had in the same round. If that one failed, no row has a ratio.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from gpu_step import Pixels, StackedSteps, Steps, StoredOnDevice, captured, noise
from limits import Limits, Work
from steps import synchronize
from textbook import DROPOUT, WORKERS
from torch import nn
from turns import Turns, TurnsOver, in_turns, prepare, processes

from kd.errors import described
from kd.methods.base import Teacher
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.report.speed import median_ratio
from kd.teachers.frozen import FrozenTeacher
from kd.training.device import choose_precision
from kd.training.performance import Speed

Row = dict[str, Any]
Step = Callable[[], None]
Serve = Callable[[str, Connection], None]
"""Trains in turns at the far end of a pipe, see `turns`."""


class Size(NamedTuple):
    """How much is measured."""

    images: int
    batch: int
    rounds: int
    steps: int
    """Timed steps of a turn."""
    students: tuple[int, ...]
    """Numbers of students side by side."""
    shrink: int
    """See `Limits`."""


class Options(NamedTuple):
    """What all parts know."""

    device: torch.device
    quick: bool
    folder: Path
    size: Size

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def tiny(self) -> bool:
        """Whether this is a trial on a processor, with the smallest networks."""
        return self.quick and not self.cuda

    @property
    def trainer(self) -> str:
        return "gpu" if self.cuda else "cpu"

    @property
    def half(self) -> bool:
        return choose_precision("auto", self.trainer).startswith("bf16")


def limits(options: Options) -> Iterator[Row]:
    """Measure what the device can do at most."""
    for name, rate in Limits(options.device, shrink=options.size.shrink).measure().items():
        unit = "GB/s" if name in ("copy", "triad") else "GFLOP/s"
        yield {"what": name, "rate": rate, "note": f"{rate / 1e9:,.0f} {unit}"}


def loops(options: Options) -> Iterator[Row]:
    """Compare distillation with live logits: textbook, train.py, and a bare step; the latter with stored logits too."""
    found: dict[str, Serve] = {"textbook": _benchmark(options), "train.py": _benchmark(options)}
    if not options.cuda:
        yield _left_out("CUDA graphs", "there are none on a processor")
    yield from _compared(options, {**found, **_bare(options)})


def compiled(options: Options) -> Iterator[Row]:
    """Compare what torch.compile makes of train.py and of the bare step."""
    if not options.cuda:
        yield _left_out("torch.compile", "python scripts/benchmark.py speed.compile=true measures it on a processor")
        return
    found: dict[str, Serve] = {"train.py": _benchmark(options), "changed": _benchmark(options, "speed.compile=true")}
    yield from _compared(options, {**found, **_bare(options, compiles=True)})


def cohort(options: Options) -> Iterator[Row]:
    """Compare ways to train several students on the same batches; images are counted once for each student."""
    found: dict[str, Serve] = {}
    students: dict[str, int] = {}
    for count in options.size.students:
        forms: list[tuple[str, Callable[..., Steps], bool]] = [("one after the other", Steps, False)]
        if count > 1:
            forms.append(("vmap", StackedSteps, False))
        if options.cuda:
            forms += [(f"{name}, graph", kind, True) for name, kind, _ in forms]
        if options.cuda and count > 1:
            forms.append(("a stream each, graph", partial(Steps, streams=True), True))
        for name, kind, graph in forms:
            make = partial(_steps, options, count, kind)
            students[f"{count}, {name}"] = count
            # Operations of vmap are not torch's own.
            found[f"{count}, {name}"] = partial(_serve, options, make, graph, kind is not StackedSteps)
    for row in _compared(options, found, {name: count * options.size.batch for name, count in students.items()}):
        count = students[row["what"]]
        times = {"note": f"{count / row['ratio']:.2f} x the time of the first"} if "ratio" in row else {}
        yield {**row, "what": f"students: {row['what']}", **times}


def best(options: Options) -> Iterator[Row]:
    """Measure the networks of `experiment=best_1m`: its student from three teachers, and a teacher alone."""
    for what, make in (("student", partial(_best_student, options)), ("teacher", partial(_best_teacher, options))):
        found: dict[str, Serve] = {f"{what}, bare": partial(_serve, options, make, False, True)}
        if options.cuda:
            found[f"{what}, graph"] = partial(_serve, options, make, True, True)
        yield from _compared(options, found)


def _compared(options: Options, found: dict[str, Serve], images: dict[str, int] | None = None) -> Iterator[Row]:
    """Let loops take turns, and yield a row of each; `images` are those of a step, a batch by default."""
    rounds, steps = options.size.rounds, options.size.steps
    images = images or dict.fromkeys(found, options.size.batch)
    shown = {"changed": "train.py, compiled"}
    with processes(lambda name, pipe: found[name](name, pipe), {name: {} for name in found}, fork=True) as pipes:
        ready: dict[str, Connection] = {}
        for name, pipe in pipes.items():
            try:
                prepare("logits_live", pipe)
                ready[name] = pipe
            except RuntimeError as error:
                yield {"what": shown.get(name, name), "error": str(error)}
        failed: dict[str, str] = {}
        timed = in_turns(ready, rounds, failed.__setitem__)
    yield from ({"what": shown.get(name, name), "error": why} for name, why in failed.items())
    rates = {name: [images[name] * steps / seconds for seconds in turns] for name, turns in timed.turns.items()}
    first = rates.get(next(iter(found)))  # nothing else takes its place: the ratios would be to another loop unseen
    for name, own in rates.items():
        step = timed.ends[name]["step"]
        ratio = median_ratio(own, first) if first is not None else None
        yield {
            "what": shown.get(name, name),
            "images_per_second": own,
            **({} if ratio is None else {"ratio": ratio}),
            "memory_gb": timed.ends[name]["memory_gb"],
            "flops_an_image": step and sum(step["flops"].values()) / images[name],
        }


def _benchmark(options: Options, *overrides: str) -> Serve:
    """Return one of the loops of `benchmark.py`, chosen by its name there."""

    def serve(name: str, pipe: Connection) -> None:
        from benchmark import serve

        size = options.size
        settings = argparse.Namespace(
            device=options.trainer,
            batch=size.batch,
            rounds=size.rounds,
            steps=size.steps,
            warmup=max(2 * WORKERS, size.steps // 4),
            images=size.images,
            overrides=list(overrides),
        )
        serve(settings, options.folder, name, pipe)

    return serve


def _bare(options: Options, compiles: bool = False) -> dict[str, Serve]:
    """Return the bare step: without a graph and, on CUDA, as one; the teacher live, and its logits stored."""
    found: dict[str, Serve] = {}
    for stores in (False, True):
        for graph in (False, True) if options.cuda else (False,):
            make = partial(_steps, options, 1, Steps, stores, compiles)
            words = ["graph" if graph else "bare", *(["compiled"] if compiles else []), "stored" if stores else "live"]
            found[", ".join(words)] = partial(_serve, options, make, graph, not compiles)
    return found


def _steps(
    options: Options, count: int, kind: Callable[..., Steps], stores: bool = False, compiles: bool = False
) -> Steps:
    """Make the training of some students of the default networks."""
    pixels = noise(options.size.images, options.device)
    teacher = _teacher(options, CNN(2 if options.tiny else 32, 10, 32, "relu", **DROPOUT))
    students = []
    for seed in range(count):
        torch.manual_seed(seed)
        students.append(_ready(options, CNN(2 if options.tiny else 16, 10, 32, "relu", **DROPOUT)))
    if compiles:
        students[0].compile()
    taught: Teacher = StoredOnDevice(teacher, pixels, share=0.01) if stores else teacher
    return kind(students, pixels, taught, options.size.batch, options.half)


def _best_student(options: Options) -> Steps:
    from networks import build

    small, large = ("resnet8", "wrn16_1") if options.tiny else ("se_resnet56", "wrn16_8")
    teachers = Ensemble(build(large, 10) for _ in range(1 if options.tiny else 3))
    return _of(options, build(small, 10), _teacher(options, teachers))


def _best_teacher(options: Options) -> Steps:
    from networks import build

    return _of(options, build("wrn16_1" if options.tiny else "wrn16_8", 10), None)


def _of(options: Options, student: nn.Module, teacher: Teacher | None) -> Steps:
    pixels: Pixels = noise(options.size.images, options.device)
    return Steps([_ready(options, student)], pixels, teacher, options.size.batch, options.half)


def _ready(options: Options, net: nn.Module) -> nn.Module:
    return net.to(options.device, memory_format=torch.channels_last).train()


def _teacher(options: Options, net: nn.Module) -> FrozenTeacher:
    """Freeze a teacher as train.py does."""
    return FrozenTeacher(net, "", lambda net: fast().prepare_teacher(net, options.half).to(options.device))


def fast() -> Speed:
    """Return the settings of `speed=fast`."""
    settings = yaml.safe_load((Path(__file__).parents[1] / "conf" / "speed" / "fast.yaml").read_text(encoding="utf-8"))
    del settings["_target_"]
    return Speed(**settings)


def _serve(options: Options, make: Callable[[], Steps], graph: bool, counts: bool, name: str, pipe: Connection) -> None:
    """Take the steps of a training in turns, in this process; `counts` says whether to count a step's work."""
    try:
        pipe.recv()
        fast().configure_process(None, options.device)
        steps = make()
        if options.cuda:
            torch.cuda.reset_peak_memory_stats()  # to store logits takes more than a step, and comes once
        work = None
        if counts:
            with Work() as counter:
                steps.step()
            work = counter.figures()
        step = captured(steps.step) if graph else steps.step
        turns = Turns(pipe, max(2, options.size.steps // 4), options.size.steps, partial(synchronize, options.device))
        turns.begin()
        while True:
            step()
            turns.step()
    except TurnsOver:
        pipe.send({"memory_gb": memory_gb(options), "step": work})
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        return  # the parent has ended
    except Exception as error:
        pipe.send(described(error))
        raise  # into the log


def memory_gb(options: Options) -> float | None:
    """Return the most memory of the GPU that this process has held; a processor's is not measured."""
    return torch.cuda.max_memory_allocated() / 1e9 if options.cuda else None


def _left_out(what: str, why: str) -> Row:
    return {"what": what, "left_out": why}
