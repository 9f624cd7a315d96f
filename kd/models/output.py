"""What every network returns."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd.ranges import Size, sides


class Output(NamedTuple):
    """One forward pass over a batch of B images into C classes."""

    logits: Tensor
    """(B, C), before softmax."""
    features: tuple[Tensor, ...]
    """One map per stage, shallow to deep, each (B, C_i, H_i, W_i), after the activation."""
    embedding: Tensor
    """(B, D), what the classifier head reads."""
    preacts: tuple[Tensor, ...] = ()
    """The same maps before the activation, where the network has them; empty where it has not."""


def checked(output: object, source: object) -> Output:
    """Return what a network returned, if it is an `Output`.

    Args:
        output: what it returned.
        source: the network, named by its class in the error.

    Raises:
        TypeError: if it is anything else.
    """
    if isinstance(output, Output):
        return output
    kind = type(output).__name__
    raise TypeError(
        f"{type(source).__name__} returned {'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}, not a kd.Output; "
        "wrap it with kd.wrap(net)"
    )


def probe_images(size: Size, channels: int = 3) -> Tensor:
    """Return two images, (2, C, H, W): a dark and a bright one.

    They differ, so that a method can tell from their outputs how these hang together.

    Args:
        size: height and width in pixels.
        channels: of an image.
    """
    height, width = sides("image_size", size)
    return torch.linspace(-1, 1, 2 * channels * height * width).view(2, channels, height, width)


@torch.no_grad()
def probe(net: nn.Module, images: Size | Tensor, channels: int = 3) -> Output:
    """Return the network's output in eval mode, from a copy, so that the network itself stays as it was.

    Args:
        net: the network.
        images: (B, C, H, W), on its device; or the height and width in pixels of `probe_images`.
        channels: of those.

    Raises:
        TypeError: if the network returns anything but an `Output`.
    """
    if not isinstance(images, Tensor):
        images = probe_images(images, channels)
    return checked(copy.deepcopy(net).eval()(images), net)


def multiply_adds(net: nn.Module, images: Size, channels: int = 3) -> int:
    """Return the multiplications of one image that go with an addition, in convolutions and products of matrices.

    Half of the FLOPs that torch counts; what torch has no count for, such as an operator of one's own, is none.

    Args:
        net: the network, which stays as it was.
        images: height and width in pixels.
        channels: of an image.
    """
    from torch.utils.flop_counter import FlopCounterMode  # loads triton

    with FlopCounterMode(display=False) as counter:
        output = probe(net, images, channels)
    return int(counter.get_total_flops()) // (2 * len(output.logits))


def parameter_count(net: nn.Module) -> int:
    """Return the number of trainable and frozen parameters, without buffers."""
    return sum(p.numel() for p in net.parameters())


def preact_and_feature(stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a stage, an `nn.Sequential` that ends with its activation; return its maps before and after that.

    The activation must not work in place, or the first would be lost.
    """
    *layers, activation = stage.children()
    for layer in layers:
        x = layer(x)
    return x, activation(x)
