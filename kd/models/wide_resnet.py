"""Wide residual networks, which differ in depth and width alone."""

from torch import nn

from kd.models.layers import Residual, Staged, bn_relu, check_images, conv, init_he
from kd.ranges import Size, require


class WideResNet(Staged):
    """WRN-d-k of Zagoruyko and Komodakis 2016, arXiv 1605.07146, with pre-activation.

    A 3x3 convolution to 16 channels, then three groups of n blocks with 16k, 32k and 64k channels, the second and the
    third at half the resolution of the one before; BN-ReLU, average pooling, a linear layer. At 10 classes WRN-22-2
    has 1,079,642 parameters and WRN-16-8 has 10,961,370. Its features are (B, 16k, H, W), (B, 32k, H/2, W/2) and
    (B, 64k, H/4, W/4), sizes rounded up; its embedding (B, 64k) is the mean of the last one.

    Args:
        depth: d = 6n + 4 convolutions, those in the three shortcuts included; at k = 1, with two shortcuts, one fewer.
            At least 10.
        widen: k, how many times as wide as a plain residual network; at least 1.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 1; one number for squares. No weight
            depends on it.
        in_channels: of the images.
        dropout: probability of dropping an element between the two convolutions of a block, in [0, 1).

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self, depth: int, widen: int, num_classes: int, image_size: Size, dropout: float, in_channels: int = 3
    ) -> None:
        require("depth", depth)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 with n at least 1, such as 10, 16 or 22, got {depth}")
        require("widen", widen)
        check_images(num_classes, image_size, halvings=0)
        require("dropout", dropout)

        n = (depth - 4) // 6
        w = (16, 16 * widen, 32 * widen, 64 * widen)
        # Where a block widens, shortcut and convolutions read the same activated map. It is the end of what comes
        # before and not the beginning of the block: that is the map which the stage shows as its feature.
        super().__init__(
            nn.Sequential(conv(in_channels, w[0]), *(bn_relu(w[0]) if w[0] != w[1] else ())),
            [_stage(w[0], w[1], n, 1, dropout), _stage(w[1], w[2], n, 2, dropout), _stage(w[2], w[3], n, 2, dropout)],
            nn.Linear(w[3], num_classes),
        )
        init_he(self)
        nn.init.zeros_(self.classifier.bias)


def _block(in_channels: int, channels: int, stride: int, dropout: float) -> Residual:
    """Return BN-ReLU-conv-BN-ReLU-dropout-conv beside a shortcut; without the first BN-ReLU where it widens."""
    widens = in_channels != channels
    convs = nn.Sequential(
        *(() if widens else bn_relu(in_channels)),
        conv(in_channels, channels, stride=stride),
        *bn_relu(channels),
        nn.Dropout(dropout),
        conv(channels, channels),
    )
    return Residual(convs, conv(in_channels, channels, 1, stride) if widens else None)


def _stage(in_channels: int, channels: int, n: int, stride: int, dropout: float) -> nn.Sequential:
    blocks = (_block(channels, channels, 1, dropout) for _ in range(n - 1))
    # The ReLU is not in place, or the map before it would be lost.
    return nn.Sequential(_block(in_channels, channels, stride, dropout), *blocks, nn.BatchNorm2d(channels), nn.ReLU())
