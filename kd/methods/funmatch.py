"""Function matching: Beyer et al. 2021, arXiv 2106.05237."""

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import soft_loss
from kd.methods.base import Method, Step, Teacher
from kd.models.output import Output
from kd.ranges import require


class FunMatch(Method):
    r"""soft, on images that are mixed of two.

    The student is to be the teacher's function, wherever it is looked at: both networks see the same mixed images. Each
    image $x_i$ (C, H, W) of a batch is mixed with another one of it:

    $$
    \tilde x_i = s_i x_i + (1 - s_i) x_j, \qquad \mathrm{soft} = \frac{T^2}{B} \sum_i \mathrm{KL}(p^t_i \Vert p^s_i),
    \qquad p = \mathrm{softmax}(z / T)
    $$

    j is drawn as a permutation, and the share $s_i$ from [0, 1] uniformly for each image. Of the two, $x_i$ is the one
    with the larger share: its label is what the training accuracy is measured by; the loss has no use for labels.

    Scaling:
        A mean over the batch, independent of B.

    Use:
        With long training: the paper's other half is patience, 1,200 epochs and more on ImageNet. The teacher's logits
        for mixed images are no mixture of its logits for images: they cannot be stored, and cost a pass a step. Images
        that `data.augment` has mixed already are mixed again.

    Deviations:
        * Authors' code draws one share for a batch, and has Adam and crops that vary in scale. Here: a share for each
          image; augmentation and recipe are the run's.

    Args:
        T: temperature of both softmaxes, in [0.001, 1e6]; published 1 for ImageNet, from 1 to 10 for small data sets.

    Raises:
        ValueError: for a value outside its range.
    """

    own_images = True
    reads_labels = False

    def __init__(self, T: float = 1.0) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        self.T = T

    def step(self, student: nn.Module, teacher: Teacher | None, batch: Batch) -> Step:
        return super().step(student, teacher, mixed(batch))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {"soft": soft_loss(student.logits, teacher.logits, self.T)}


def mixed(batch: Batch) -> Batch:
    """Mix each image with another of its batch, which has the smaller share; `index` and `view` become -1.

    Source: mixup, Zhang et al. 2017, arXiv 1710.09412.
    """
    x = batch.x
    share = torch.rand(len(x), 1, 1, 1, device=x.device)
    share = torch.maximum(share, 1 - share).to(x.dtype)
    other = torch.randperm(len(x), device=x.device)
    return Batch.of(share * x + (1 - share) * x[other], batch.y)
