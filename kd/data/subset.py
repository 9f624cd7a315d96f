"""A part of the training images, and wrong labels: for studies of few or badly labelled images."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kd.errors import UserError
from kd.hashing import derive


def stratified_part(y: Tensor, index: Tensor, fraction: float, seed: int, classes: Sequence[str]) -> Tensor:
    """Return some of the images: sorted, `fraction` of each class, rounded. A larger part holds the smaller ones.

    Args:
        y: (N,), labels of all images.
        index: (n,), sorted, the images to choose from.
        fraction: in (0, 1].
        seed: decides which.
        classes: their names, for the error.

    Raises:
        UserError: if no image of a class is left.
    """
    if fraction == 1:
        return index
    generator = torch.Generator().manual_seed(derive("fraction", seed))
    labels = y[index]
    sizes: list[int] = labels.bincount(minlength=len(classes)).tolist()
    lost = [label for label, size in enumerate(sizes) if size and not round(fraction * size)]
    if lost:
        more = f" and {len(lost) - 1:,} more classes" if len(lost) > 1 else ""
        least = smallest_share(min(size for size in sizes if size))
        raise UserError(
            f"data.fraction={fraction:g} leaves no training image of {classes[lost[0]]}{more}; give at least {least:g}"
        )
    return index[drawn_of_each(labels, lambda size: round(fraction * size), generator)]


def drawn_of_each(y: Tensor, count: Callable[[int], int], generator: torch.Generator) -> Tensor:
    """Choose images of each class at random: (N,) bool.

    Args:
        y: (N,), labels.
        count: how many of a class, by its size.
        generator: of the choice.
    """
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in range(int(y.max()) + 1):
        members = (y == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: count(len(members))]]] = True
    return chosen


def noisy_labels(y: Tensor, index: Tensor, noise: float, seed: int, num_classes: int) -> Tensor:
    """Return labels of which a share is wrong, by symmetric noise: each other class is as likely.

    Exactly `noise` of the images, rounded, get another class than their own; other conventions draw from all classes,
    so that noise * (C - 1) / C are wrong. With more noise, what was wrong stays wrong in the same way.

    Source: Patrini et al. 2017, arXiv 1609.03683.

    Args:
        y: (N,), labels of all images; not changed.
        index: (n,), the images whose labels may become wrong.
        noise: in [0, 1).
        seed: decides which, and what they become.
        num_classes: C, at least 2.
    """
    generator = torch.Generator().manual_seed(derive("noise", seed))
    chosen = index[torch.randperm(len(index), generator=generator)]
    shift = torch.randint(1, num_classes, (len(index),), generator=generator)
    wrong = round(noise * len(index))
    y = y.clone()
    y[chosen[:wrong]] = (y[chosen[:wrong]] + shift[:wrong]) % num_classes
    return y


def smallest_share(size: int) -> float:
    """Return the smallest share, to two digits, of which a class of that many images has one."""
    least = 0.5 / size  # an exact half is rounded to even, here 0
    unit = 10.0 ** (math.floor(math.log10(least)) - 1)
    return round(unit * (math.floor(least / unit) + 1), 12)
