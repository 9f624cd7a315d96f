"""The nine-layer residual network that is trained in a minute."""

from torch import Tensor, nn

from kd.models.layers import Residual, bn_relu, check_images, conv
from kd.models.output import Output
from kd.ranges import Size, require


class ResNet9(nn.Module):
    """The network of Page 2018, "How to train your ResNet", DAWNBench: 94 % on CIFAR-10 after 24 epochs.

    A 3x3 convolution to s channels, then three stages of conv-BN-ReLU and max pooling (2x2) with 2s, 4s and 8s
    channels, the first and the third with a residual block of two conv-BN-ReLU; max pooling over all places, a linear
    layer without bias. Logits are an eighth of that layer's, by way of the embedding. Torch's initial weights. At 10
    classes and s = 64 it has 6,573,120 parameters.

    It has no preacts: a residual block activates before its sum, and nothing does after it.

    Args:
        scale: s, at least 1; published 64.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 8; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, scale: int, num_classes: int, image_size: Size, in_channels: int = 3) -> None:
        require("scale", scale)
        check_images(num_classes, image_size, halvings=3)

        super().__init__()
        w = [scale * 2**i for i in range(4)]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(conv(in_channels, w[0]), *bn_relu(w[0])),
                nn.Sequential(*_pooled(w[0], w[1]), _residual(w[1])),
                nn.Sequential(*_pooled(w[1], w[2])),
                nn.Sequential(*_pooled(w[2], w[3]), _residual(w[3])),
            ]
        )
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(w[3], num_classes, bias=False)

    def forward(self, x: Tensor) -> Output:
        """(B, in_channels, H, W) normalised images -> `Output`.

        Its features are (B, s, H, W), (B, 2s, H/2, W/2), (B, 4s, H/4, W/4) and (B, 8s, H/8, W/8), sizes rounded down;
        its embedding (B, 8s) is an eighth of the last one's maxima.
        """
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        embedding = 0.125 * self.pool(x)
        return Output(self.classifier(embedding), tuple(features), embedding)


def _pooled(in_channels: int, channels: int) -> tuple[nn.Module, ...]:
    return conv(in_channels, channels), *bn_relu(channels), nn.MaxPool2d(2)


def _residual(channels: int) -> Residual:
    return Residual(
        nn.Sequential(conv(channels, channels), *bn_relu(channels), conv(channels, channels), *bn_relu(channels))
    )
