"""Networks of this checkout for `torch.hub.load(CHECKOUT, "cnn16", source="local")`, trained with `run=RUN_DIR`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from kd.inference import load
from kd.ranges import Size
from kd.runs.described import build_network

dependencies = ["torch", "filelock", "numpy", "PIL", "safetensors", "yaml"]

_FOLDER = Path(__file__).resolve().parent / "conf" / "student"


def _settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return settings


def _names() -> list[str]:
    """Networks of ours; those of timm, torchvision and your own need a name, and have hubs of their own."""
    names = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    return [name for name in names if not {"defaults", "classes"} & _settings(name).keys()]


def __dir__() -> list[str]:
    return ["dependencies", *_names()]


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight, by which networks of one class are told apart."""
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def __getattr__(name: str) -> Callable[..., nn.Module]:
    if name not in _names():
        raise AttributeError(f"no network {name}; there are {', '.join(_names())}")

    def entry(run: str | None = None, num_classes: int = 10, image_size: Size = 32, **settings: Any) -> nn.Module:
        if run is None:
            return build_network({**_settings(name), **settings, "num_classes": num_classes, "image_size": image_size})
        predictor = load(run)
        channels = len(predictor.mean)
        grey = {} if channels == 3 else {"in_channels": channels}
        plain = entry(num_classes=len(predictor.classes), image_size=predictor.image_size, **{**grey, **settings})
        made, wanted = type(predictor.net).__name__, type(plain).__name__
        if made != wanted:
            raise ValueError(f"{run} holds a {made}, and {name} is a {wanted}; kd.load takes either")
        if _shapes(predictor.net) != _shapes(plain):
            raise ValueError(f"{run} holds a {made} of other settings than {name}; give them, or take kd.load")
        return predictor

    entry.__doc__ = f"""{(_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition(chr(10))[0].lstrip("# ")}

    Args:
        run: run directory or file of weights; then a `kd.Predictor` with that network and its classes, which also has
            `predict`. None for a network with random weights, which returns `kd.Output`.
        num_classes, image_size: of a network with random weights.
        settings: where they differ from conf/student/{name}.yaml, such as scale=8; with run, those of the run.
    """
    return entry
