"""Logits distillation done wrong, one common mistake a class: for `python train.py experiment=seed_anomaly` only.

Each class is alpha * hard + (1 - alpha) * soft with one thing about soft that is not as it should be, or not asked of
the teacher as it should be. They live here and not in `kd`, so that none of them is ever an option; and as scripts may,
they instantiate settings.
"""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.data.images import Images
from kd.methods.base import Method, hard_loss, soft_loss
from kd.models.output import Output

Ask = Callable[[Batch], Output]


class Right(Method):
    """No mistake.

    Args:
        T: temperature, > 0.
        alpha: weight of the labels, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1].
        source: settings of the data set, for mistakes that show the teacher other pixels.
        augment: settings of its augmentation, likewise.
    """

    def __init__(self, T: float, alpha: float, label_smoothing: float, source: Any, augment: Any) -> None:
        super().__init__()
        self.T, self.alpha, self.label_smoothing = T, alpha, label_smoothing
        self.source, self.augment = source, augment

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        return soft_loss(student, teacher, self.T)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing),
            "soft": (1 - self.alpha) * self.soft(student.logits.float(), teacher.logits.float()),
        }


class LabelsOnly(Right):
    """No teacher at all: standard training, by the same code and with the same batches."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {"hard": hard_loss(student.logits, batch.y, self.label_smoothing)}


# The loss is not what it should be.


class NoTSquared(Right):
    """The factor T^2 is left out: the soft loss and its gradients are T^2 times too small."""

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        return soft_loss(student, teacher, self.T) / self.T**2


class MeanReduction(Right):
    """reduction="mean" divides by the number of classes as well: ten times too weak on ten classes."""

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        return soft_loss(student, teacher, self.T) / student.shape[1]


class MeanReductionNoTSquared(Right):
    """Both, as in the plainest call of torch's KLDivLoss."""

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        return soft_loss(student, teacher, self.T) / student.shape[1] / self.T**2


class SoftmaxForLogSoftmax(Right):
    """kl_div is given the student's probabilities where it wants their logarithms."""

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        probabilities = F.softmax(student / self.T, dim=1)
        return self.T**2 * F.kl_div(probabilities, F.softmax(teacher / self.T, dim=1), reduction="batchmean")


# The teacher is not asked what it should be.


class TeacherInTrainMode(Right):
    """Nobody called teacher.eval(): dropout is on, BatchNorm uses the batch's statistics and loses its own."""

    def ask(self, teacher: Ask, batch: Batch) -> Output:
        if "mistaken" not in self.__dict__:
            net = copy.deepcopy(_network(teacher)).train()
            self.__dict__["mistaken"] = net.to(batch.x.device)  # no submodule: it is not trained
        with torch.no_grad():
            answer: Output = self.__dict__["mistaken"](batch.x)
        return answer


class OtherImages(Right):
    """Answers that belong to other images, as when they are kept by their place in an order that is then shuffled.

    Here each image gets the answer to its neighbour in the batch.
    """

    def ask(self, teacher: Ask, batch: Batch) -> Output:
        answer = teacher(batch)
        return answer._replace(logits=answer.logits.roll(1, dims=0))


class _OtherPixels(Right):
    """The teacher is shown the batch's images, but not as the student sees them."""

    def build(self, student: Output, teacher: Output) -> None:
        self.views = instantiate(self.augment)
        self.generator = torch.Generator().manual_seed(0)  # begins anew when a run is resumed

    @cached_property
    def images(self) -> Images:
        return instantiate(self.source)

    def seen(self, batch: Batch, view: Tensor) -> Batch:
        mean, std = (torch.tensor(values)[None, :, None, None] for values in self.images.mean_std)
        pixels = self.views.apply(self.images.train_x[batch.index.cpu()], view) / 255
        x = ((pixels - mean) / std.clamp(min=1 / 255)).contiguous(memory_format=torch.channels_last)
        return batch._replace(x=x.to(batch.x.device), view=view.to(batch.view.device))


class OtherView(_OtherPixels):
    """The teacher is shown a crop and a flip of its own."""

    def ask(self, teacher: Ask, batch: Batch) -> Output:
        return teacher(self.seen(batch, self.views.draw(len(batch.y), self.generator)))


class CachedWithoutAugmentation(_OtherPixels):
    """The teacher's answers to the images as they are, for whatever view of them the student sees."""

    def ask(self, teacher: Ask, batch: Batch) -> Output:
        return teacher(self.seen(batch, torch.full((len(batch.y),), self.views.plain_view)))


def _network(teacher: Any) -> nn.Module:
    """The network behind whatever passes its answers on."""
    while not isinstance(getattr(teacher, "net", None), nn.Module):
        teacher = teacher.teacher
    return teacher.net
