"""Distillation steps that take nothing from the host, so that a CUDA graph can hold a whole one. For `gpu_check.py`.

Pixels, order, learning rates and, if they are stored, the teacher's logits lie on the device. A step chooses its
images, crops and flips them, runs teacher and students, and updates the students' weights. Whether graphs pay is what
`gpu_check.py` measures; training does not use them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.data.augment import Augment
from kd.data.batch import Batch
from kd.methods.base import Teacher
from kd.methods.logits import Logits
from kd.models.output import Output
from kd.training.optim import one_cycle, parameter_groups

AUGMENT = Augment(crop=4, flip=True, cutout=0)
WARMUP = 5
"""Steps before a capture: cuDNN tries its algorithms, the optimiser makes its momentum."""
STEPS = 30 * 195
"""Steps of the learning rate's schedule; the rate is 0 after them."""


class Pixels(NamedTuple):
    """Training images on the device."""

    x: Tensor
    """(N, 3, H, W), uint8."""
    y: Tensor
    """(N,), int64."""


def noise(count: int, device: torch.device) -> Pixels:
    """Make images of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Pixels(x.to(device), torch.arange(count, device=device) % 10)


class StoredOnDevice:
    """A teacher's logits of every view of every image in one tensor on the device, in float16.

    Args:
        teacher: computes them.
        pixels: the images.
        share: of the images that are computed, in (0, 1]; the other entries are random, which costs a step the same.
    """

    def __init__(self, teacher: Teacher, pixels: Pixels, share: float = 1.0) -> None:
        self.views = AUGMENT.views or 1
        entries, device = len(pixels.y) * self.views, pixels.y.device
        self.logits = torch.randn(entries, 10, device=device).half()
        self.computed = max(1, int(share * len(pixels.y))) * self.views
        for entry in torch.arange(self.computed, device=device).split(4096):
            self.logits[entry] = teacher(shown(pixels, entry // self.views, entry % self.views)).logits.half()

    def __call__(self, batch: Batch) -> Output:
        logits = self.logits[batch.index * self.views + batch.view]
        return Output(logits, (), logits)


def shown(pixels: Pixels, index: Tensor, view: Tensor) -> Batch:
    """Return the batch of these images (B,) in these views (B,), normalised about as CIFAR-10 is."""
    x = (AUGMENT.apply(pixels.x[index], view).float() - 128) / 64
    return Batch(x.contiguous(memory_format=torch.channels_last), pixels.y[index], index, view)


class Steps:
    """The training of one student or several on the same batches.

    Random numbers are those of the device's default generator, which a graph registers by itself.

    Args:
        students: the networks, on the device.
        pixels: the images.
        teacher: of all students; None for training on labels.
        batch: B, images a step.
        half: whether to train in bf16 as `trainer.precision=bf16-mixed` does.
        streams: whether each student has a CUDA stream of its own.
    """

    def __init__(
        self,
        students: Sequence[nn.Module],
        pixels: Pixels,
        teacher: Teacher | None,
        batch: int,
        half: bool,
        streams: bool = False,
    ) -> None:
        self.students, self.pixels, self.teacher, self.half = students, pixels, teacher, half
        device = self.device = pixels.y.device
        self.order = torch.randperm(len(pixels.y), device=device)
        self.places = torch.arange(batch, device=device)
        self.streams = [torch.cuda.Stream() for _ in students] if streams else []
        self.method = Logits(T=4.0, alpha=0.1)
        self.parameters = [list(student.parameters()) for student in students]
        # A learning rate in a tensor is read anew by every replay; a number would be that of the capture for ever.
        self.rate = torch.zeros((), device=device)
        self.optimizers = [self._optimizer(parameter_groups(student)) for student in students]
        self.rates = self._rates()
        self.done = torch.zeros((), dtype=torch.int64, device=device)
        self.losses = torch.zeros(len(students), device=device)
        """The latest step's."""

    def step(self) -> None:
        """Take one step; nothing in it waits for the device."""
        # Not self.rates[self.done]: an index of no dimension is read by the host.
        self.rate.copy_(self.rates.take(self.done.clamp(max=len(self.rates) - 1)))
        index = self.order[self.places]
        self.places.add_(len(self.places)).remainder_(len(self.order))
        view = torch.randint(AUGMENT.views or 1, index.shape, device=self.device)
        batch = shown(self.pixels, index, view)
        taught = None if self.teacher is None else self.teacher(batch)
        self.update(batch, taught)
        self.done.add_(1)

    def update(self, batch: Batch, taught: Output | None) -> None:
        """Update every student, one after the other or each on its stream."""
        here = torch.cuda.current_stream() if self.streams else None
        for place in range(len(self.students)):
            if here is None:
                self._update(place, batch, taught)
                continue
            self.streams[place].wait_stream(here)
            with torch.cuda.stream(self.streams[place]):
                self._update(place, batch, taught)
        for stream in self.streams:
            torch.cuda.current_stream().wait_stream(stream)

    def _update(self, place: int, batch: Batch, taught: Output | None) -> None:
        optimizer = self.optimizers[place]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output = self.students[place](batch.x)
        loss = self._loss(output, taught, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters[place], 5.0)
        optimizer.step()
        self.losses[place].copy_(loss.detach())

    def _loss(self, output: Output, taught: Output | None, batch: Batch) -> Tensor:
        if taught is None:
            return nn.functional.cross_entropy(output.logits.float(), batch.y)
        return torch.stack(list(self.method(output, taught, batch).values())).sum()

    def _optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.SGD:
        return torch.optim.SGD(groups, lr=self.rate, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)

    def _rates(self) -> Tensor:
        """(STEPS,), the learning rate of each step, by the schedule of `recipe=default`."""
        factor = one_cycle(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), STEPS, 0.25).lr_lambdas[0]
        return 0.1 * torch.tensor([factor(step) for step in range(STEPS)], device=self.device)


class StackedSteps(Steps):
    """The same, with the weights of all students stacked and one forward pass for all: `torch.func.vmap`."""

    def __init__(
        self, students: Sequence[nn.Module], pixels: Pixels, teacher: Teacher | None, batch: int, half: bool
    ) -> None:
        super().__init__(students, pixels, teacher, batch, half)
        weights, self.buffers = torch.func.stack_module_state(list(students))
        self.weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        decays = [weight for weight in self.weights.values() if weight.ndim > 2]  # one dimension is the students'
        others = [weight for weight in self.weights.values() if weight.ndim <= 2]
        self.optimizers = [self._optimizer([{"params": decays}, {"params": others, "weight_decay": 0.0}])]

    def update(self, batch: Batch, taught: Output | None) -> None:
        """Update all students together."""
        optimizer = self.optimizers[0]
        optimizer.zero_grad(set_to_none=True)

        def logits(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                output: Output = torch.func.functional_call(self.students[0], (weights, buffers), (batch.x,))
            return output.logits

        every = torch.func.vmap(logits, randomness="different")(self.weights, self.buffers)
        losses = torch.stack([self._loss(Output(own, (), own), taught, batch) for own in every])
        losses.sum().backward()
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (5.0 / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        optimizer.step()
        self.losses.copy_(losses.detach())


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return a function that replays a step as one CUDA graph; some steps are taken before.

    The graph holds what the step reads by its address: keep the object whose step it is.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay
