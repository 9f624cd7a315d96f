"""Random crop, flip and cutout of whole batches, one draw per image.

A crop with padding p has (2p + 1)^2 places and a flip has two states, so that an image has finitely many views:

    view = ((2p + 1) * dy + dx) * 2 + flip,    dy, dx in 0..2p

At the usual p = 4 that makes 162. The number is part of the batch, as the key of anything stored per view.
Cutout has too many states to be numbered, and so have mixtures of images (`kd.data.mix`), policies (`kd.data.policy`)
and functions of the user's own; with them every view is -1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kd.errors import UserError
from kd.ranges import Size, require, sides, size_text


@dataclass(frozen=True)
class Augment:
    """Random crop, flip, cutout and mixing of training images.

    Args:
        crop: zero padding in pixels on each side before a random crop back to size; 0 for none.
        flip: whether to mirror half of the images, left to right.
        cutout: side in pixels of a square that is set to zero at a random place (DeVries and Taylor 2017,
            arXiv 1708.04552), partly outside the image near its border; 0 for none.
        mixup, cutmix: parameter of the Beta distribution by which each image is mixed with another one of its step, see
            `kd.data.mix.draw`; None for neither.
        policy: "trivialaugment" or "randaugment", after crop and flip, see `kd.data.policy`; None for neither.
        strength: of RandAugment, in [0, 1]; None for the published one.
        transform: a function of the user's own, called with each image (C, H, W), uint8, after all of these but cutout
            and mixing. It returns an image of that kind, and draws random numbers from torch's global generator, as
            `torchvision.transforms.v2` does. None for none.

    Raises:
        ValueError: for a value outside its range or of another type.
    """

    crop: int
    flip: bool
    cutout: int
    mixup: float | None = None
    cutmix: float | None = None
    policy: str | None = None
    strength: float | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        require("data.augment.crop", self.crop)
        require("data.augment.flip", self.flip)
        require("data.augment.cutout", self.cutout)
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha is not None:
                require(f"data.augment.{name}", alpha)
        if self.policy is not None:
            require("data.augment.policy", self.policy)
        if self.strength is not None:
            require("data.augment.strength", self.strength)
            if self.policy != "randaugment":
                raise ValueError("data.augment.strength is for data.augment.policy=randaugment; leave it out")
        if self.transform is not None and not callable(self.transform):
            raise ValueError(
                "data.augment.transform must be what Hydra makes a function of an image from, such as "
                f"{{_target_: my_pkg.Jitter}}, got {self.transform}"
            )

    def check_size(self, size: Size) -> None:
        """Check that crop and cutout leave something of images of this size in pixels.

        Raises:
            ValueError: naming setting, limit and value.
        """
        least = min(sides("image_size", size))
        for name, value, most in (("crop", self.crop, least), ("cutout", self.cutout, least - 1)):
            if value > most:
                raise ValueError(
                    f"data.augment.{name} must be at most {most} for images of {size_text(size)} pixels, got {value}"
                )

    @property
    def mixes(self) -> tuple[str, ...]:
        """What mixes two images into one, by name."""
        return tuple(name for name in ("mixup", "cutmix") if getattr(self, name) is not None)

    @property
    def plain_view(self) -> int:
        """The view that is the image itself."""
        return self.crop * (2 * self.crop + 2) * 2

    @property
    def views(self) -> int | None:
        """The number of views of an image; None if they cannot be numbered."""
        unnumbered = self.cutout or self.mixes or self.policy or self.transform
        return None if unnumbered else 2 * (2 * self.crop + 1) ** 2

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draw (n,) random views, int64, on the generator's device."""
        places = torch.randint((2 * self.crop + 1) ** 2, (n,), generator=generator, device=generator.device)
        flips = torch.randint(2, (n,), generator=generator, device=generator.device)
        return places * 2 + flips * self.flip

    def apply(self, x: Tensor, view: Tensor) -> Tensor:
        """Crop and flip a batch (B, C, H, W) according to its views (B,); dtype and shape stay."""
        height, width = x.shape[-2:]
        dy, dx = view // 2 // (2 * self.crop + 1), view // 2 % (2 * self.crop + 1)
        rows, columns = (torch.arange(size, device=x.device).expand(len(x), -1) for size in (height, width))
        if self.flip:
            columns = torch.where((view % 2 == 1)[:, None], width - 1 - columns, columns)
        rows, columns = rows + dy[:, None], columns + dx[:, None]
        padded = F.pad(x, (self.crop,) * 4).flatten(2)
        places = rows[:, :, None] * (width + 2 * self.crop) + columns[:, None]
        return padded.gather(2, places.view(len(x), 1, -1).expand(-1, x.shape[1], -1)).view(x.shape)

    def transformed(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Return what `transform` makes of images (B, C, H, W), uint8, with random numbers from their seeds (B,).

        Raises:
            UserError: if that is another kind of tensor.
        """
        if self.transform is None:
            return x
        made = []
        with torch.random.fork_rng(devices=[]):
            # On the processor, whose random numbers can be set aside without those of dropout on a GPU.
            for image, seed in zip(x.cpu(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                made.append(self.transform(image))
        for image in made:
            if not isinstance(image, Tensor) or (image.dtype, image.shape) != (x.dtype, x.shape[1:]):
                kind = f"{image.dtype} of {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
                wanted = f"{x.dtype} of {tuple(x.shape[1:])}"
                raise UserError(f"data.augment.transform returns {kind}, and images are {wanted}")
        return torch.stack(made).to(x.device)

    def cut(self, x: Tensor, centres: Tensor) -> Tensor:
        """Zero the square around each centre (B, 2), row and column, in a normalised batch: the mean colour."""

        def inside(side: int, centre: Tensor) -> Tensor:
            places, low = torch.arange(side, device=x.device), centre[:, None] - self.cutout // 2
            return (places >= low) & (places < low + self.cutout)

        rows, columns = inside(x.shape[2], centres[:, 0]), inside(x.shape[3], centres[:, 1])
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
