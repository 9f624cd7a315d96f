"""What every network returns."""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """One forward pass over a batch of B images into C classes."""

    logits: Tensor
    """(B, C), before softmax."""
    features: tuple[Tensor, ...]
    """One map per stage, shallow to deep, each (B, C_i, H_i, W_i), after the activation."""
    embedding: Tensor
    """(B, D), what the classifier head reads."""
