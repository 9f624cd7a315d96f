"""An ensemble of networks as one network."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from kd.models.output import Output, probe


class Ensemble(nn.Module):
    """The mean of the networks' logits, with their features, preacts and embeddings side by side.

    The mean of logits is, at every temperature, the normalised geometric mean of the softened probabilities, one of the
    two that Hinton et al. 2015 (arXiv 1503.02531) name for ensembles; so whatever works on one teacher's logits works
    on these.

    Args:
        nets: K networks, at least one, with equally many classes.
        images: (B, C, H, W), on which their maps are compared: where these differ in number, height or width, the
            ensemble has none. Without images they are taken for alike.
    """

    def __init__(self, nets: Iterable[nn.Module], images: Tensor | None = None) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        if not self.nets:
            raise ValueError("an ensemble needs at least one network")
        shown = [] if images is None else [probe(net, images) for net in self.nets]
        self.alike = len({tuple(stage.shape[2:] for stage in output.features) for output in shown}) < 2

    def forward(self, x: Tensor) -> Output:
        """(B, in_channels, H, W) -> `Output`.

        Its logits (B, num_classes) are in fp32, its maps (B, C_1i + .. + C_Ki, H_i, W_i), its embedding
        (B, D_1 + .. + D_K). It has maps where those of all networks are alike, and preacts where all have them, too.
        """
        outputs: list[Output] = [net(x) for net in self.nets]
        logits, features, embeddings, preacts = zip(*outputs, strict=True)
        return Output(
            torch.stack(logits).float().mean(dim=0),
            _side_by_side(features) if self.alike else (),
            torch.cat(embeddings, dim=1),
            _side_by_side(preacts) if self.alike and all(preacts) else (),
        )


def _side_by_side(maps: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Every network's maps, concatenated stage by stage along the channels."""
    return tuple(torch.cat(stage, dim=1) for stage in zip(*maps, strict=True))
