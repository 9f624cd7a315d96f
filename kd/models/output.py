"""What every network returns."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """One forward pass over a batch of B images into C classes."""

    logits: Tensor
    """(B, C), before softmax."""
    features: tuple[Tensor, ...]
    """One map per stage, shallow to deep, each (B, C_i, H_i, W_i), after the activation."""
    embedding: Tensor
    """(B, D), what the classifier head reads."""


@torch.no_grad()
def probe(net: nn.Module, image_size: int) -> Output:
    """What the network returns for two blank images of image_size x image_size pixels; it is left as it was."""
    output: Output = copy.deepcopy(net).eval()(torch.zeros(2, 3, image_size, image_size))
    return output
