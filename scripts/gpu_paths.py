"""The parts of `gpu_check.py` that check: tests, whole runs, methods, networks, and a training beside the processor's.

Each part is a generator of rows, one for each thing that was tried; a row with an "error" failed.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from gpu_measures import Options, Row, fast
from gpu_step import Steps, captured, noise

from kd.app.check import check_command
from kd.app.compose import compose
from kd.app.run import describe, run
from kd.errors import UserError, described
from kd.models.cnn import CNN
from kd.runs.results import Result
from kd.teachers.frozen import FrozenTeacher
from kd.training.callbacks import StopOnInterrupt

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/training/test_device.py", "tests/training/test_memory.py", "tests/launchers/test_local.py")
"""Those with tests of what is done where there are GPUs; they have "gpu" in their names."""
SMALL = ("data=digits", "epochs=2", "logger=none", "trainer.enable_progress_bar=false")
TINY = ("data.source.image_size=16", "teacher.scale=2", "student.scale=2", "batch_size=256")

FIRST, CURVE, BF16 = 1e-3, 0.05, 0.1
"""Largest relative differences: of each of the first five losses in fp32; of the mean loss of either half of training
in fp32; and of the latter in bf16. Convolutions sum in another order on every device, and training makes differences
grow: of two ways to sum on one processor at lr=0.01, to 0.0001, 0.01 and 0.02; at lr=0.1, to 0.2."""


def tests(options: Options) -> Iterator[Row]:
    """Run the suite's tests of what is done on GPUs."""
    import pytest

    found = TESTS[:1] if options.tiny else TESTS
    paths = [str(ROOT / name) for name in found]
    # What this process has loaded already, pytest cannot rewrite.
    loaded = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    code = pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *loaded, "-k", "gpu", "--rootdir", str(ROOT), *paths])
    failed = {} if code == 0 else {"error": f"pytest ended with {int(code)}"}
    yield {"what": "pytest -k gpu " + " ".join(found), **failed}


def runs(options: Options) -> Iterator[Row]:
    """Train, resume, predict and sweep through train.py, with the settings whose code differs on GPUs."""
    many: dict[str, Callable[[], object]] = {
        "teacher, student, test": lambda: _trained(options, "first", "method=logits"),
        "images from disk, pinned": lambda: _trained(options, "disk", "data.in_memory=false", "data.workers=2"),
        "logits in a file": lambda: _trained(options, "stored", "method=logits", "speed.stored_logits=true"),
        "fp32, or TF32": lambda: _trained(options, "fp32", "trainer.precision=32-true"),
        "speed=reference": lambda: _trained(options, "reference", "method=feature", "speed=reference"),
        "mixed and distorted images": lambda: _trained(
            options, "mixed", "data.augment.policy=trivialaugment", "data.augment.cutmix=1", "recipe.ema=0.9"
        ),
        "DOT": lambda: _trained(options, "dot", "method=logits", "recipe/optimizer=dot"),
        "going on after Ctrl-C": lambda: _resumed(options),
        "kd.load": lambda: _loaded(options),
        "hydra/launcher=cohort": lambda: _swept(options, "cohort"),
        "hydra/launcher=auto": lambda: _swept(options, "auto"),
    }
    for what, work in list(many.items())[: 1 if options.tiny else None]:
        yield _tried(what, work)
    if options.cuda:
        yield _tried("out of memory", lambda: _out_of_memory(options))


def methods(options: Options) -> Iterator[Row]:
    """Take a step with every method."""
    import method_cost

    settings = argparse.Namespace(device=options.trainer, overrides=["student.scale=2", "teacher.scale=2"])
    for name in ["crd"] if options.tiny else method_cost.methods():

        def work(name: str = name) -> None:
            step, _ = method_cost.training(name, "cnn16:cnn32", 16, settings)
            step()
            step()

        yield _tried(f"method={name}", work)


def networks(options: Options) -> Iterator[Row]:
    """Take a step with every network."""
    from networks import names, training

    for name in ["resnet8"] if options.tiny else names():
        yield _tried(f"student={name}", lambda name=name: training(name, 4, options.device, options.half)())


def same(options: Options) -> Iterator[Row]:
    """Compare trainings of the same seed: here and on the processor, in fp32 and bf16, with a graph and without."""
    common = ["method=standard", "lr=0.01"]
    if not options.tiny:
        _trained(options, "taught", "method=teacher", "trainer=cpu", "trainer.precision=32-true")
        taught = f"teacher_weights={options.folder / 'taught'}"
        common = ["method=logits", taught, "lr=0.01", "speed.stored_logits=false"]
    curves = {
        name: _losses(options, name, *common, *settings)
        for name, settings in {
            "processor": ("trainer=cpu", "trainer.precision=32-true", "speed=reference"),
            "fp32": ("trainer.precision=32-true", "speed.tensor_cores=false"),
            "bf16": ("trainer.precision=bf16-mixed",),
        }.items()
    }
    reference = curves["processor"]
    first = max(abs(ours / theirs - 1) for ours, theirs in zip(curves["fp32"][:5], reference[:5], strict=True))
    yield _within("fp32, first losses as on the processor", first, FIRST)
    for name, limit in (("fp32", CURVE), ("bf16", BF16)):
        yield _within(f"{name}, loss curve as on the processor", _furthest(curves[name], reference), limit)
    if options.cuda:
        yield _within("CUDA graph, losses as without", _graph_difference(options), CURVE)


def _within(what: str, difference: float, limit: float) -> Row:
    note = f"differs by {difference:.2g}, allowed {limit:g}"
    return {"what": what, "note": note} if difference <= limit else {"what": what, "error": note}


def _furthest(ours: list[float], theirs: list[float]) -> float:
    """Return the largest relative difference of the mean losses of each half of training."""
    half = max(1, len(ours) // 2)
    parts = [(sum(ours[part]) / sum(theirs[part])) for part in (slice(half), slice(half, None)) if theirs[part]]
    return max(abs(part - 1) for part in parts)


def _graph_difference(options: Options) -> float:
    """Return the largest relative difference of the mean losses of forty steps, as a CUDA graph and one by one."""
    curves = []
    for graph in (False, True):
        torch.manual_seed(0)
        fast().configure_process(None, options.device)
        nets = [CNN(scale, 10, 32, "relu", 0.0, 0.0).to(options.device) for scale in (16, 32)]
        steps = Steps(nets[:1], noise(2000, options.device), FrozenTeacher(nets[1], ""), 256, half=False)
        step = captured(steps.step) if graph else steps.step
        losses = []
        while int(steps.done) < 40:
            step()
            if int(steps.done) > 10:  # the graph's first steps are its warm-up
                losses.append(float(steps.losses))
        curves.append(losses)
    return _furthest(curves[1], curves[0])


def _tried(what: str, work: Callable[[], object]) -> Row:
    try:
        note = work()
    except Exception as error:
        return {"what": what, "error": described(error)}
    return {"what": what, **({"note": note} if isinstance(note, str) else {})}


def _settings(options: Options, *overrides: str) -> list[str]:
    store = f"teacher_store={options.folder / 'teachers'}"
    return [*SMALL, *(TINY if not options.cuda else ()), f"trainer={options.trainer}", store, *overrides]


def _trained(options: Options, name: str, *overrides: str, callbacks: tuple[L.Callback, ...] = ()) -> str:
    """Do what train.py does, in a folder of that name; return the accuracy."""
    from kd.app.build import Builder

    task = compose(_settings(options, *overrides))
    check_command(task)
    record: Result = run(Builder(task), describe(task), options.folder / name, callbacks)
    accuracy = record.test_acc if record.test_acc is not None else record.teacher_test_acc
    return f"test accuracy {accuracy:.0%}"


class _Losses(L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def _losses(options: Options, name: str, *overrides: str) -> list[float]:
    losses = _Losses()
    _trained(options, name, *overrides, callbacks=(losses,))
    return losses.losses


def _resumed(options: Options) -> str:
    """Stop a run after its first epoch, and go on with it."""
    losses = _Losses()
    stop = StopOnInterrupt(lambda: len(losses.losses) > 8)
    try:
        _trained(options, "resumed", "epochs=3", callbacks=(losses, stop))
    except (KeyboardInterrupt, SystemExit):
        return _trained(options, "resumed", "epochs=3")
    raise RuntimeError("the run was not interrupted")


def _out_of_memory(options: Options) -> str:
    """Train with next to no memory of the GPU, and return what train.py says."""

    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(3e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        _trained(options, "memory", "method=standard", "student=wrn16_8", "batch_size=1024")
    except UserError as error:
        if "has no memory" in str(error):
            return str(error)
        raise
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    raise RuntimeError("3 GB were enough for wrn16_8 in steps of 1024 images")


def _loaded(options: Options) -> str:
    """Classify images with what the first run has left."""
    import kd

    predictor = kd.load(options.folder / "first").to(options.device)
    found = predictor.predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    return f"{len(found)} images"


def _swept(options: Options, launcher: str) -> str:
    """Train two students by a launcher of sweeps."""
    from kd.app.cli import main

    folder = f"hydra.sweep.dir={options.folder / launcher}"
    sweep = ("-m", "method=logits", "T=1,4", f"hydra/launcher={launcher}", folder)
    sys.argv = [str(ROOT / "train.py"), *sweep, *_settings(options)]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"exit code {stop.code}") from stop
    return "2 jobs"
