"""Mixup and cutmix: each training image is mixed with another of its step, and so is its label."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kd.data.batch import on_device
from kd.ranges import Size, sides


@dataclass(frozen=True)
class Mix:
    """How the first B images of a step are mixed with others of it."""

    share: Tensor
    """(B,), float in [0, 1]: weight of the first image wherever the box is not."""
    box: Tensor
    """(B, 4), int64: rows [top, bottom) and columns [left, right) where the second image is shown alone; empty for
    mixup."""
    partners: Tensor
    """(B,), int64: with which of the step's images each is mixed."""

    def part(self, part: Tensor, partners: Tensor) -> "Mix":
        """Return the same for some of the images, whose partners have other places now."""
        return Mix(self.share[part], self.box[part], partners)

    def blend(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W); also return the first one's share of each, (B,), by area."""
        top, bottom, left, right = on_device(self.box, first.device).T[:, :, None, None]
        rows, columns = (torch.arange(side, device=first.device) for side in first.shape[2:])
        inside = (rows[:, None] >= top) & (rows[:, None] < bottom) & (columns >= left) & (columns < right)
        weight = on_device(self.share, first.device).to(first.dtype)[:, None, None].masked_fill(inside, 0)
        return second + weight[:, None] * (first - second), weight.float().mean(dim=(1, 2))


def draw(n: int, image_size: Size, mixup: float | None, cutmix: float | None, generator: Generator) -> Mix:
    """Draw how n images are mixed with each other; where both are wanted, each is mixed by one, with equal odds.

    Mixup weighs the images by a number from Beta(mixup, mixup). Cutmix shows the second in a box whose area is a number
    from Beta(cutmix, cutmix) of the image's, at a random centre, as far as it is in the image.

    Sources: Zhang et al. 2017, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899. Both draw one number a batch; here
    each image has its own.
    """
    partners = torch.randperm(n, generator=generator)
    shares = {alpha: _beta(n, alpha, generator) for alpha in (mixup, cutmix) if alpha is not None}
    boxed = torch.rand(n, generator=generator) < (0 if cutmix is None else 1 if mixup is None else 0.5)
    centre = draw_places(n, image_size, generator)
    size = torch.tensor(sides("image_size", image_size))
    side = size * (1 - shares[cutmix]).sqrt()[:, None] if cutmix is not None else torch.zeros(n, 2)
    half = (side * boxed[:, None] / 2).round().long()
    low, high = (centre - half).clamp(min=0), (centre + half).minimum(size)
    share = torch.ones(n) if mixup is None else shares[mixup].masked_fill(boxed, 1)
    box = torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], dim=1)
    return Mix(share, box * boxed[:, None], partners)


def draw_places(n: int, image_size: Size, generator: Generator) -> Tensor:
    """Draw n places in an image: (n, 2), int64, row and column."""
    height, width = sides("image_size", image_size)
    if height == width:
        return torch.randint(height, (n, 2), generator=generator)
    return torch.stack([torch.randint(side, (n,), generator=generator) for side in (height, width)], dim=1)


def mixed_labels(first: Tensor, second: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Mix labels (B,) and (B,) by the first one's share (B,): (B, C), rows that sum to 1."""
    ours, theirs = (F.one_hot(y, num_classes).float() for y in (first, second))
    return theirs + share[:, None] * (ours - theirs)


def _beta(n: int, alpha: float, generator: Generator) -> Tensor:
    """Draw n numbers from Beta(alpha, alpha)."""
    a, b = torch._standard_gamma(torch.full((2, n), float(alpha), dtype=torch.float64), generator=generator)
    return torch.where(a + b > 0, a / (a + b), 0.5).float()
