"""Distillation in a training loop of one's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Method, Pair
from kd.models.output import probe
from kd.teachers.frozen import FrozenTeacher, freeze


def distill(
    student: nn.Module,
    teacher: FrozenTeacher | nn.Module | None,
    method: Method,
    example: Tensor,
    labels: Tensor | None = None,
    new_student: Callable[[], nn.Module] | None = None,
) -> "Distillation":
    """Set a method up for a student and a teacher, and return the loss as a module to train.

    Args:
        student: the network that is trained, which returns `Output`; see `kd.wrap`.
        teacher: a frozen teacher, or a network that returns `Output`, which is frozen then; None for a method that
            needs no teacher.
        method: new, as it can be set up once only.
        example: images (B, C, H, W) like those of the training, on its device; they show the sizes of all maps.
        labels: (N,), int64, of all training images, for a method with a memory of each image.
        new_student: makes another network like the student, for a method that trains more of them.

    Raises:
        TypeError: if a network returns anything but an `Output`.
        ValueError: if the method cannot work with this pair, or without the labels or networks that are not given.
    """
    if isinstance(teacher, nn.Module):
        teacher = freeze(teacher)

    def missing() -> nn.Module:
        raise ValueError(f"{type(method).__name__} trains more networks: give kd.distill their maker as new_student=")

    output = probe(student, example)
    unknown = torch.full(example.shape[:1], -1, device=example.device)
    pair = Pair(
        student=output,
        teacher=None if teacher is None else teacher(Batch.of(example, unknown)),
        labels=unknown[:0].cpu() if labels is None else labels,
        num_classes=output.logits.shape[1],
        student_net=student,
        teacher_net=None if teacher is None else teacher.net,
        new_student=new_student or missing,
        images=example,
    )
    method.setup(pair)
    return Distillation(student, teacher, method.to(example.device))


class Distillation(nn.Module):
    """The loss of a student that a method teaches; made by `distill`.

    Its parameters are the student's and the method's own, for the optimiser; its state dict holds both and not the
    teacher's.
    """

    def __init__(self, student: nn.Module, teacher: FrozenTeacher | None, method: Method) -> None:
        super().__init__()
        self.student, self.teacher, self.method = student, teacher, method
        self.terms: dict[str, Tensor] = {}
        """The latest terms of the loss by name, weighted and detached."""

    @property
    def inference_net(self) -> nn.Module:
        """The network to test and keep: the student, unless the method puts something before or behind it."""
        return self.method.inference_net(self.student)

    def forward(self, x: Tensor, y: Tensor, progress: float = 1.0, index: Tensor | None = None) -> Tensor:
        """Return the loss of one training step, a scalar in fp32.

        Args:
            x: images (B, C, H, W), normalised.
            y: labels (B,), int64, or shares of classes (B, C), float, such as of mixed images. A row of zeros stands
                for an image without a label: 0 in the labels' loss, and like any other in what the teacher adds.
            progress: share of training that is done, in [0, 1], for methods that change with it; by default warm-ups
                are over.
            index: (B,), int64, which training image each is, for methods with a memory of them.
        """
        batch = Batch.of(x, y)
        self.method.progress = progress
        step = self.method.step(self.student, self.teacher, batch if index is None else batch._replace(index=index))
        self.terms = {name: term.detach() for name, term in step.terms.items()}
        return step.loss
