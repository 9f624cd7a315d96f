"""A network for which the gradients of two halves of a batch average to exactly that of the whole."""

from torch import nn

from kd.models.cnn import CNN


class Plain(CNN):
    """The CNN without BatchNorm, whose statistics are shared between processes on GPUs only."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        for stage in self.stages:
            for i, layer in enumerate(stage):
                if isinstance(layer, nn.BatchNorm2d):
                    stage[i] = nn.Identity()
