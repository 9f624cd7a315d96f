"""Knowledge distillation with the reused teacher classifier: Chen et al. 2022, arXiv 2203.14001."""

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import hard_loss
from kd.methods.base import Method, Pair, Step, Teacher
from kd.methods.maps import averaged, classifier_head, is_mean_of_last_map, of_one_size
from kd.models.output import Output, checked
from kd.ranges import require


def simkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the student's projected maps (B, C, h, w) and the teacher's, in fp32.

    The teacher's are averaged to the height and width of the student's first. It does not grow with B, C, h or w.

    Source: Chen et al. 2022, arXiv 2203.14001.
    """
    with torch.autocast(projected.device.type, enabled=False):
        return F.mse_loss(*of_one_size(projected.float(), teacher.float()))


class ReusedHead(nn.Module):
    """A projector from the student's representation to the teacher's, and a frozen copy of the teacher's classifier.

    Its state dict tells how to make it again, see `SimKD.restored_net`.

    Args:
        channels: of what is projected.
        inner: of the projector's inner layers.
        classifier: the teacher's.
        layout: whether last maps are projected and not embeddings, whether a ReLU comes last, height and width of the
            projected maps.
    """

    layout: Tensor

    def __init__(self, channels: int, inner: int, classifier: nn.Linear, layout: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("layout", torch.tensor(layout))
        on_maps, relu, height, width = layout
        self.on_maps, self.size = bool(on_maps), (height, width)
        layers = [*_block(channels, inner, 1), nn.ReLU(inplace=True)]
        if on_maps:
            layers += [*_block(inner, inner, 3), nn.ReLU(inplace=True)]
        layers += _block(inner, classifier.in_features, 1)
        self.projector = nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))
        self.classifier = copy.deepcopy(classifier).float().requires_grad_(False).train()

    def forward(self, student: Output) -> tuple[Output, Tensor]:
        """The student's output with the reused classifier's logits, and its projected maps (B, C, h, w)."""
        maps = _represented(student, self.on_maps)
        if maps.shape[2:] != self.size:
            height, width = self.size
            maps = averaged(maps, (min(maps.shape[2], height), min(maps.shape[3], width)))
        if self.training and len(maps) == 1:  # twice, as BatchNorm refuses a single number
            maps = maps.expand(2, -1, -1, -1)
        projected = self.projector(maps)[: len(student.embedding)]
        embedding = projected.mean(dim=(2, 3))
        return student._replace(logits=self.classifier(embedding), embedding=embedding), projected


class Reused(nn.Module):
    """A student whose logits are made by the teacher's classifier: what is tested and kept."""

    def __init__(self, student: nn.Module, head: ReusedHead) -> None:
        super().__init__()
        self.student, self.head = student, head

    def forward(self, x: Tensor) -> Output:
        """(B, in_channels, H, W) -> `Output`."""
        return cast(Output, self.head(checked(self.student(x), self.student))[0])


class SimKD(Method):
    r"""alpha * hard + beta * simkd.

    The student is to see what the teacher sees, and the teacher's classifier is used as it is. A learned projector P
    turns the student's last map $F^s$ (B, C_s, H, W) into one like the teacher's, $F^t$ (B, C, H, W):

    $$ \mathrm{simkd} = \frac{1}{B C H W} \lVert P(F^s) - F^t \rVert_2^2 $$

    The larger of two maps is averaged to the smaller one's height and width. P is a 1x1, a 3x3 and a 1x1 convolution
    with BatchNorm and ReLU after each; the inner ones have C / factor channels. The last ReLU is left out if the
    teacher's map has negative numbers for the probe images.

    The network that is tested and kept is student, projector and the teacher's classifier: it is larger than the
    student. The student's own classifier stays in it, and is trained by the hard loss only where alpha > 0.

    Scaling:
        The term is a mean, and does not grow with B, C, H or W.

    Use:
        Where a larger network at inference is affordable: its published accuracy for resnet32x4 to resnet8x4 on
        CIFAR-100 is 78.1 %, of a larger network than the 74.4 % of soft targets in the same table. With a single
        teacher whose classifier is linear; not with an ensemble. Labels are not needed.

    Deviations:
        * Where either network's embedding is not the mean of its last map, as in the plain CNN with its hidden layer,
          embeddings are matched, and P has 1x1 layers only: its classifier could not read a map.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them, as its classifier reads.
        * Where alpha > 0, which is not published, the hard loss is that of the student's own classifier.

    Args:
        alpha: weight of the labels on the student's own classifier, at least 0; published 0.
        beta: weight of the term, at least 0; published 1.
        factor: by which the projector's inner layers are narrower than the teacher's map, at least 1; published 2.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a teacher whose logits no linear layer makes of its
            embedding.
    """

    reads = frozenset({"features", "embedding"})
    matches = frozenset({"last map"})

    def __init__(self, alpha: float = 0.0, beta: float = 1.0, factor: int = 2, label_smoothing: float = 0.0) -> None:
        super().__init__()
        require("alpha", alpha, "[0, inf)")
        require("beta", beta, "[0, inf)")
        require("method.factor", factor, "whole [1, inf)")
        require("label_smoothing", label_smoothing)
        self.alpha, self.beta, self.factor, self.label_smoothing = alpha, beta, factor, label_smoothing
        self.reads_labels = alpha > 0

    def setup(self, pair: Pair) -> None:
        teacher = pair.teacher_output
        if pair.teacher_net is None:
            raise ValueError("simkd needs the teacher itself, for its classifier, and there are only its outputs")
        on_maps = is_mean_of_last_map(pair.student) and is_mean_of_last_map(teacher)
        ours, theirs = (_represented(output, on_maps) for output in (pair.student, teacher))
        size = min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3])
        layout = (int(on_maps), int((theirs >= 0).all()), *size)
        classifier = classifier_head(pair.teacher_net, teacher)
        self.head = ReusedHead(ours.shape[1], max(1, theirs.shape[1] // self.factor), classifier, layout)

    def step(self, student: nn.Module, teacher: Teacher | None, batch: Batch) -> Step:
        if teacher is None:
            raise ValueError("SimKD needs a teacher")
        output = checked(student(batch.x), student)
        reused, projected = self.head(output)
        return Step(reused, self._terms(output, projected, checked(teacher(batch), teacher), batch))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return self._terms(student, self.head(student)[1], teacher, batch)

    def _terms(self, student: Output, projected: Tensor, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing),
            "simkd": self.beta * simkd_loss(projected, _represented(teacher, self.head.on_maps)),
        }

    def inference_net(self, student: nn.Module) -> nn.Module:
        return Reused(student, self.head)

    @classmethod
    def restored_net(cls, student: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network of `inference_net`, with initial weights, of the shapes in its state dict."""
        inner, channels = tensors["head.projector.0.weight"].shape[:2]
        classes, width = tensors["head.classifier.weight"].shape
        layout = tensors["head.layout"]
        if layout.shape != (4,) or layout.dtype != torch.int64 or int(layout[2:].min()) < 1:
            raise ValueError("head.layout must be four whole numbers, the last two at least 1")
        if not min(inner, channels, classes, width):
            raise ValueError("head.projector and head.classifier must have inputs and outputs")

        def head() -> ReusedHead:
            classifier = nn.Linear(width, classes, "head.classifier.bias" in tensors)
            return ReusedHead(channels, inner, classifier, layout.tolist())

        with torch.device("meta"):  # without memory, until the file is known to hold all of it
            expected = head().state_dict()
        for name, tensor in expected.items():
            if f"head.{name}" not in tensors or tensors[f"head.{name}"].shape != tensor.shape:
                raise ValueError(f"head.{name} is missing, or does not fit the layers beside it")
        return Reused(student, head())


def _represented(output: Output, on_maps: bool) -> Tensor:
    """What is projected or matched of an output, as maps (B, C, H, W)."""
    return output.features[-1] if on_maps else output.embedding[:, :, None, None]


def _block(width: int, channels: int, kernel: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(channels)
