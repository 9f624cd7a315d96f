"""VGG with BatchNorm for small images."""

from torch import Tensor, nn

from kd.models.layers import Staged, bn_relu, check_choice, check_images, init_classifier, init_he
from kd.models.output import Output
from kd.ranges import Size, sides

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions a block by depth, the three linear layers of the paper counted: 11 to 19 are its A, B, D and E."""
WIDTHS = (64, 128, 256, 512, 512)


class VGG(Staged):
    """VGG of Simonyan and Zisserman 2015, arXiv 1409.1556, as in Tian et al. 2020 (CRD, arXiv 1910.10699).

    Five blocks of 3x3 convolutions with BatchNorm and ReLU, 64, 128, 256, 512 and 512 channels; average pooling, a
    linear layer. The map of the first is not shown: CRD and ReviewKD match those of the other four, the stages. Each of
    these starts with max pooling (2x2), the last only where both sides have 64 pixels or more. He initialisation by the
    outgoing side, the linear layer's weights normal with a standard deviation of 0.01. At 100 classes VGG-8 has
    3,965,028 parameters.

    Deviations from the paper: BatchNorm, one linear layer for three, no dropout. The convolutions have biases although
    BatchNorm makes them redundant, as published.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, at least 8; one number for squares. No weight
            depends on it.
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(self, depth: int, num_classes: int, image_size: Size, in_channels: int = 3) -> None:
        check_choice("depth", depth, CONVOLUTIONS)
        check_images(num_classes, image_size, halvings=3)

        blocks, smaller = [], min(sides("image_size", image_size))
        widths = in_channels, *WIDTHS
        for i, (before, width, count) in enumerate(zip(widths, WIDTHS, CONVOLUTIONS[depth], strict=False)):
            pooled = i in (1, 2, 3) or (i == 4 and smaller >= 64)
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if pooled else []
            for channels in (before, *(width,) * (count - 1)):
                layers += [nn.Conv2d(channels, width, 3, padding=1), *bn_relu(width)]
            blocks.append(nn.Sequential(*layers[:-1], nn.ReLU()))  # not in place, or the map before it would be lost
        super().__init__(nn.Identity(), blocks, nn.Linear(WIDTHS[-1], num_classes))
        init_he(self)
        init_classifier(self.classifier)

    def forward(self, x: Tensor) -> Output:
        """As `Staged.forward`, with the maps of the four stages."""
        output = super().forward(x)
        return output._replace(features=output.features[1:], preacts=output.preacts[1:])
