"""ShuffleNet, the first version, for small images."""

import torch
from torch import Tensor, nn

from kd.models.layers import Residual, Staged, bn_relu, check_choice, check_images, conv, staged
from kd.ranges import Size

WIDTHS = {1: 144, 2: 200, 3: 240}
"""Channels of the first stage by groups, as in table 1 of the paper."""
BLOCKS = (4, 8, 4)


class ShuffleNetV1(Staged):
    """ShuffleNet of Zhang et al. 2018, arXiv 1707.01083, as in Tian et al. 2020 (CRD, arXiv 1910.10699).

    A 1x1 convolution to 24 channels, then stages of 4, 8 and 4 blocks with w, 2w and 4w channels, each at half the
    resolution of the one before; average pooling, a linear layer. A block is a grouped 1x1 convolution, a shuffle of
    the channels, a 3x3 convolution of each channel by itself and another grouped 1x1 convolution; beside a shortcut,
    ReLU after their sum. A stage's first block halves: its shortcut is average pooling, side by side with the rest.
    With 3 groups and 100 classes it has 949,258 parameters.

    Deviations from the paper, as in CRD: the stem neither halves nor pools; a ReLU after the 3x3 convolution; a stage's
    first block has a quarter of the channels that it adds inside, and not of all; torch's initial weights.

    Args:
        groups: of the 1x1 convolutions: 1, 2 or 3, published 3. They decide w: 144, 200 or 240.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 8; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, groups: int, num_classes: int, image_size: Size, in_channels: int = 3) -> None:
        check_choice("groups", groups, WIDTHS)
        check_images(num_classes, image_size, halvings=3)

        before, stages = 24, []
        for i, count in enumerate(BLOCKS):
            width = WIDTHS[groups] * 2**i
            # The very first one reads too few channels to be grouped, as in the paper.
            first = _Downsample(_convs(before, (width - before) // 4, width - before, groups if i else 1, groups, 2))
            others = (Residual(_convs(width, width // 4, width, groups, groups)) for _ in range(count - 1))
            stages.append(staged([first, *others]))
            before = width
        super().__init__(nn.Sequential(conv(in_channels, 24, 1), *bn_relu(24)), stages, nn.Linear(before, num_classes))


class _Downsample(nn.Module):
    """Layers of stride 2 side by side with the average of the map that they read."""

    def __init__(self, convs: nn.Module) -> None:
        super().__init__()
        self.convs, self.shortcut = convs, nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.convs(x), self.shortcut(x)], dim=1)


def _convs(before: int, hidden: int, channels: int, first_groups: int, groups: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv(before, hidden, 1, groups=first_groups),
        *bn_relu(hidden),
        nn.ChannelShuffle(first_groups),
        conv(hidden, hidden, stride=stride, groups=hidden),
        *bn_relu(hidden),
        conv(hidden, channels, 1, groups=groups),
        nn.BatchNorm2d(channels),
    )
