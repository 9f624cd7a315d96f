"""Densely connected networks for small images, with bottlenecks and compression."""

import torch
from torch import Tensor, nn

from kd.models.layers import Staged, bn_relu, check_images, conv, init_he
from kd.ranges import Size, require


class DenseNet(Staged):
    """DenseNet-BC of Huang et al. 2017, arXiv 1608.06993.

    A 3x3 convolution to 2k channels, then three blocks of n layers, each of which adds k channels to all those before;
    between blocks a 1x1 convolution to half the channels and average pooling (2x2). A layer is BN-ReLU-conv1x1 to 4k
    channels, BN-ReLU-conv3x3. BN-ReLU, average pooling, a linear layer. He initialisation by the outgoing side. At 10
    classes DenseNet-BC-100-12 has 769,162 parameters.

    A stage's map is what follows a block's BN-ReLU, which the next transition reads.

    Args:
        depth: d = 6n + 4 layers with weights, at least 10.
        growth: k, at least 1.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 4; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, depth: int, growth: int, num_classes: int, image_size: Size, in_channels: int = 3) -> None:
        require("depth", depth)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 with n at least 1, such as 10, 40 or 100, got {depth}")
        require("growth", growth)
        check_images(num_classes, image_size, halvings=2)

        n, channels, stages = (depth - 4) // 6, 2 * growth, []
        for i in range(3):
            transition: list[nn.Module] = []
            if i > 0:
                transition = [conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
            layers = [_Layer(channels + growth * place, growth) for place in range(n)]
            channels += growth * n
            # The ReLU is not in place, or the map before it would be lost.
            stages.append(nn.Sequential(*transition, *layers, nn.BatchNorm2d(channels), nn.ReLU()))
        super().__init__(conv(in_channels, 2 * growth), stages, nn.Linear(channels, num_classes))
        init_he(self)
        nn.init.zeros_(self.classifier.bias)


class _Layer(nn.Module):
    """BN-ReLU-conv1x1-BN-ReLU-conv3x3, whose k channels are put beside those it read."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *bn_relu(in_channels),
            conv(in_channels, 4 * growth, 1),
            *bn_relu(4 * growth),
            conv(4 * growth, growth),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.convs(x)], dim=1)
