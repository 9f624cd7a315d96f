"""From the weights of a run to predictions for images."""

import importlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from kd.data.decode import read_rgb, to_rgb
from kd.errors import UserError
from kd.files import open_regular
from kd.methods.base import restored_net
from kd.models.external import bind
from kd.models.output import Output, checked
from kd.runs.given import weights_file
from kd.runs.weights import fill, load_weights

OURS = "kd.models."
"""Where the networks lie that a file may name."""

FOREIGN = f"{OURS}external.custom"
"""The one of them that itself names code, in its argument `target`."""

MAX_TEMPERATURE = 2**16
"""Bytes of the file with a temperature that are read."""

Pictures: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8] | Tensor | Sequence[Pictures]"
"""One image or several: files, PIL images, or uint8 pixels (H, W, 3), (3, H, W), (B, H, W, 3) or (B, 3, H, W)."""


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
        image_size: height and width in pixels of the images that it was trained on.
        mean, std: of each channel, as fractions of the range of a pixel.
        temperature: what logits are divided by before they become probabilities, above 0.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        image_size: int,
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
        """Return images as the network takes them: (B, 3, S, S), normalised, on its device.

        Images are read and resized as those of a data set are; see `kd.data.decode`.

        Raises:
            UserError: for no images, a file that is missing or no image, pixels that are not uint8 or of another shape.
        """
        separate = _separate(images)
        if not separate:
            raise UserError("no images were given")
        weight = next(self.parameters())
        pixels = torch.stack([self._resized(image) for image in separate]).to(weight.device)
        mean, std = (torch.tensor(v, device=weight.device)[:, None, None] for v in (self.mean, self.std))
        return (pixels * (1 / (255 * std)) - mean / std).to(weight.dtype)

    def forward(self, x: Tensor) -> Output:
        """(B, 3, S, S) normalised images -> `Output`."""
        return checked(self.net(x), self.net)

    def probabilities(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, C), in fp32."""
        return torch.softmax(self(x).logits.float() / self.temperature, dim=1)

    @torch.no_grad()
    def predict(self, images: Pictures) -> list[Prediction]:
        """Return the most probable class of each image, all in one pass; see `preprocess` for errors."""
        best = self.probabilities(self.preprocess(images)).max(dim=1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Prediction(self.classes[index], probability) for index, probability in pairs]

    def _resized(self, image: Image.Image) -> Tensor:
        size = (self.image_size, self.image_size)
        image = to_rgb(image, "the image", Counter())
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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
        net = _build({**facts.model, "num_classes": len(facts.classes), "image_size": facts.image_size}, trust)
        if isinstance(net, nn.Module):
            net = bind(net, facts.classes, facts.mean, facts.std)
            net = restored_net(net, tensors, metadata.get("method"))
    except (_UntrustedError, AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot build its network, {facts.model['_target_']}: {reason}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{path}: {facts.model['_target_']} makes no network")
    fill(net, tensors, path)
    return Predictor(net, facts.classes, facts.image_size, facts.mean, facts.std, _temperature(path))


def temperature_file(weights: Path) -> Path:
    """Return where the temperature for these weights is stored, whether or not there is one."""
    return weights.with_name(f"{weights.stem}.temperature.json")


def _temperature(weights: Path) -> float:
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
    image_size: int
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
        def numbers(values: object) -> bool:
            return isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)

        size = self.image_size
        return {
            "model": isinstance(self.model, dict) and isinstance(self.model.get("_target_"), str),
            "classes": isinstance(self.classes, list) and all(isinstance(name, str) for name in self.classes),
            "image_size": isinstance(size, int) and not isinstance(size, bool) and size > 0,
            "mean": numbers(self.mean),
            "std": numbers(self.std) and all(self.std),
        }


class _UntrustedError(Exception):
    """A file names code that it may not."""


def _build(node: Any, trust: bool) -> Any:
    """The object that a node describes: {"_target_": a class or function, its arguments by name}, also nested."""
    if isinstance(node, list):
        return [_build(value, trust) for value in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: _build(value, trust) for key, value in node.items() if key != "_target_"}
    return _resolve(node["_target_"], trust)(**arguments) if "_target_" in node else arguments


def _resolve(target: str, trust: bool) -> Any:
    where, _, name = target.rpartition(".")
    refused = f"{target} does not lie in {OURS.rstrip('.')}; pass trust=True if the file is from someone you trust"
    if not trust and target == FOREIGN:
        raise _UntrustedError("it names a class of other code; pass trust=True if the file is from someone you trust")
    if not trust and (not where.startswith(OURS) or name.startswith("_")):
        raise _UntrustedError(refused)
    found = getattr(importlib.import_module(where), name)
    # What a module of ours imports, such as torch, is not ours.
    if not trust and getattr(found, "__module__", None) != where:
        raise _UntrustedError(refused)
    return found


def _separate(images: Any) -> list[Image.Image]:
    if isinstance(images, str | Path):
        try:
            return [read_rgb(str(images), Path(images).read_bytes(), Counter())]
        except FileNotFoundError as error:
            raise UserError(f"no image at {images}") from error
        except OSError as error:
            raise UserError(f"{images}: {error.strerror}") from error
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, list | tuple):
        return [image for part in images for image in _separate(part)]
    if not isinstance(images, Tensor | np.ndarray):
        raise UserError(f"images must be files, PIL images or uint8 pixels, got {type(images).__name__}")
    pixels = images.cpu().numpy() if isinstance(images, Tensor) else images
    if pixels.dtype != np.uint8:
        raise UserError(f"pixels must be uint8, from 0 to 255, got {pixels.dtype}")
    batch = pixels[None] if pixels.ndim == 3 else pixels
    if batch.ndim != 4 or 3 not in (batch.shape[1], batch.shape[3]):
        raise UserError(f"pixels must be (H, W, 3), (3, H, W), (B, H, W, 3) or (B, 3, H, W), got {pixels.shape}")
    batch = batch if batch.shape[3] == 3 else batch.transpose(0, 2, 3, 1)
    return [Image.fromarray(np.ascontiguousarray(image)) for image in batch]
