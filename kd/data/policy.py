"""TrivialAugment and RandAugment of whole batches: operations and strengths are drawn per image, ahead of the pixels.

Sources: Müller, Hutter 2021, arXiv 2103.10158 (TrivialAugment, its wide space); Cubuk et al. 2019, arXiv 1909.13719
(RandAugment, two operations). Differences from the usual code: geometry turns about the image's centre, and what comes
into the image is black; both take the nearest pixel.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kd.data.batch import on_device

GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
SIGNED = (*GEOMETRY, "brightness", "colour", "contrast", "sharpness")
"""Operations whose strength may go either way."""
OPERATIONS = ("identity", *SIGNED, "posterize", "solarize", "autocontrast", "equalize")
STRENGTHS = 31
"""Equal steps from nothing to the largest strength."""
PUBLISHED_STRENGTH = 9 / 30
"""Strength of RandAugment where none is given."""

_LARGEST = {
    # shear (a slope), translation (pixels; of RandAugment a share of the side), rotation (degrees), colours, bits
    "trivialaugment": {"shear": 0.99, "translate": 32.0, "rotate": 135.0, "colours": 0.99, "posterize": 6.0},
    "randaugment": {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "colours": 0.9, "posterize": 4.0},
}
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Policy:
    """What is done to each image of a step: K operations, one after the other."""

    kind: str
    """"trivialaugment" or "randaugment"."""
    operation: Tensor
    """(B, K), int64, places in `OPERATIONS`."""
    strength: Tensor
    """(B, K), float in [-1, 1]; negative the other way, for `SIGNED` operations only."""

    def part(self, part: slice | Tensor) -> "Policy":
        """Return the same for some of the images."""
        return Policy(self.kind, self.operation[part], self.strength[part])

    def apply(self, x: Tensor) -> Tensor:
        """Return changed images (B, C, H, W), uint8; the tensor itself stays as it is."""
        x = x.clone()
        for operation, strength in zip(self.operation.T, self.strength.T, strict=True):
            # The draws lie on the CPU, so that nothing waits for the device.
            for place in operation.unique().tolist():
                chosen = (operation == place).nonzero()[:, 0]
                of_images = on_device(chosen, x.device)
                amount = on_device(strength[chosen], x.device)
                x[of_images] = _apply(OPERATIONS[place], x[of_images], amount, _LARGEST[self.kind])
        return x


def draw(n: int, kind: str, strength: float | None, generator: Generator) -> Policy:
    """Draw what is done to n images.

    Args:
        n: number of images.
        kind: "trivialaugment": one operation of a random strength; "randaugment": two of the same strength.
        strength: of RandAugment, in [0, 1]; None for the published one.
        generator: on the CPU.
    """
    count = 1 if kind == "trivialaugment" else 2
    operation = torch.randint(len(OPERATIONS), (n, count), generator=generator)
    steps = torch.randint(STRENGTHS, (n, count), generator=generator) / (STRENGTHS - 1)
    sign = 2.0 * torch.randint(2, (n, count), generator=generator) - 1
    fixed = PUBLISHED_STRENGTH if strength is None else strength
    amount = steps if kind == "trivialaugment" else torch.full_like(steps, fixed)
    signed = (operation >= 1) & (operation <= len(SIGNED))
    return Policy(kind, operation, torch.where(signed, sign, 1.0) * amount)


def _apply(name: str, x: Tensor, amount: Tensor, largest: dict[str, float]) -> Tensor:
    """Apply one operation to images (b, C, H, W), uint8, by amounts (b,) of the largest."""
    if name in GEOMETRY:
        return _moved(name, x, amount, largest)
    if name == "identity":
        return x
    if name == "posterize":
        dropped = (amount * largest["posterize"]).round().to(torch.uint8)[:, None, None, None]
        return x >> dropped << dropped
    if name == "solarize":
        return torch.where(x >= (255 * (1 - amount))[:, None, None, None], 255 - x, x)
    if name == "equalize":
        return _equalized(x)
    if name == "autocontrast":
        low, high = x.amin(dim=(2, 3), keepdim=True).float(), x.amax(dim=(2, 3), keepdim=True).float()
        return torch.where(high > low, _uint8((x - low) * (255 / (high - low).clamp(min=1))), x)
    factor = (1 + amount * largest["colours"])[:, None, None, None]
    other = _other(name, x.float())
    return _uint8(other + factor * (x.float() - other))


def _other(name: str, x: Tensor) -> Tensor:
    """Return what a factor of 0 makes of images, by the operation: black, grey, one grey, or smooth."""
    if name == "brightness":
        return torch.zeros_like(x)
    if name == "sharpness":
        kernel = on_device(torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13, x.device)
        smooth = x.clone()
        if min(x.shape[2:]) > 2:
            inner = F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])
            smooth[:, :, 1:-1, 1:-1] = inner.round()
        return smooth
    channels = x.shape[1]
    weights = on_device(torch.tensor(_LUMA if channels == 3 else [1 / channels] * channels), x.device)
    luma = (x * weights[:, None, None]).sum(dim=1, keepdim=True).floor()
    return luma if name == "colour" else luma.mean(dim=(1, 2, 3), keepdim=True)


def _moved(name: str, x: Tensor, amount: Tensor, largest: dict[str, float]) -> Tensor:
    """Show each image sheared, shifted or turned: of every place, the pixel that comes there."""
    height, width = x.shape[2:]
    side = {"translate_x": width, "translate_y": height}.get(name, 0)
    zero, one = torch.zeros_like(amount), torch.ones_like(amount)
    xx, xy, yx, yy, dx, dy = one, zero, zero, one, zero, zero
    if name == "rotate":
        angle = (amount * largest["rotate"]).deg2rad()
        xx, xy, yx, yy = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    elif name == "shear_x":
        xy = amount * largest["shear"]
    elif name == "shear_y":
        yx = amount * largest["shear"]
    else:
        pixels = (amount * largest["translate"] * (side if largest["translate"] < 1 else 1)).round()
        dx, dy = (pixels, zero) if name == "translate_x" else (zero, pixels)
    rows = (torch.arange(height, device=x.device) - (height - 1) / 2)[:, None]
    columns = torch.arange(width, device=x.device) - (width - 1) / 2
    xx, xy, yx, yy, dx, dy = (value[:, None, None] for value in (xx, xy, yx, yy, dx, dy))
    from_column = (xx * columns + xy * rows - dx + (width - 1) / 2).round().long()
    from_row = (yx * columns + yy * rows - dy + (height - 1) / 2).round().long()
    inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    places = (from_row * width + from_column).masked_fill(~inside, 0)
    moved = x.flatten(2).gather(2, places.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
    return moved.masked_fill(~inside[:, None], 0)


def _equalized(x: Tensor) -> Tensor:
    """Spread the values of each channel so that all are about equally frequent, as PIL does."""
    flat = x.flatten(2).flatten(0, 1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    last = counts.gather(1, flat.amax(dim=1, keepdim=True))
    step = (flat.shape[1] - last) // 255
    below = counts.cumsum(dim=1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(1, flat), flat).to(torch.uint8).view(x.shape)


def _uint8(x: Tensor) -> Tensor:
    return x.clamp(0, 255).to(torch.uint8)
