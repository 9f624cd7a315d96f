"""Every method that has a class of its own, found in conf/method, and a pair of tiny networks for it."""

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor, nn

from kd.app.compose import compose
from kd.data.batch import Batch
from kd.methods.base import Method, Step
from kd.models.cnn import CNN
from kd.models.output import Output
from kd.teachers.frozen import FrozenTeacher, freeze
from tests.common import CONF, pair

FILES = sorted((CONF / "method").glob("*.yaml"))
TARGETS = {file.stem: (yaml.safe_load(file.read_text())["method"] or {}).get("_target_") for file in FILES}
METHODS = [name for name, target in TARGETS.items() if target and target.startswith(f"kd.methods.{name}.")]
"""Not labels alone, and no chain, in which each network is taught by another method's class."""
PROGRESS = (0.01, 0.6)
"""Early, in a first stage or a warm-up, and late."""

each_method = pytest.mark.parametrize("name", METHODS)


@cache
def composed(name: str, *overrides: str):
    """Return the configuration of a run on digits with that method; not to be changed."""
    return compose(["data=digits", f"method={name}", *overrides]).cfg


def class_of(name: str) -> type[Method]:
    module, _, attribute = TARGETS[name].rpartition(".")
    return getattr(import_module(module), attribute)


def knobs_of(name: str) -> set[str]:
    return set(inspect.signature(class_of(name)).parameters)


def cnn(scale: int, classes: int = 10, size: int = 8) -> CNN:
    return CNN(scale, classes, size, "relu", 0.0, 0.0)


class Case(NamedTuple):
    """A method set up for two networks, and a batch."""

    method: Method
    student: nn.Module
    taught: FrozenTeacher | None
    batch: Batch

    @property
    def teacher(self) -> nn.Module | None:
        return None if self.taught is None else self.taught.net

    def step(self, progress: float = 0.6, seed: int = 0, student: nn.Module | None = None, **parts: Any) -> Step:
        """Return one step, with the random numbers of a seed; the method's buffers are as before afterwards.

        Args:
            progress: share of training that is done.
            student: what is trained in the student's place.
            parts: a `batch` or a teacher (`taught`) in place of the case's own.
        """
        before = {key: buffer.clone() for key, buffer in self.method.named_buffers()}
        self.method.progress = progress
        torch.manual_seed(seed)
        step = self.method.step(
            self.student if student is None else student,
            parts.get("taught", self.taught),
            parts.get("batch", self.batch),
        )
        with torch.no_grad():
            for key, buffer in self.method.named_buffers():
                if not torch.equal(buffer, before[key]):
                    buffer.data = before[key]  # not in place: the backward pass may need what was there
        return step

    @property
    def learned(self) -> list[tuple[str, Tensor]]:
        """Return all parameters that are trained, by name."""
        return [
            (f"{role}.{name}", parameter)
            for role, module in (("student", self.student), ("method", self.method))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]


@cache
def scales(name: str) -> tuple[int, int]:
    """Return the widths of a student and a wider teacher; of equal ones, where a method is for these alone."""
    for ours, theirs in ((2, 4), (2, 2)):
        try:
            class_of(name)().setup(pair(cnn(ours), cnn(theirs)))
        except ValueError:
            continue
        return ours, theirs
    raise AssertionError(f"{name} is set up neither for networks of different nor for networks of equal widths")


def networks(name: str, classes: int = 10, size: int = 8) -> tuple[CNN, CNN]:
    """Return a new student and a new teacher that the method can be set up for."""
    ours, theirs = scales(name)
    return cnn(ours, classes, size), cnn(theirs, classes, size)


def case(
    name: str,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    images: int = 8,
    classes: int = 10,
    size: int = 8,
    **settings: Any,
) -> Case:
    """Set a method up, with its published defaults but for `settings`, for a pair of networks and a batch of noise."""
    ours, theirs = scales(name)  # which draws random numbers the first time
    torch.manual_seed(0)
    student = cnn(ours, classes, size) if student is None else student
    teacher = cnn(theirs, classes, size) if teacher is None else teacher
    method = class_of(name)(**settings)
    taught = freeze(teacher) if method.reads else None
    labels = torch.arange(max(images, 16)) % classes
    torch.manual_seed(1)
    method.setup(pair(student, None if taught is None else taught.net, size, labels))
    torch.manual_seed(2)
    index = torch.arange(images)
    batch = Batch(torch.randn(images, 3, size, size), labels[:images], index, torch.zeros_like(index))
    return Case(method, student, taught, batch)


def tensors_of(output: Output) -> dict[str, Tensor]:
    """Return every tensor of an output by name."""
    maps = {f"{field}[{i}]": part for field in ("features", "preacts") for i, part in enumerate(getattr(output, field))}
    return {"logits": output.logits, "embedding": output.embedding, **maps}


def changed(output: Output, change: Callable[[Tensor], Tensor]) -> Output:
    """Return an output with all tensors changed."""
    return Output(
        change(output.logits),
        tuple(map(change, output.features)),
        change(output.embedding),
        tuple(map(change, output.preacts)),
    )


class Changed(nn.Module):
    """A network whose output is changed; it runs without autocast itself."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Output:
        with torch.autocast(x.device.type, enabled=False):
            return changed(self.net(x), self.change)


class Watched(nn.Module):
    """A network whose outputs are kept, with copies."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[tuple[str, Tensor, Tensor, int]] = []

    def forward(self, x: Tensor) -> Output:
        output = self.net(x)
        for name, tensor in tensors_of(output).items():
            self.seen.append((name, tensor, tensor.detach().clone(), tensor._version))
        return output


class Leaves(nn.Module):
    """A network whose outputs are parameters, one row an image, whatever it is shown.

    They have the shapes of an output, and are noise above 0, or all of one value.
    """

    def __init__(self, output: Output, value: float | None = None) -> None:
        super().__init__()
        self.parts = nn.ParameterDict(
            {
                name.replace("[", "_").rstrip("]"): 0.1 + torch.rand_like(part)
                for name, part in tensors_of(output).items()
            }
        )
        self.depth = len(output.features), len(output.preacts)

    def forward(self, x: Tensor) -> Output:
        rows = torch.arange(len(x)) % len(self.parts["logits"])
        maps = (
            tuple(self.parts[f"{field}_{i}"][rows] for i in range(depth))
            for field, depth in zip(("features", "preacts"), self.depth, strict=True)
        )
        features, preacts = maps
        return Output(self.parts["logits"][rows], features, self.parts["embedding"][rows], preacts)


class TinyViT(nn.Module):
    """A vision transformer of patches of 4x4 pixels, with a class token."""

    def __init__(self, width: int = 6, classes: int = 10, size: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, 1 + (size // 4) ** 2, width))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(width, 2, 12, 0.0, batch_first=True) for _ in "ab"))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.position
        return self.head(self.blocks(tokens)[:, 0])
