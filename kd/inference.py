"""From the weights of a run to predictions for images."""

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from kd.data.decode import read_rgb, to_rgb
from kd.data.resize import resized
from kd.errors import UserError
from kd.files import open_regular
from kd.methods.base import restored_net
from kd.models.external import bind
from kd.models.output import Output, checked
from kd.ranges import Size, sides
from kd.runs.described import FOREIGN_NETWORKS, OURS, are_numbers, build, refuse_giants, why_not
from kd.runs.given import weights_file
from kd.runs.weights import fill, load_weights
from kd.terminal import visible

MAX_TEMPERATURE = 2**16
"""Bytes of the file with a temperature that are read."""

LARGEST_FILE = 2**30
"""Bytes of one image file: a longer one is no photo, and memory is taken for all of it."""

Pictures: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8] | Tensor | Sequence[Pictures]"
"""One image or several: files, contents of files, PIL images, or uint8 pixels (H, W, C), (C, H, W), (B, H, W, C) or
(B, C, H, W).

C is the network's number of channels, or 3 for one on grey images. Files and PIL images are for RGB and grey.
"""


class Prediction(NamedTuple):
    """The class of an image."""

    label: str
    """Its name."""
    probability: float
    """In [0, 1]."""


class Predictor(nn.Module):
    """A trained network with the preprocessing and the class names that belong to it, in eval mode.

    Args:
        net: the network, which returns `Output`.
        classes: the C class names.
        image_size: height and width in pixels of the images that it was trained on, one number for squares.
        mean, std: of each channel, as fractions of the range of a pixel.
        temperature: what logits are divided by before they become probabilities, above 0.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        image_size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.net, self.classes, self.image_size = net, tuple(classes), image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.temperature = temperature
        self.eval()

    def preprocess(self, images: Pictures) -> Tensor:
        """Return images as the network takes them: (B, C, H, W), normalised, on its device.

        Images are read and resized as those of a data set are; see `kd.data.decode`.

        Raises:
            UserError: for no images, a file that is missing or no image, pixels that are not uint8 or of another shape.
        """
        # Each is resized before the next is read: photos as they are could be larger than the memory.
        separate = [self._resized(image) for image in _separate(images, len(self.mean))]
        if not separate:
            raise UserError("no images were given")
        weight = next(self.parameters())
        pixels = torch.stack(separate).to(weight.device)
        mean, std = (torch.tensor(v, device=weight.device)[:, None, None] for v in (self.mean, self.std))
        return (pixels * (1 / (255 * std)) - mean / std).to(weight.dtype)

    def forward(self, x: Tensor) -> Output:
        """(B, C, H, W) normalised images -> `Output`."""
        return checked(self.net(x), self.net)

    def probabilities(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised images -> (B, number of classes), in fp32."""
        return torch.softmax(self(x).logits.float() / self.temperature, dim=1)

    @torch.no_grad()
    def predict(self, images: Pictures) -> list[Prediction]:
        """Return the most probable class of each image, all in one pass; see `preprocess` for errors."""
        best = self.probabilities(self.preprocess(images)).max(dim=1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Prediction(self.classes[index], probability) for index, probability in pairs]

    def _resized(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Tensor):
            return resized(image[None], self.image_size)[0]
        height, width = sides("image_size", self.image_size)
        image = to_rgb(image, "the image", Counter())
        if len(self.mean) == 1:
            image = image.convert("L")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image).reshape(height, width, -1)).permute(2, 0, 1)


def load(path: str | Path, trust: bool = False) -> Predictor:
    """Load a trained network from a run directory, or from its file of weights.

    The network is built as the file's metadata describe it. A temperature that was stored beside the weights is used
    (scripts/evaluate.py --fit-temperature).

    Args:
        path: the directory, with student.safetensors or teacher.safetensors in it, or the file.
        trust: whether the file may name any class or function to build the network with; otherwise only those of
            `kd.models`. Code is imported and called: set it for files of your own.

    Raises:
        UserError: if there are no weights, or they are damaged, not written by kd, or not of the network that they
            describe.
    """
    path = weights_file(path)
    tensors, metadata = load_weights(path)
    facts = _Facts.of(metadata, path)
    try:
        shape = {"num_classes": len(facts.classes), "image_size": facts.image_size}
        if len(facts.mean) != 3:
            shape["in_channels"] = len(facts.mean)
        model = {**facts.model, **shape}
        if not trust and facts.model["_target_"].startswith(OURS) and facts.model["_target_"] not in FOREIGN_NETWORKS:
            refuse_giants(model, sum(tensor.numel() for tensor in tensors.values()), path)
        net = build(model, trust)
        if isinstance(net, nn.Module):
            net = bind(net, facts.classes, facts.mean, facts.std)
            net = restored_net(net, tensors, metadata.get("method"))
    except UserError:
        raise
    except Exception as error:  # whatever a network's own code raises, or is raised for arguments that are damaged
        raise UserError(f"{path}: cannot build its network, {why_not(facts.model, error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{path}: {facts.model['_target_']} makes no network")
    fill(net, tensors, path)
    return Predictor(net, facts.classes, facts.image_size, facts.mean, facts.std, temperature_of(path))


def read_image(path: str | Path) -> Image.Image:
    """Return the image in a file, upright and RGB; see `kd.data.decode`.

    Raises:
        UserError: naming it, if it is missing, no regular file, above `LARGEST_FILE`, or no image.
    """
    try:
        with open_regular(Path(path)) as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                raise UserError(f"{visible(path)}: above {LARGEST_FILE >> 30} GB, which no image is read of")
            data = file.read(LARGEST_FILE)
    except FileNotFoundError as error:
        raise UserError(f"no image at {visible(path)}") from error
    except OSError as error:
        raise UserError(f"{visible(path)}: {error.strerror or error}") from error
    return decoded_image(str(path), data)


def decoded_image(name: str, data: bytes) -> Image.Image:
    """Return the image in a file's content, upright and RGB; see `kd.data.decode`.

    Args:
        name: of the file, for errors.
        data: its content.

    Raises:
        UserError: for what is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of metadata that are not used and sizes that are refused here
        return read_rgb(name, data, Counter())


def temperature_file(weights: Path) -> Path:
    """Return where the temperature for these weights is stored, whether or not there is one."""
    return weights.with_name(f"{weights.stem}.temperature.json")


def temperature_of(weights: Path) -> float:
    """Return the temperature that is stored beside these weights; 1 without one.

    Raises:
        UserError: if its file is damaged.
    """
    file = temperature_file(weights)
    try:
        with open_regular(file) as opened:
            value = json.loads(opened.read(MAX_TEMPERATURE))["temperature"]
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise ValueError("it is no positive number")
    except FileNotFoundError:
        return 1.0
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: no temperature in it ({error}); remove it, or have it fitted again") from error
    return value


class _Facts(NamedTuple):
    """What the metadata must hold."""

    model: dict[str, Any]
    classes: list[str]
    image_size: int | list[int]
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, metadata: dict[str, Any], path: Path) -> "_Facts":
        missing = [name for name in cls._fields if name not in metadata]
        if missing:
            raise UserError(f"{path} was not written by kd, or not whole: its metadata lack {', '.join(missing)}")
        facts = cls(*(metadata[name] for name in cls._fields))
        wrong = [name for name, fits in facts._fits().items() if not fits]
        if wrong:
            raise UserError(f"{path}: the metadata's {' and '.join(wrong)} cannot be used")
        return facts

    def _fits(self) -> dict[str, bool]:
        size: Any = self.image_size
        parts = size if isinstance(size, list) and len(size) == 2 else [size]
        return {
            "model": isinstance(self.model, dict) and isinstance(self.model.get("_target_"), str),
            "classes": isinstance(self.classes, list) and all(isinstance(name, str) for name in self.classes),
            "image_size": all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in parts),
            "mean": are_numbers(self.mean),
            "std": are_numbers(self.std) and min(self.std) > 0 and len(self.std) == len(self.mean),
        }


def _separate(images: Any, channels: int) -> Iterator[Image.Image | Tensor]:
    """Yield the images one by one; those that PIL has no form for as (C, H, W), uint8."""
    if isinstance(images, str | Path | bytes | Image.Image) and channels not in (1, 3):
        raise UserError(f"images must be pixels of {channels} channels, as the network's; a file is grey or RGB")
    if isinstance(images, str | Path):
        yield read_image(images)
    elif isinstance(images, bytes):
        yield decoded_image("the image", images)
    elif isinstance(images, Image.Image):
        yield images
    elif isinstance(images, list | tuple):
        for part in images:
            yield from _separate(part, channels)
    elif isinstance(images, Tensor | np.ndarray):
        yield from _separate_pixels(images, channels)
    else:
        raise UserError(f"images must be files, PIL images or uint8 pixels, got {type(images).__name__}")


def _separate_pixels(images: Tensor | NDArray[Any], channels: int) -> list[Image.Image | Tensor]:
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise UserError(f"pixels must be uint8, from 0 to 255, got {dtype}")
    pixels = images.cpu().numpy() if isinstance(images, Tensor) else images
    if channels == 1 and pixels.ndim == 2:
        pixels = pixels[..., None]
    batch = pixels[None] if pixels.ndim == 3 else pixels
    found = set() if batch.ndim != 4 else {channels, 3 if channels == 1 else channels} & {*batch.shape[1::2]}
    if not found:
        last, first = f"H, W, {channels}", f"{channels}, H, W"
        raise UserError(f"pixels must be ({last}), ({first}), (B, {last}) or (B, {first}), got {pixels.shape}")
    batch = batch if batch.shape[3] in found else batch.transpose(0, 2, 3, 1)
    if channels not in (1, 3):
        return [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) for image in batch]
    grey = batch.shape[3] == 1
    return [Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image)) for image in batch]
