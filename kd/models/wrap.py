"""Any nn.Module as a network that returns `Output`: from torchvision, from timm, or one's own."""

import copy
import difflib
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.models.output import Output
from kd.ranges import Size, short_size, sides

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Tanh),
)
"""Layers before which a stage's preact is taken."""

SIZES = (64, 32, 224, 28, 8)
"""Heights and widths in pixels that are tried in turn to find stages, where a network does not tell its own."""

EXTRA_TOKENS = (0, 1, 2, 4, 5)
"""How many leading tokens of a vision transformer may be no patches: a class token, with it a distillation token; four
registers, with or without a class token."""


def wrap(
    module: nn.Module,
    stages: Sequence[str] | None = None,
    head: str | None = None,
    preacts: bool = False,
    image_size: Size | None = None,
) -> "Wrapped":
    """Wrap a classifier so that it returns `Output`: logits, and what hooks see of its stages and its head.

    Without `stages`, blocks (modules that hold others) are found from one pass over blank images: of every resolution
    the last one before the head, such as layer1 to layer4 of a ResNet. Blocks inside of one that downsamples once at
    most do not count. Where that makes fewer than two stages, single layers are taken instead if they make more.

    Args:
        module: takes images (B, in_channels, H, W) and returns logits (B, C): as a Tensor, as the first of a tuple, or
            under the name "logits", as the models of transformers do. It is wrapped itself, not a copy.
        stages: paths of the modules whose outputs are the features, shallow to deep, such as ["layer1", "layer2"];
            none for []. If one runs several times in a pass, its last output counts. What works in place on an output
            afterwards, such as a ReLU of the next module, changes the feature, too: make it not to.
        head: path of the classifier, whose input is the embedding; by default the last nn.Linear, or without any the
            last 1x1 convolution.
        preacts: whether to return the maps before each stage's last activation. Where these activations work in
            place, they no longer do; no value changes.
        image_size: height and width in pixels of the blank images, one number for squares; by default
            `module.image_size`, or one of `SIZES` with which the network runs.

    Raises:
        ValueError: for a path that the module lacks, a stage without an activation where preacts are wanted, a
            network in which no head or no stages can be found.
    """
    layers = {path: layer for path, layer in module.named_modules(remove_duplicate=False) if path}
    given_head = head is not None
    head = _find_head(layers) if head is None else head
    if isinstance(stages, str):
        stages = [stages]
    for path in (head, *(stages or ())):
        if path not in layers:
            parts = list(dict(module.named_children()))
            near = difflib.get_close_matches(path, layers, n=3, cutoff=0.4) or parts
            raise ValueError(
                f"{type(module).__name__} has no module {path!r}; did you mean {' or '.join(near)}? Its parts are "
                f"{', '.join(parts)}"
            )
    if stages is None:
        stages = _find_stages(module, head, image_size)
    activations = [_last_activation(path, layers) for path in stages] if preacts else []
    return Wrapped(module, stages, head, activations, None if given_head else _outputs(layers[head]))


class Wrapped(nn.Module):
    """A module that returns `Output`; made by `wrap`.

    Features and preacts are (B, C, H, W). Token maps (B, N, D) of vision transformers become (B, D, h, w), without
    their leading class tokens, if the patches form a grid with the image's aspect ratio, and (B, D, N, 1) otherwise;
    maps (B, H, W, C), as in Swin transformers, become (B, C, H, W); vectors (B, D) become (B, D, 1, 1). The embedding
    is the head's input, averaged over positions if it has any.

    It can be copied, pickled, compiled, and run by several threads at once. The wrapped module is `module`, under
    which the names of its own state dict are kept.
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[str],
        head: str,
        activations: Sequence[str],
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.module = module
        self.stages, self.head = tuple(stages), head
        self._activations, self._num_classes = tuple(activations), num_classes
        self._pass = _Pass()
        for path in dict.fromkeys((*stages, head, *activations)):
            module.get_submodule(path).register_forward_hook(_Record(self._pass, path))

    def forward(self, x: Tensor) -> Output:
        """(B, in_channels, H, W) -> `Output`.

        Raises:
            ValueError: if a stage or the head did not run, a stage returned no map, its last activation did not make
                its output though preacts are wanted, or the head that was found does not make the logits.
            TypeError: if the module returned nothing in which logits can be found.
        """
        calls: dict[str, tuple[Any, Any]] = {}
        self._pass.calls = calls
        try:
            logits = _logits(self.module(x), self.module)
        finally:
            self._pass.calls = None
        for path in (*self.stages, self.head):
            if path not in calls:
                raise ValueError(f"{path!r} did not run in this pass of {type(self.module).__name__}; name another")
        if self._num_classes not in (None, logits.shape[1]):
            raise ValueError(
                f"{self.head!r}, taken for the head, has {self._num_classes} outputs, but there are {logits.shape[1]} "
                'logits; name the head: kd.wrap(net, head="...")'
            )
        features = tuple(_as_map(calls[path][1], x, path) for path in self.stages)
        preacts: tuple[Tensor, ...] = ()
        if self._activations:
            preacts = tuple(
                _as_map(_preact(calls, stage, activation), x, stage)
                for stage, activation in zip(self.stages, self._activations, strict=True)
            )
        linear = isinstance(self.module.get_submodule(self.head), nn.Linear)
        return Output(logits, features, _embedding(calls[self.head][0], x, self.head, linear), preacts)

    def extra_repr(self) -> str:
        return f"stages={self.stages}, head={self.head!r}"


class _Pass(threading.local):
    """Inputs and outputs by module path, of the pass that the current thread is in; None outside of one.

    So two threads do not mix up their maps, and a pass leaves none behind.
    """

    calls: dict[str, tuple[Any, Any]] | None = None

    def __reduce__(self) -> tuple[type["_Pass"], tuple[()]]:
        return _Pass, ()


class _Record:
    """Forward hook that notes a module's input and output; an object, so that copies and pickles keep it."""

    def __init__(self, current: _Pass, path: str) -> None:
        self.current, self.path = current, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.current.calls is not None:
            self.current.calls[self.path] = (args[0] if args else None, output)


def _logits(returned: Any, module: nn.Module) -> Tensor:
    if isinstance(returned, Mapping) and "logits" in returned:
        returned = returned["logits"]
    elif hasattr(returned, "logits"):
        returned = returned.logits
    elif isinstance(returned, (tuple, list)) and returned:
        returned = returned[0]
    if isinstance(returned, Tensor) and returned.dim() == 2:
        return returned
    what = f"a Tensor {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise TypeError(f"{type(module).__name__} returned {what}; it should return logits (B, C)")


def _preact(calls: dict[str, tuple[Any, Any]], stage: str, activation: str) -> Any:
    before, after = calls.get(activation, (None, None))
    if before is None or after is not calls[stage][1]:
        raise ValueError(
            f"stage {stage!r} does not end with an activation (its last one is {activation!r}), so it has no preact; "
            "choose another stage or preacts=False"
        )
    return before


def _embedding(value: Any, images: Tensor, path: str, linear: bool) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"the head {path!r} got {type(value).__name__} and not a Tensor as its first argument")
    if value.dim() == 2:
        return value
    return value.flatten(1, -2).mean(dim=1) if linear else _as_map(value, images, path).mean(dim=(2, 3))


def _as_map(value: Any, images: Tensor, path: str) -> Tensor:
    """What a stage returned for images (B, in_channels, H, W), as (B, C, h, w)."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor) or not 2 <= value.dim() <= 4 or value.shape[0] != images.shape[0]:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"stage {path!r} returned {what}, which is no map of {images.shape[0]} images; name another")
    if value.dim() == 2:
        return value[:, :, None, None]
    height, width = images.shape[2:]
    if value.dim() == 3:
        return _token_map(value, height, width)
    # As many rows to columns as the image, each rounded: both layouts may fit, and then channels come first.
    fits = [abs(h * width - w * height) < max(height, width) for h, w in (value.shape[2:], value.shape[1:3])]
    return value.permute(0, 3, 1, 2) if fits == [False, True] else value


def _token_map(tokens: Tensor, height: int, width: int) -> Tensor:
    for extra in EXTRA_TOKENS:
        n = tokens.shape[1] - extra
        h = round((max(n, 0) * height / width) ** 0.5)
        w = round((max(n, 0) * width / height) ** 0.5)
        if n > 0 and h * w == n and h * width == w * height:
            return tokens[:, extra:].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], h, w)
    return tokens.transpose(1, 2)[..., None]


def _find_head(layers: dict[str, nn.Module]) -> str:
    linear = [path for path, layer in layers.items() if isinstance(layer, nn.Linear)]
    convs = [path for path, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    if not (linear or convs):
        raise ValueError('no nn.Linear and no 1x1 convolution was found; name the head: kd.wrap(net, head="...")')
    return (linear or convs)[-1]


def _outputs(head: nn.Module) -> int | None:
    if isinstance(head, nn.Linear):
        return head.out_features
    return head.out_channels if isinstance(head, nn.Conv2d) else None


def _last_activation(stage: str, layers: dict[str, nn.Module]) -> str:
    """Path of the stage's last activation, in the order of definition, which works in place no longer."""
    inside = [path for path in layers if path == stage or path.startswith(f"{stage}.")]
    found = [path for path in inside if isinstance(layers[path], ACTIVATIONS)]
    if not found:
        raise ValueError(
            f"stage {stage!r} has no activation among its modules, so it has no preact; "
            "choose another stage or preacts=False"
        )
    activation: Any = layers[found[-1]]
    if getattr(activation, "inplace", False):
        activation.inplace = False
    return found[-1]


@torch.no_grad()
def _find_stages(module: nn.Module, head: str, image_size: Size | None) -> list[str]:
    own_size = getattr(module, "image_size", None)
    sizes: Sequence[Size] = (image_size,) if image_size else (own_size,) if isinstance(own_size, int) else SIZES
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    weight = next(module.parameters())
    error: Exception | None = None
    for size in sizes:
        images = weight.new_zeros(2, first.in_channels if first else 3, *sides("image_size", size))
        try:
            maps = _trace(copy.deepcopy(module).eval(), head, images)
        except Exception as failure:  # whatever a network raises for images of a size that it does not fit
            error = failure
            continue
        blocks, layers = _last_of_each_area(_blocks(maps)), _last_of_each_area(_layers(maps))
        return layers if len(blocks) < 2 and len(layers) > 1 else blocks
    raise ValueError(
        f"stages of {type(module).__name__} cannot be found, as it does not run on images of "
        f"{' or '.join(map(short_size, sizes))} pixels ({error}); give image_size=, or stages=[...], which may be empty"
    ) from error


class _Map(NamedTuple):
    """What a module made before the head."""

    path: str
    area: int
    """Places of its output, height times width."""
    area_before: int
    """Places of its input."""
    is_block: bool
    learned: bool
    """Whether the module has parameters."""


def _trace(net: nn.Module, head: str, images: Tensor) -> list[_Map]:
    """The maps of one pass, in the order in which the modules finish."""
    maps: list[_Map] = []
    at_head = False

    def note(path: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if at_head or not args or (isinstance(output, Tensor) and output.dim() == 2):
            return
        try:
            before, after = (_as_map(value, images, path)[0, 0].numel() for value in (args[0], output))
        except ValueError:
            return  # no map
        is_block, learned = (next(part(), None) is not None for part in (layer.children, layer.parameters))
        maps.append(_Map(path, after, before, is_block, learned))

    def stop(*_: Any) -> None:
        nonlocal at_head
        at_head = True

    for path, layer in net.named_modules():
        if path:
            layer.register_forward_hook(partial(note, path))
    net.get_submodule(head).register_forward_pre_hook(stop)
    net(images)
    return maps


def _blocks(maps: list[_Map]) -> list[_Map]:
    """Return the maps of modules that hold others, without those inside of a block that downsamples once at most."""

    def inside(path: str, block: _Map) -> bool:
        return path.startswith(f"{block.path}.")

    blocks = [block for block in maps if block.is_block and block.learned]
    simple = [
        block
        for block in blocks
        if not any(inside(m.path, block) and block.area < m.area < block.area_before for m in maps)
    ]
    return [block for block in blocks if not any(inside(block.path, other) for other in simple)]


def _layers(maps: list[_Map]) -> list[_Map]:
    """Return the maps of modules that hold no others, pooled ones only once something with weights has run on them."""
    layers, convolved = [], 0
    for layer in maps:
        convolved = layer.area if layer.learned else convolved
        if not layer.is_block and layer.area == convolved:
            layers.append(layer)
    return layers


def _last_of_each_area(maps: list[_Map]) -> list[str]:
    """Paths with the last module of every area, shallow to deep; what a larger map follows is a gate, not a stage."""
    stages, largest = [], 0
    for found in reversed(maps):
        if found.area > largest:
            stages.append(found.path)
            largest = found.area
    return stages[::-1]
