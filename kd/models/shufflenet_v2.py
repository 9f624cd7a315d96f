"""ShuffleNetV2 for small images."""

import torch
from torch import Tensor, nn

from kd.models.layers import Staged, bn_relu, check_choice, check_images, conv, staged
from kd.ranges import Size

WIDTHS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024), 2.0: (224, 488, 976, 2048)}
"""Channels of the stages and of the last convolution by width, as in table 5 of the paper; 224 as in its code."""
BLOCKS = (4, 8, 4)


class ShuffleNetV2(Staged):
    """ShuffleNetV2 of Ma et al. 2018, arXiv 1807.11164, as in Tian et al. 2020 (CRD, arXiv 1910.10699).

    A 1x1 convolution to 24 channels, then stages of 4, 8 and 4 blocks, each at half the resolution of the one before; a
    1x1 convolution to 1024 channels, average pooling, a linear layer. A block leaves one half of the channels as they
    are, runs three convolutions on the other, and shuffles both; a stage's first block runs on all channels twice.
    At width 1 and 100 classes it has 1,355,528 parameters.

    Deviations from the paper, as in CRD: the stem is a 1x1 convolution that neither halves nor pools; torch's initial
    weights. A preact is the shuffled map before the last block's ReLU; the half that is left as it is has been through
    a ReLU before, so that the feature is the activated preact.

    Args:
        width: factor of the numbers of channels: 0.5, 1, 1.5 or 2; published 1.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 8; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, width: float, num_classes: int, image_size: Size, in_channels: int = 3) -> None:
        check_choice("width", width, WIDTHS)
        check_images(num_classes, image_size, halvings=3)

        *widths, last = WIDTHS[width]
        stages = [
            staged([_Downsample(before, channels), *(_Block(channels) for _ in range(count - 1))])
            for before, channels, count in zip((24, *widths), widths, BLOCKS, strict=False)
        ]
        super().__init__(
            nn.Sequential(conv(in_channels, 24, 1), *bn_relu(24)),
            stages,
            nn.Linear(last, num_classes),
            nn.Sequential(conv(widths[-1], last, 1), *bn_relu(last)),
        )


class _Block(nn.Module):
    """Three convolutions on the second half of the channels, the first half left as it is, both shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = _convs(channels // 2, channels // 2, 1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        shuffled: Tensor = self.shuffle(torch.cat([kept, self.convs(changed)], dim=1))
        return shuffled


class _Downsample(nn.Module):
    """Two branches of stride 2 that read all channels, side by side and shuffled."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left = nn.Sequential(
            conv(in_channels, in_channels, stride=2, groups=in_channels),
            nn.BatchNorm2d(in_channels),
            conv(in_channels, half, 1),
            nn.BatchNorm2d(half),
        )
        self.right = _convs(in_channels, half, 2)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        shuffled: Tensor = self.shuffle(torch.cat([self.left(x), self.right(x)], dim=1))
        return shuffled


def _convs(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv(in_channels, channels, 1),
        *bn_relu(channels),
        conv(channels, channels, stride=stride, groups=channels),
        nn.BatchNorm2d(channels),
        conv(channels, channels, 1),
        nn.BatchNorm2d(channels),
    )
