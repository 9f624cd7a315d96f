"""The plain CNN that teacher and student share; only its width tells them apart."""

from torch import Tensor, nn

from kd.models.layers import check_choice, check_images
from kd.models.output import Output, preact_and_feature
from kd.ranges import Size, require, sides

ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU}


class CNN(nn.Module):
    """Two stages of two 3x3 convolutions, then one hidden linear layer.

    A stage is conv-BN-act-conv-BN-act, followed by max pooling (2x2) and dropout; the second stage is twice as
    wide as the first. At 32x32 pixels and 10 classes, `scale=32` has 4,271,530 parameters (the teacher) and
    `scale=16` has 1,071,066 (the student).

    Args:
        scale: channels of the first stage, s; the second has 2s and the hidden layer 32s. At least 1.
        num_classes: C, at least 2.
        image_size: height and width of the input in pixels, multiples of 4; one number for squares.
        activation: "relu" or "elu".
        conv_dropout: probability of dropping an element after each stage, in [0, 1).
        head_dropout: the same for the hidden layer, in [0, 1).
        in_channels: of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        scale: int,
        num_classes: int,
        image_size: Size,
        activation: str,
        conv_dropout: float,
        head_dropout: float,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require("scale", scale)
        check_images(num_classes, image_size, halvings=2)
        height, width = sides("image_size", image_size)
        if height % 4 or width % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
        check_choice("activation", activation, ACTIVATIONS)
        require("conv_dropout", conv_dropout)
        require("head_dropout", head_dropout)

        act = ACTIVATIONS[activation]
        self.stages = nn.ModuleList([_stage(in_channels, scale, act), _stage(scale, 2 * scale, act)])
        self.downsample = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(conv_dropout))
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * scale * (height // 4) * (width // 4), 32 * scale),
            act(inplace=True),
            nn.Dropout(head_dropout),
        )
        self.classifier = nn.Linear(32 * scale, num_classes)

    def forward(self, x: Tensor) -> Output:
        """(B, in_channels, H, W) normalised images -> `Output` with features (B, s, H, W) and (B, 2s, H/2, W/2)."""
        features, preacts = [], []
        for stage in self.stages:
            preact, feature = preact_and_feature(stage, x)
            features.append(feature)
            preacts.append(preact)
            x = self.downsample(feature)
        embedding = self.hidden(x)
        return Output(self.classifier(embedding), tuple(features), embedding, tuple(preacts))


def _stage(in_channels: int, channels: int, act: type[nn.ReLU] | type[nn.ELU]) -> nn.Sequential:
    # The convolutions have biases although BatchNorm makes them redundant: so has the network whose results are
    # to be compared, and the parameter counts are quoted with them.
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        act(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        act(),  # not in place, or the map before it would be lost
    )
