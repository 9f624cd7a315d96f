"""Networks of timm, of torchvision and of one's own, which are shown the images as they were trained to see them."""

import copy
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import BUGS, described, reason_of
from kd.models.output import Output, checked, probe
from kd.models.wrap import Wrapped, wrap
from kd.ranges import Size, short_size, sides

SMALLEST_STD = 1 / 255
"""Deviation of a channel without contrast, which a batch is divided by in place of 0."""

_SIZE = "give size= to have them resized"
_CHANNELS = "it is for RGB images; choose a network of this program, or one of your own that takes in_channels"
_SQUARE = "give size= one number to have them resized to squares"


class External(nn.Module):
    """A network from elsewhere, wrapped by `kd.wrap`; its images can be resized and normalised otherwise.

    What the batch's normalisation and the data's classes are, `bind` has to say first where `mean` or `classes` is
    given. Grey images, of one channel, are repeated over three where the network runs on RGB images alone. Nothing of
    this is part of the state dict: the names are those of the network itself behind "net.module.", or behind
    "net." if it returns `Output` by itself.

    Args:
        make: makes the network for a number of classes and a size in pixels.
        title: what it is, for messages.
        num_classes: C of the data.
        image_size: height and width of the batch's images in pixels, one number for squares.
        stages: see `kd.wrap`; None to have them found.
        head: see `kd.wrap`; None to have it found.
        preacts: see `kd.wrap`.
        pretrained: file of weights that a training begins with; noted here and read by whatever trains the network.
        size: height and width that images are resized to, by bilinear interpolation with antialiasing, one number for
            squares; None for their own.
        mean, std: of each channel, as fractions of a pixel's range, which the network's images are normalised by; None
            for the data's.
        in_channels: of the batch's images.
        classes: name of each output, in their order, where they are not the data's; all of the data's have to be among
            them.

    Raises:
        ValueError: for settings that do not belong together, a network that does not run on such images, returns no
            logits for that many classes, has no such stages or head, or whose stages return no maps.
    """

    scale: Tensor | None
    shift: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        make: Callable[[int, Size], nn.Module],
        title: str,
        num_classes: int,
        image_size: Size,
        stages: Sequence[str] | None,
        head: str | None,
        preacts: bool,
        pretrained: str | None,
        size: Size | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        classes: Sequence[str] | None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("mean and std belong together; give both, or neither for those of the data")
        self.mean, self.std = _numbers("mean", mean), _numbers("std", std)
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {list(self.std)}")
        self.pixels = None if size is None else sides("size", size)
        """Height and width that images are resized to."""
        self.classes = None if classes is None else tuple(str(name) for name in classes)
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must name each output once, got {', '.join(self.classes)}")
        self.size, self.pretrained = size, pretrained
        for name in ("scale", "shift", "columns"):
            self.register_buffer(name, None, persistent=False)
        outputs, pixels = num_classes if self.classes is None else len(self.classes), size or image_size
        try:
            net = make(outputs, pixels)
        except (AssertionError, TypeError) as error:  # as transformers have it of sizes that are no multiple of a patch
            if isinstance(error, TypeError) and isinstance(pixels, int):
                raise
            ways_out = _SIZE if isinstance(pixels, int) else _SQUARE
            raise ValueError(
                f"{title} cannot be made for images of {short_size(pixels)} pixels: {error}; {ways_out}"
            ) from error
        _require_images_alone(net, title)
        self.in_channels = in_channels
        if in_channels == 1 and _failure(net, pixels, 1) is not None and _failure(net, pixels, 3) is None:
            self.in_channels = 3
        self.net = _readable(net, title, stages, head, preacts, pixels, self.in_channels)
        found = probe(self.net, pixels, self.in_channels).logits.shape[1]
        if found != outputs:
            raise ValueError(f"{title} returns {found} logits for {outputs} classes")

    @property
    def head(self) -> str | None:
        """What the names of the classifier's weights begin with in the state dict; None if it is not known."""
        return f"net.module.{self.net.head}." if isinstance(self.net, Wrapped) else None

    @property
    def view(self) -> dict[str, Any]:
        """How it is shown images and named classes otherwise than the data have it, by the names of metadata."""
        values = {"mean": self.mean, "std": self.std, "image_size": self.size, "classes": self.classes}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}

    def forward(self, x: Tensor) -> Output:
        """(B, C, H, W), normalised as the data are -> `Output`, its logits in the order of the data's classes."""
        if (self.mean is not None and self.scale is None) or (self.classes is not None and self.columns is None):
            raise ValueError("the network has other classes or another normalisation than the data; call bind first")
        shown = x
        if self.pixels is not None and x.shape[-2:] != self.pixels:
            shown = F.interpolate(x.float(), self.pixels, mode="bilinear", align_corners=False, antialias=True)
        if shown.shape[1] == 1 < self.in_channels:
            shown = shown.expand(-1, self.in_channels, -1, -1)
        if self.scale is not None and self.shift is not None:
            shown = shown * self.scale + self.shift
        output = checked(self.net(shown.to(x.dtype)), self.net)
        return output if self.columns is None else output._replace(logits=output.logits[:, self.columns])


def bind(net: nn.Module, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Tell an external network what it is shown; return it, and any other network as it is.

    Args:
        net: the network.
        classes: the data's, in the order of its labels.
        mean, std: that batches are normalised by, of each channel, as fractions of a pixel's range.

    Raises:
        ValueError: if the network lacks a class, or has a mean for another number of channels.
    """
    if not isinstance(net, External):
        return net
    if net.mean is not None and net.std is not None:
        if len(net.mean) != net.in_channels or len(net.std) != net.in_channels:
            count = len(net.mean if len(net.mean) != net.in_channels else net.std)
            raise ValueError(f"mean must have {net.in_channels} numbers, one a channel, got {count}")
        ours, theirs = ([torch.tensor(v)[:, None, None] for v in pair] for pair in ((mean, std), (net.mean, net.std)))
        net.scale = ours[1].clamp(min=SMALLEST_STD) / theirs[1]
        net.shift = (ours[0] - theirs[0]) / theirs[1]
    if net.classes is not None:
        for name in classes:
            if name not in net.classes:
                raise ValueError(
                    f"classes lacks {name!r:.60}, a class of the data; it has to name the network's outputs in their "
                    f"order, got {', '.join(net.classes):.200}"
                )
        net.columns = torch.tensor([net.classes.index(name) for name in classes])
    return net


def torchvision(
    name: str | None,
    num_classes: int,
    image_size: Size,
    stages: Sequence[str] | None,
    head: str | None,
    preacts: bool,
    pretrained: str | None,
    size: Size | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: Sequence[str] | None,
    in_channels: int = 3,
) -> External:
    """Make a classifier of torchvision by its name, such as "resnet18", with initial weights; see `External`."""
    from torchvision import models

    known = _known("torchvision", name, models.list_models(module=models))

    def make(outputs: int, pixels: Size) -> nn.Module:
        def build(**more: Any) -> Any:
            return models.get_model(known, weights=None, num_classes=outputs, **more)

        return _for_pixels(build, "image_size", pixels)

    title = f"torchvision's {known}"
    shape = num_classes, image_size
    return External(make, title, *shape, stages, head, preacts, pretrained, size, mean, std, classes, in_channels)


def timm(
    name: str | None,
    num_classes: int,
    image_size: Size,
    stages: Sequence[str] | None,
    head: str | None,
    preacts: bool,
    pretrained: str | None,
    size: Size | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: Sequence[str] | None,
    in_channels: int = 3,
) -> External:
    """Make a classifier of timm by its name, such as "resnet18" or "vit_tiny_patch16_224", with initial weights.

    See `External`. timm is an optional extra of this package.

    Raises:
        ImportError: if timm is not installed.
    """
    library = importlib.import_module("timm")
    known = _known("timm", name, library.list_models())

    def make(outputs: int, pixels: Size) -> nn.Module:
        def build(**more: Any) -> Any:
            channels = {} if in_channels in (1, 3) else {"in_chans": in_channels}
            return library.create_model(known, pretrained=False, num_classes=outputs, **channels, **more)

        return _for_pixels(build, "img_size", pixels)

    title, shape = f"timm's {known}", (num_classes, image_size)
    return External(make, title, *shape, stages, head, preacts, pretrained, size, mean, std, classes, in_channels)


def custom(
    target: str | None,
    settings: Mapping[str, Any] | None,
    num_classes: int,
    image_size: Size,
    stages: Sequence[str] | None,
    head: str | None,
    preacts: bool,
    pretrained: str | None,
    size: Size | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: Sequence[str] | None,
    in_channels: int = 3,
) -> External:
    """Make a network of one's own; see `External`. Its code is imported.

    Args:
        target: full name of the class or function that makes it, such as "my_pkg.Net".
        settings: its arguments, if it needs any. Of `num_classes`, `image_size` and `in_channels` it is given
            those that it takes; `num_classes` also where it takes any keyword.
        num_classes, image_size, stages, head, preacts, pretrained, size, mean, std, classes, in_channels: see
            `External`.
    """
    make_net, more = _located(target), settings or {}

    def make(outputs: int, pixels: Size) -> nn.Module:
        given = {"num_classes": outputs, "image_size": pixels, "in_channels": in_channels}
        takes = inspect.signature(make_net).parameters
        own = {name: value for name, value in given.items() if name in takes}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
            try:  # a function of any keywords usually hands them on to a class
                net = make_net(**{**own, "num_classes": outputs}, **more)
            except TypeError as error:
                if "num_classes" not in str(error):  # something else is wrong with it
                    raise
                net = make_net(**own, **more)
        else:
            net = make_net(**own, **more)
        if not isinstance(net, nn.Module):
            raise ValueError(f"target={target} makes a {type(net).__name__} and not an nn.Module")
        return net

    for name in ("num_classes", "image_size", "in_channels"):
        if name in more:
            raise ValueError(f"settings.{name} comes from the data; leave it out")
    title, shape = str(target), (num_classes, image_size)
    return External(make, title, *shape, stages, head, preacts, pretrained, size, mean, std, classes, in_channels)


def _require_images_alone(net: nn.Module, title: str) -> None:
    """Refuse a network whose forward needs more than images."""
    needed = [
        parameter.name
        for parameter in inspect.signature(net.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ValueError(
            f"{title} needs more than images: its forward takes {', '.join(needed)}; wrap it in a module whose forward "
            "takes images (B, C, H, W) alone"
        )


def _failure(net: nn.Module, pixels: Size, channels: int) -> Exception | None:
    """Return what the network raises for images of a size; None if it runs on them."""
    try:
        _shown_blank(net, pixels, channels)
    except Exception as error:  # whatever a network raises for images that it does not fit
        return error
    return None


@torch.no_grad()
def _shown_blank(net: nn.Module, pixels: Size, channels: int) -> Any:
    """What the network returns for two blank images, from a copy."""
    return copy.deepcopy(net).eval()(torch.zeros(2, channels, *sides("size", pixels)))


def _readable(
    net: nn.Module,
    title: str,
    stages: Sequence[str] | None,
    head: str | None,
    preacts: bool,
    pixels: Size,
    channels: int,
) -> nn.Module:
    """The network as one that returns `Output`."""
    try:
        returned = _shown_blank(net, pixels, channels)
    except Exception as error:  # whatever a network raises for images that it does not fit
        if isinstance(error, BUGS) and not isinstance(error, AssertionError):  # as of sizes, in transformers
            raise ValueError(f"{title} does not run: {described(error):.200}") from error
        reason = reason_of(error)
        of_channels = "" if channels == 3 else f"{channels} channels and "
        ways_out = _SIZE if channels == 3 or _failure(net, pixels, 3) is not None else _CHANNELS
        raise ValueError(
            f"{title} does not run on images of {of_channels}{short_size(pixels)} pixels: {reason:.200}; {ways_out}"
        ) from error
    if isinstance(returned, Output) and stages is None and head is None:
        return net
    wrapped = wrap(net, stages, head, preacts, pixels)
    try:
        probe(wrapped, pixels, channels)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return wrapped


def _for_pixels(build: Callable[..., Any], argument: str, pixels: Size) -> nn.Module:
    """Make a network for images of a size, if it has an argument for that, as transformers have."""
    try:
        net: nn.Module = build(**{argument: pixels})
    except TypeError as error:
        if argument not in str(error):
            raise
        net = build()
    return net


def _known(library: str, name: str | None, known: Iterable[str]) -> str:
    names = list(known)
    if name is None:
        raise ValueError(f"the name of a network of {library} is missing; give name=, such as name=resnet18")
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, 0.4)
        meant = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(names[:6])} and others"
        raise ValueError(f"{library} has no network {name!r:.80}{meant}")
    return name


def _located(target: str | None) -> Callable[..., Any]:
    where, _, name = (target or "").rpartition(".")
    if not where or not name:
        raise ValueError(f"target must be the full name of a class or function, such as my_pkg.Net, got {target}")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # a package that it needs itself
        raise ValueError(
            f"target={target}: there is no module {error.name} on the import path; add its folder to PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, names, 3, 0.4) or names[:6]
        raise ValueError(
            f"target={target}: {where} has no class or function {name}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    made: Callable[..., Any] = found
    return made


def _numbers(name: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if isinstance(values, str) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6 for value in values
    ):
        raise ValueError(f"{name} must be a list of numbers, one a channel, got {values}")
    return tuple(float(value) for value in values)
