"""Several networks that answer as one."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kd.models.output import Output


class Ensemble(nn.Module):
    """Means of logits, features and embeddings side by side.

    The mean of logits is, at every temperature, the normalised geometric mean of the softened probabilities, one of the
    two that Hinton et al. 2015 (arXiv 1503.02531) name for ensembles; so whatever works on one teacher's logits works
    on these.

    Args:
        nets: K networks, at least one, with equally many classes and features of equal size.
    """

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        if not self.nets:
            raise ValueError("an ensemble needs at least one network")

    def forward(self, x: Tensor) -> Output:
        """(B, 3, H, W) -> `Output`.

        Its logits (B, C) are in fp32, its maps (B, C_1i + .. + C_Ki, H_i, W_i), its embedding (B, D_1 + .. + D_K).
        """
        outputs: list[Output] = [net(x) for net in self.nets]
        logits, features, embeddings = zip(*outputs, strict=True)
        maps = tuple(torch.cat(stage, dim=1) for stage in zip(*features, strict=True))
        return Output(torch.stack(logits).float().mean(dim=0), maps, torch.cat(embeddings, dim=1))
