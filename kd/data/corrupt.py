"""Corrupted test images, in five severities and in the form of CIFAR-10-C, for any set of small images.

Kinds and severities are those of Hendrycks, Dietterich (2019, arXiv 1903.12261) for CIFAR-10-C, eight of its fifteen:
noise, blur, light and compression that need no file and no further library. Pixels are not those of the published
files, which were made with other random numbers and another JPEG library.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kd.data.also_test import SEVERITIES
from kd.data.decode import new_mapping
from kd.errors import UserError

Array = NDArray[np.uint8]
Floats = NDArray[np.floating]

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
"""Standard deviation of Gaussian noise, for pixels in [0, 1]; like all tuples here, from mild to severe."""
PHOTONS = (500, 250, 100, 75, 50)
"""Mean count of a white pixel under shot noise."""
IMPULSES = (0.01, 0.02, 0.03, 0.05, 0.07)
"""Share of values that become black or white."""
DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
"""Radius of the disk, and standard deviation of the Gaussian that smooths it, in pixels."""
LIGHT = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Added to the value of HSV, in [0, 1]."""
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
"""Factor of the distance from an image's mean."""
PIXELS = (0.95, 0.9, 0.85, 0.75, 0.65)
"""Share of the side that is left before it is enlarged again."""
QUALITY = (80, 65, 58, 50, 40)
"""Qualities of JPEG."""


def gaussian_noise(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    return images + rng.normal(0, NOISE[severity], images.shape).astype(np.float32)


def shot_noise(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    return (rng.poisson(images * PHOTONS[severity]) / PHOTONS[severity]).astype(np.float32)


def impulse_noise(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    drawn, share = rng.random(images.shape), IMPULSES[severity]
    return np.where(drawn < share, (drawn < share / 2).astype(np.float32), images)


def defocus_blur(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    radius, smooth = DEFOCUS[severity]
    along = np.arange(-3, 4)
    disk = (along[:, None] ** 2 + along**2 <= radius**2).astype(np.float32)
    # Three pixels of the Gaussian, as in the original.
    kernel = ndimage.gaussian_filter(disk / disk.sum(), smooth, radius=1, mode="mirror")
    blurred: Floats = ndimage.convolve(images, kernel[None, :, :, None], mode="mirror")
    return blurred


def brightness(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    """Add to the value of HSV, that is the largest of the channels; hue and saturation stay."""
    value: Floats = images.max(axis=-1, keepdims=True)
    raised = np.minimum(value + LIGHT[severity], 1)
    found: Floats = np.where(value > 0, images / np.maximum(value, 1e-9) * raised, raised).astype(np.float32)
    return found


def contrast(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    mean: Floats = images.mean(axis=(1, 2), keepdims=True)
    return (images - mean) * CONTRAST[severity] + mean


def pixelate(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    def coarse(image: Image.Image) -> Image.Image:
        width, height = (max(1, int(side * PIXELS[severity])) for side in image.size)
        return image.resize((width, height), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)

    return _each(images, coarse)


def jpeg_compression(images: Floats, severity: int, rng: np.random.Generator) -> Floats:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY[severity])
        return Image.open(file, formats=["JPEG"])

    return _each(images, compressed)


KINDS: dict[str, Callable[[Floats, int, np.random.Generator], Floats]] = {
    kind.__name__: kind
    for kind in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        brightness,
        contrast,
        pixelate,
        jpeg_compression,
    )
}


def corrupted(images: Array, kind: str, seed: int = 0) -> Iterator[Array]:
    """Yield the images in the severities of one corruption, from mild to severe.

    Args:
        images: (M, H, W, C), C = 1 or 3.
        kind: a name in `KINDS`.
        seed: of the noise, which differs by kind and severity.
    """
    pixels = images.astype(np.float32) / 255
    for severity in range(SEVERITIES):
        rng = np.random.default_rng([seed, sorted(KINDS).index(kind), severity])
        found = np.clip(KINDS[kind](pixels, severity, rng), 0, 1) * 255
        yield found.astype(np.uint8)


def write(images: Array, labels: NDArray[np.int64], directory: Path, seed: int = 0) -> None:
    """Write corrupted images into a new directory, as `data.also_test` reads them: KIND.npy and labels.npy.

    Args:
        images: (M, H, W, C), uint8, C = 1 or 3.
        labels: (M,).
        directory: which is made.
        seed: of the noise.

    Raises:
        UserError: if the directory is there and not empty, or cannot be written.
    """
    made: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(f"{directory} is not empty; give a new folder")
        shape = (SEVERITIES * len(images), *images.shape[1:])
        for kind in KINDS:
            made.append(directory / f"{kind}.npy")
            file = new_mapping(made[-1], shape)
            for severity, found in enumerate(corrupted(images, kind, seed)):
                file[severity * len(images) : (severity + 1) * len(images)] = found
        made.append(directory / "labels.npy")
        np.save(made[-1], np.tile(labels, SEVERITIES))  # last: without it the folder is none
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{directory} cannot be written: {error.strerror or error}") from error
        raise


def _each(images: Floats, change: Callable[[Image.Image], Image.Image]) -> Floats:
    """Change images one by one as 8-bit pictures."""
    grey = images.shape[-1] == 1
    changed = []
    for pixels in np.round(images * 255).astype(np.uint8):
        picture = change(Image.fromarray(pixels[..., 0] if grey else pixels))
        changed.append(np.asarray(picture, np.float32)[..., None] if grey else np.asarray(picture, np.float32))
    return np.stack(changed) / 255
