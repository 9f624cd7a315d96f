"""The contract of a distillation method, and the form that most of them have.

The objectives, where hard is `kd.losses.hard_loss` and soft is `kd.losses.soft_loss`:

* standard:            hard
* logits:              alpha * hard + (1 - alpha) * soft
* feature:             alpha * hard + beta * feature + (1 - alpha - beta) * soft
* any further method:  alpha * hard + (1 - alpha) * soft + beta * term, or its paper's own form
* in two stages:       beta * term, then alpha * hard + (1 - alpha) * soft
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import hard_loss, soft_loss, standardized
from kd.models.output import Output, checked
from kd.ranges import require

Teacher = Callable[[Batch], Output]
"""Returns a frozen teacher's output for a batch, without gradients."""


class Pair(NamedTuple):
    """The two networks and the data, for `Method.setup`."""

    student: Output
    """The student's output for a probe batch, for its shapes."""
    teacher: Output | None
    """The teacher's, likewise; None where there is none."""
    labels: Tensor
    """(N,), int64: the label of every training image by `Batch.index`, -1 for images that are not trained on."""
    num_classes: int
    student_net: nn.Module
    """The student itself."""
    teacher_net: nn.Module | None
    """The teacher in full precision. Do not modify it; copy a layer before training it."""
    new_student: Callable[[], nn.Module]
    """Makes another network like the student, with initial weights of its own."""
    images: Tensor | None = None
    """(B, C, H, W), the probe batch; None for outputs that no network made."""

    @property
    def teacher_output(self) -> Output:
        """The teacher's output, for a method that needs one.

        Raises:
            ValueError: if there is no teacher.
        """
        if self.teacher is None:
            raise ValueError("this method needs a teacher, and there is none")
        return self.teacher


class Step(NamedTuple):
    """The result of one training step."""

    output: Output
    """The student's, for the images whose labels are the batch's."""
    terms: dict[str, Tensor]
    """Weighted and named, scalars in fp32; each is logged as `train/<name>`."""
    monitors: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple's default, never changed
    """Scalars that are logged in the same way and are no part of the loss."""

    @property
    def loss(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


class Method(nn.Module):
    """How a student is taught.

    A subclass implements `forward`, and overrides `setup` if it has layers of its own, `step` if it shows other
    images than the batch's or more than one network learns. Its parameters are trained along with the student's, its
    buffers lie in the checkpoint.
    """

    reads: frozenset[str] = frozenset({"logits"})
    """What it reads of the teacher's `Output`; of a teacher of which nothing but logits is read, they may be stored."""
    matches: frozenset[str] | None = None
    """What its picture shows: `maps`, `middle map`, `last map`, `embedding`, `logits`; None for all that it reads."""
    own_images = False
    """Whether `step` shows the teacher other images than the batch's, of which no logits can be stored."""
    needs_labels = False
    """Whether its terms need one label an image, (B,), so that images cannot be mixed."""
    reads_labels = True
    """Whether its terms read labels at all, with a weight above 0."""
    progress = 0.0
    """Share of training that is done, in [0, 1]; set before each step."""

    @property
    def stored_logits_suffice(self) -> bool:
        """Whether logits that were computed in an earlier run can take the teacher's place."""
        return self.reads <= {"logits"} and not self.own_images

    def setup(self, pair: Pair) -> None:
        """Make layers, buffers and further networks; called once, before training.

        Raises:
            ValueError: if this method cannot work with such a pair of networks.
        """

    def step(self, student: nn.Module, teacher: Teacher | None, batch: Batch) -> Step:
        """Show images to the networks and return output, terms and monitors; by default each sees the batch once.

        A method that reads nothing of a teacher is given the student's output in its place.
        """
        if teacher is None and self.reads:
            raise ValueError(f"{type(self).__name__} needs a teacher")
        output = checked(student(batch.x), student)
        theirs = output if teacher is None else checked(teacher(batch), teacher)
        if teacher is not None and self.stored_logits_suffice:
            # What stored logits do not have is NaN with every teacher: a method that uses it has to name it in `reads`.
            theirs = Output(theirs.logits, (), torch.full_like(theirs.logits, torch.nan))
        return Step(output, self(output, theirs, batch), self.monitors())

    def monitors(self) -> dict[str, Tensor]:
        """Return scalars of the latest step that are logged beside its terms and are no part of the loss."""
        return {}

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted, named terms of the loss, scalars in fp32. The loss is their sum."""
        raise NotImplementedError

    def term_weights(self) -> dict[str, float]:
        """Return the factors of the latest step's terms, by name, for curves of the terms without them.

        A term that is left out has a factor that is not known, and no such curve. Training does not depend on it,
        except in `SoftTargets`, which multiplies by it.
        """
        return {}

    def inference_net(self, student: nn.Module) -> nn.Module:
        """The network that is tested and kept: the student, unless the method puts something before or after it."""
        return student

    @classmethod
    def restored_net(cls, student: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network of `inference_net` around a student, to be filled with these weights of it."""
        return student

    def ramp(self, warmup: float) -> float:
        """A factor that rises linearly from 0 to 1 over the first share `warmup` of training, and then stays."""
        return 1.0 if self.progress >= warmup else self.progress / warmup


def compared(student: Output, teacher: Output, standardize: bool) -> tuple[Tensor, Tensor]:
    """Return the logits (B, C) of student and teacher, as z-scores if `standardize`."""
    logits = student.logits, teacher.logits
    return (standardized(logits[0]), standardized(logits[1])) if standardize else logits


def require_z_scores(num_classes: int, standardize: bool, instead: str = "write method.standardize=false") -> None:
    """Refuse z-scores of two logits, which are constants: nothing would be taught.

    Args:
        num_classes: C.
        standardize: whether there are z-scores.
        instead: what to do, for the message.

    Raises:
        ValueError: for two classes, if `standardize`.
    """
    if standardize and num_classes == 2:
        raise ValueError(
            f"z-scores of the logits of 2 classes are constants, of which a student learns nothing; {instead}"
        )


def restored_net(student: nn.Module, tensors: Mapping[str, Tensor], method: Any) -> nn.Module:
    """Return the network that a method kept around its student, to be filled with the weights in a file.

    Args:
        student: the plain network.
        tensors: of the file.
        method: what the file's metadata say of its method, a mapping with `_target_`. Only methods of ours are looked
            at, as a file may name any class; of others it is the student itself.

    Raises:
        AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError: if metadata or tensors are not those
            of that method.
    """
    target = method.get("_target_") if isinstance(method, dict) else None
    if not isinstance(target, str) or not target.startswith("kd.methods."):
        return student
    where, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(where), name)
    return found.restored_net(student, tensors) if isinstance(found, type) and issubclass(found, Method) else student


class SoftTargets(Method):
    """The common form: alpha * hard + (1 - alpha) * soft + beta * term.

    A subclass with a term of its own names it in `term_name` and computes it in `term`; one with several overrides
    `own_terms` and `term_weights`. Every weight is in `term_weights` alone.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6].
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    term_name: str | None = None

    def __init__(self, T: float, alpha: float, beta: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        require("alpha", alpha, "[0, 1]")
        require("beta", beta, "[0, inf)")
        require("label_smoothing", label_smoothing)
        self.T, self.alpha, self.beta, self.label_smoothing = T, alpha, beta, label_smoothing
        self.reads_labels = alpha > 0

    @property
    def soft_weight(self) -> float:
        return 1 - self.alpha

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """The method's own term without its weight, a scalar in fp32."""
        raise NotImplementedError

    def own_terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms beside hard and soft without their weights, by name: scalars in fp32."""
        return {} if self.term_name is None else {self.term_name: self.term(student, teacher, batch)}

    def soft(self, student: Output, teacher: Output) -> Tensor:
        """The soft loss without its weight, a scalar in fp32."""
        return soft_loss(student.logits, teacher.logits, self.T)

    def term_weights(self) -> dict[str, float]:
        """Return what each term is multiplied by, all of them, by name."""
        own = {} if self.term_name is None else {self.term_name: self.beta}
        return {"hard": self.alpha, **own, "soft": self.soft_weight}

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = {
            "hard": hard_loss(student.logits, batch.y, self.label_smoothing),
            **self.own_terms(student, teacher, batch),
            "soft": self.soft(student, teacher),
        }
        weights = self.term_weights()
        return {name: weights[name] * term for name, term in terms.items()}


class TwoStages(SoftTargets):
    """The form of methods that prepare the student first: beta * term, then alpha * hard + (1 - alpha) * soft.

    The first stage is a share of training, so that all methods have equal budgets. Terms that rest are multiplied by 0,
    so that every parameter always has a gradient, as data-parallel training needs.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6].
        alpha: weight of the labels, in [0, 1].
        beta: weight of the term, at least 0.
        warmup: share of training that is the first stage, in [0, 1); with 0 all terms are trained together.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, T: float, alpha: float, beta: float, warmup: float, label_smoothing: float = 0.0) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("warmup", warmup)
        self.warmup = warmup

    def term_weights(self) -> dict[str, float]:
        return {name: weight * self._trained(name) for name, weight in super().term_weights().items()}

    def _trained(self, name: str) -> float:
        """1 for a term of the present stage, 0 for one that rests."""
        first = self.progress < self.warmup
        return float(self.warmup == 0 or (name == self.term_name) == first)
