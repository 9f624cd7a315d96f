"""MobileNetV2 for small images."""

from torch import nn

from kd.models.layers import Residual, Staged, bn_relu, check_images, conv, init_classifier, init_he
from kd.ranges import Size, require

STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
"""Stages by what they show: of each row of the paper's table 2 expansion, channels, blocks, stride of the first."""


class MobileNetV2(Staged):
    """MobileNetV2 of Sandler et al. 2018, arXiv 1801.04381, as in Tian et al. 2020 (CRD, arXiv 1910.10699).

    A 3x3 convolution with stride 2, 17 inverted residuals, a 1x1 convolution to 1280 channels, average pooling, a
    linear layer. An inverted residual widens by a 1x1 convolution, convolves each channel by itself, and narrows by
    another 1x1 convolution without an activation; so that a stage's feature and preact are the same linear map. At
    32 pixels the maps are 16, 8, 4 and 2 pixels high. He initialisation by the outgoing side, the linear layer's
    weights normal with a standard deviation of 0.01. At half width and 100 classes it has 812,836 parameters.

    Deviations from the paper, all as in CRD: the row of 24 channels does not halve the resolution; ReLU for ReLU6; the
    first block has a 1x1 convolution too, though it does not widen; no dropout; widths are cut to whole numbers and
    not rounded to multiples of 8.

    Args:
        width: factor of all numbers of channels but the last, in (0, 16]; published 0.5.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 16; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, width: float, num_classes: int, image_size: Size, in_channels: int = 3) -> None:
        require("width", width)
        if width * 16 < 1:
            raise ValueError(f"width must be at least 0.0625, so that every layer has a channel, got {width:g}")
        check_images(num_classes, image_size, halvings=4)

        stem = before = int(32 * width)
        stages = []
        for rows in STAGES:
            blocks = []
            for expansion, channels, count, first_stride in rows:
                for stride in (first_stride, *(1,) * (count - 1)):
                    blocks.append(_inverted_residual(before, int(channels * width), stride, expansion))
                    before = int(channels * width)
            stages.append(nn.Sequential(*blocks, nn.Identity()))  # no activation
        last = int(1280 * max(width, 1))
        super().__init__(
            nn.Sequential(conv(in_channels, stem, stride=2), *bn_relu(stem)),
            stages,
            nn.Linear(last, num_classes),
            nn.Sequential(conv(before, last, 1), *bn_relu(last)),
        )
        init_he(self)
        init_classifier(self.classifier)


def _inverted_residual(in_channels: int, channels: int, stride: int, expansion: int) -> nn.Module:
    hidden = in_channels * expansion
    convs = nn.Sequential(
        conv(in_channels, hidden, 1),
        *bn_relu(hidden),
        conv(hidden, hidden, stride=stride, groups=hidden),
        *bn_relu(hidden),
        conv(hidden, channels, 1),
        nn.BatchNorm2d(channels),
    )
    return Residual(convs) if (in_channels, stride) == (channels, 1) else convs
