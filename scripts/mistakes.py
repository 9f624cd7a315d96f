"""Logits distillation done wrong, one common mistake a class: for `python train.py experiment=seed_anomaly` only.

Each class is alpha * hard + (1 - alpha) * soft with one thing about soft, or about the teacher's output, that is not as
it should be. They live here and not in `kd`, so that none of them is ever an option; and as scripts may,
they instantiate settings.
"""

import copy
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.data.fetch import BatchIndices, InMemory
from kd.data.images import Images
from kd.data.module import Loader, Sequential
from kd.losses import hard_loss
from kd.methods.base import Pair, Step, Teacher
from kd.methods.logits import Logits
from kd.models.output import Output


class Right(Logits):
    """No mistake.

    Args:
        T, alpha, label_smoothing, standardize: see `kd.methods.logits`.
        source: settings of the data set, for mistakes that show the teacher other pixels.
        augment: settings of its augmentation, likewise.
    """

    own_images = True  # so that nothing is stored: some of the mistakes are in what the teacher is shown

    def __init__(
        self, T: float, alpha: float, label_smoothing: float, source: Any, augment: Any, standardize: bool = False
    ) -> None:
        super().__init__(T, alpha, label_smoothing, standardize)
        self.source, self.augment = source, augment

    def step(self, student: nn.Module, teacher: Teacher | None, batch: Batch) -> Step:
        assert teacher is not None
        return super().step(student, lambda batch: self.teacher_output(teacher, batch), batch)

    def teacher_output(self, teacher: Teacher, batch: Batch) -> Output:
        """What the student is compared with."""
        return teacher(batch)


class LabelsOnly(Right):
    """No teacher at all: standard training, by the same code and with the same batches."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {"hard": hard_loss(student.logits, batch.y, self.label_smoothing)}


# The loss is not what it should be.


class _TooWeak(Right):
    """The soft loss is too small by a factor, and so are its gradients."""

    def factor(self, classes: int) -> float:
        raise NotImplementedError

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = super().forward(student, teacher, batch)
        return {**terms, "soft": terms["soft"] / self.factor(student.logits.shape[1])}


class NoTSquared(_TooWeak):
    """The factor T^2 is left out."""

    def factor(self, classes: int) -> float:
        return self.T**2


class MeanReduction(_TooWeak):
    """reduction="mean" divides by the number of classes as well: ten times too weak on ten classes."""

    def factor(self, classes: int) -> float:
        return classes


class MeanReductionNoTSquared(_TooWeak):
    """Both, as in the plainest call of torch's KLDivLoss."""

    def factor(self, classes: int) -> float:
        return classes * self.T**2


class SoftmaxForLogSoftmax(Right):
    """kl_div is given the student's probabilities where it wants their logarithms."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        p, q = (F.softmax(output.logits.float() / self.T, dim=1) for output in (teacher, student))
        soft = self.T**2 * F.kl_div(q, p, reduction="batchmean")
        return {**super().forward(student, teacher, batch), "soft": (1 - self.alpha) * soft}


# The teacher's output is not the one that it should be.


class TeacherInTrainMode(Right):
    """Nobody called teacher.eval(): dropout is on, BatchNorm uses the batch's statistics and loses its own."""

    def teacher_output(self, teacher: Teacher, batch: Batch) -> Output:
        if "mistaken" not in self.__dict__:
            net = copy.deepcopy(_network(teacher)).train()
            self.__dict__["mistaken"] = net.to(batch.x.device)  # no submodule: it is not trained
        with torch.no_grad():
            output: Output = self.__dict__["mistaken"](batch.x)
        return output


class OtherImages(Right):
    """Logits that belong to other images, as when they are kept by their place in an order that is then shuffled.

    Here each image gets the logits of its neighbour in the batch.
    """

    def teacher_output(self, teacher: Teacher, batch: Batch) -> Output:
        output = teacher(batch)
        return output._replace(logits=output.logits.roll(1, dims=0))


class _OtherPixels(Right):
    """The teacher is shown the batch's images, but not as the student sees them."""

    def setup(self, pair: Pair) -> None:
        self.views = instantiate(self.augment)
        self.generator = torch.Generator().manual_seed(0)  # begins anew when a run is resumed

    @cached_property
    def loader(self) -> Loader:
        """A loader of the training images like the student's own."""
        images: Images = instantiate(self.source)
        device, everything = torch.device("cpu"), Sequential(torch.arange(len(images.train_y)), self.views)
        pixels = InMemory(images.train_x[:], images.train_y, device)
        return Loader(pixels, everything, images.mean_std, len(images.classes), torch.channels_last, device)

    def seen(self, batch: Batch, view: Tensor) -> Batch:
        (other,) = self.loader.batches([BatchIndices(batch.index.cpu(), view, None)])
        return Batch(*(part.to(batch.x.device) for part in other))


class OtherView(_OtherPixels):
    """The teacher is shown a crop and a flip of its own."""

    def teacher_output(self, teacher: Teacher, batch: Batch) -> Output:
        return teacher(self.seen(batch, self.views.draw(len(batch.y), self.generator)))


class CachedWithoutAugmentation(_OtherPixels):
    """The teacher's logits for the images as they are, for whatever view of them the student sees."""

    def teacher_output(self, teacher: Teacher, batch: Batch) -> Output:
        return teacher(self.seen(batch, torch.full((len(batch.y),), self.views.plain_view)))


def _network(teacher: Any) -> nn.Module:
    """The network behind whatever wraps it."""
    while not isinstance(getattr(teacher, "net", None), nn.Module):
        teacher = teacher.teacher
    return teacher.net
