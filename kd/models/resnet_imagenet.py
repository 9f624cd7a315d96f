"""The residual networks made for ImageNet, with a stem for small images."""

from torch import nn

from kd.models.layers import Residual, Staged, bn_relu, check_choice, check_images, conv, init_he, staged
from kd.models.resnet import basic_block, projection
from kd.ranges import Size, require

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks a stage by depth; from 50 layers on with bottlenecks."""


class ImageNetResNet(Staged):
    """ResNet-18, -34 and -50 of He et al. 2015, arXiv 1512.03385, table 1, for images of CIFAR's size.

    The stem is one 3x3 convolution at full resolution, without pooling. Four stages with s, 2s, 4s and 8s channels,
    four times as many in ResNet-50, each after the first at half the resolution of the one before; average pooling,
    a linear layer. He initialisation by the outgoing side. At 10 classes ResNet-18 has 11,173,962 parameters.

    Deviations: the stem, as everywhere on CIFAR; ResNet-50 halves the resolution in a block's 3x3 convolution and not
    in its first 1x1, as in torchvision and in Tian et al. 2020 (CRD, arXiv 1910.10699).

    Args:
        depth: 18, 34 or 50.
        scale: s, channels of stem and first stage, at least 1; published 64.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 8; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, depth: int, scale: int, num_classes: int, image_size: Size, in_channels: int = 3) -> None:
        check_choice("depth", depth, BLOCKS)
        require("scale", scale)
        check_images(num_classes, image_size, halvings=3)

        block, expansion = (bottleneck, 4) if depth >= 50 else (basic_block, 1)
        stages, before = [], scale
        for i, blocks in enumerate(BLOCKS[depth]):
            width, made = scale * 2**i, []
            for stride in (1 if i == 0 else 2, *(1,) * (blocks - 1)):
                made.append(block(before, width, stride))
                before = expansion * width
            stages.append(staged(made))
        stem = nn.Sequential(conv(in_channels, scale), *bn_relu(scale))
        super().__init__(stem, stages, nn.Linear(before, num_classes))
        init_he(self)


def bottleneck(in_channels: int, channels: int, stride: int) -> Residual:
    """Return 1x1, 3x3 and 1x1 convolutions beside a shortcut, with four times as many channels at the end."""
    convs = nn.Sequential(
        conv(in_channels, channels, 1),
        *bn_relu(channels),
        conv(channels, channels, stride=stride),
        *bn_relu(channels),
        conv(channels, 4 * channels, 1),
        nn.BatchNorm2d(4 * channels),
    )
    return Residual(convs, projection(in_channels, 4 * channels, stride))
