"""Residual networks for small images, plain and with squeeze-and-excitation."""

from collections.abc import Callable

from torch import Tensor, nn

from kd.models.layers import Residual, Staged, bn_relu, check_images, conv, init_he, staged
from kd.ranges import Size, require


class ResNet(Staged):
    """ResNet-d of He et al. 2015, arXiv 1512.03385, section 4.2, and its wide forms such as resnet8x4.

    A 3x3 convolution, then three stages of n blocks with s, 2s and 4s channels, the second and the third at half the
    resolution of the one before; average pooling, a linear layer. A block is conv-BN-ReLU-conv-BN beside a shortcut,
    ReLU after their sum. He initialisation by the outgoing side.

    Deviations: where a stage widens, the shortcut is a 1x1 convolution with BatchNorm (option B of the paper, which
    uses option A on CIFAR). So have the networks of Tian et al. 2020 (CRD, arXiv 1910.10699) and those whose parameters
    are published exactly.

    Args:
        depth: d = 6n + 2 layers with weights, shortcuts left out; at least 8.
        stem: channels of the first convolution, at least 1.
        scale: s, channels of the first stage, at least 1.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 4; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self, depth: int, stem: int, scale: int, num_classes: int, image_size: Size, in_channels: int = 3
    ) -> None:
        check_images(num_classes, image_size, halvings=2)
        stages = _stages(depth, stem, scale, basic_block)
        first = nn.Sequential(conv(in_channels, stem), *bn_relu(stem))
        super().__init__(first, stages, nn.Linear(4 * scale, num_classes))
        init_he(self)


class SEResNet(Staged):
    """ResNet-d with squeeze-and-excitation in each block, Hu et al. 2018, arXiv 1709.01507.

    A gate in (0, 1) for every channel, made of the block's mean over all places, scales the block before the sum. At
    10 classes SE-ResNet-56 has 862,889 parameters.

    Args:
        reduction: r, how many times fewer hidden units a gate has than channels; at least 1, published 16.
        depth, stem, scale, num_classes, image_size, in_channels: as in `ResNet`.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        reduction: int,
        depth: int,
        stem: int,
        scale: int,
        num_classes: int,
        image_size: Size,
        in_channels: int = 3,
    ) -> None:
        require("reduction", reduction)
        check_images(num_classes, image_size, halvings=2)
        if reduction > scale:
            raise ValueError(f"reduction must be at most scale={scale}, so that a unit is left, got {reduction}")

        def gated_block(before: int, channels: int, stride: int) -> Residual:
            return basic_block(before, channels, stride, Gate(channels, channels // reduction))

        stages = _stages(depth, stem, scale, gated_block)
        first = nn.Sequential(conv(in_channels, stem), *bn_relu(stem))
        super().__init__(first, stages, nn.Linear(4 * scale, num_classes))
        init_he(self)


class Gate(nn.Module):
    """Squeeze-and-excitation: each channel times a number in (0, 1) that the means of all channels decide."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.excite = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.excite(x.mean(dim=(2, 3), keepdim=True))
        return gated


def basic_block(in_channels: int, channels: int, stride: int, *gate: nn.Module) -> Residual:
    """Return conv-BN-ReLU-conv-BN beside its shortcut; the ReLU after the sum is the stage's."""
    convs = nn.Sequential(
        conv(in_channels, channels, stride=stride),
        *bn_relu(channels),
        conv(channels, channels),
        nn.BatchNorm2d(channels),
        *gate,
    )
    return Residual(convs, projection(in_channels, channels, stride))


def projection(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    """Return the shortcut where a block changes channels or resolution: a 1x1 convolution with BatchNorm."""
    if (in_channels, stride) == (channels, 1):
        return None
    return nn.Sequential(conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


def _stages(depth: int, stem: int, scale: int, block: Callable[[int, int, int], Residual]) -> list[nn.Sequential]:
    """Return three stages of blocks, each made from its channels before and after and its stride."""
    require("depth", depth)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n at least 1, such as 8, 20 or 56, got {depth}")
    require("stem", stem)
    require("scale", scale)
    n, w = (depth - 2) // 6, (stem, scale, 2 * scale, 4 * scale)
    return [
        staged([block(w[i], w[i + 1], 2 if i else 1), *(block(w[i + 1], w[i + 1], 1) for _ in range(n - 1))])
        for i in range(3)
    ]
