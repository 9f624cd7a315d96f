"""What the families of networks have in common: their common shape, blocks, initial weights, checks."""

from collections.abc import Iterable

from torch import Tensor, nn

from kd.models.output import Output, preact_and_feature
from kd.ranges import Size, sides


class Staged(nn.Module):
    """A stem, stages whose maps are shown, a neck, the mean over all places, and a linear classifier.

    Args:
        stem: (B, C, H, W) -> what the first stage takes.
        stages: each an `nn.Sequential` that ends with its activation, which does not work in place; with `nn.Identity`
            where a stage ends linear.
        classifier: reads the mean of the neck's map over all places, which is the embedding.
        neck: layers between the last stage and that mean.
    """

    def __init__(
        self, stem: nn.Module, stages: Iterable[nn.Sequential], classifier: nn.Linear, neck: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.neck, self.classifier = neck or nn.Identity(), classifier

    def forward(self, x: Tensor) -> Output:
        """(B, C, H, W) normalised images -> `Output`, with one map before and one after each stage's activation."""
        x = self.stem(x)
        features, preacts = [], []
        for stage in self.stages:
            preact, x = preact_and_feature(stage, x)
            features.append(x)
            preacts.append(preact)
        embedding = self.neck(x).mean(dim=(2, 3))
        return Output(self.classifier(embedding), tuple(features), embedding, tuple(preacts))


class Residual(nn.Module):
    """Layers beside a shortcut, added."""

    def __init__(self, convs: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.convs, self.shortcut = convs, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.convs(x) + self.shortcut(x)
        return total


def conv(in_channels: int, channels: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without a bias that keeps height and width at stride 1."""
    return nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, groups=groups, bias=False)


def bn_relu(channels: int) -> tuple[nn.BatchNorm2d, nn.ReLU]:
    """Return BatchNorm and a ReLU that works in place."""
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def staged(blocks: Iterable[nn.Module]) -> nn.Sequential:
    """Return a stage of blocks with a ReLU after each; the last one is not in place, or the map before it is lost."""
    first, *others = blocks
    pairs = (layer for block in others for layer in (nn.ReLU(inplace=True), block))
    return nn.Sequential(first, *pairs, nn.ReLU())


def init_he(net: nn.Module) -> None:
    """Draw the weights of all convolutions as in He et al. 2015, arXiv 1502.01852, by the outgoing side.

    Biases become 0. BatchNorm and linear layers stay as they are.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(classifier: nn.Linear) -> None:
    """Draw the weights from a normal distribution with standard deviation 0.01; biases become 0."""
    nn.init.normal_(classifier.weight, 0, 0.01)
    nn.init.zeros_(classifier.bias)


def check_images(num_classes: int, image_size: Size, halvings: int) -> None:
    """Refuse fewer than two classes, and images too small for a network that halves their size so many times.

    Raises:
        ValueError: naming the setting, its range and its value.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if min(sides("image_size", image_size)) < 2**halvings:
        raise ValueError(
            f"image_size must be at least {2**halvings} for a network that halves it {halvings} times, got {image_size}"
        )


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value for which there is no published network.

    Raises:
        ValueError: naming the setting, its choices and its value.
    """
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value}")
