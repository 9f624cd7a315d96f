"""What methods on feature maps have in common: which stages are matched, sizes, the classifier head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.models.output import Output


def common_stages(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[int]:
    """Return the stages that two networks have in common, from the deepest up; listed shallow to deep.

    Negative numbers, counted back from the deepest: [-2, -1] for networks of two and of three stages.

    Raises:
        ValueError: if a network has no maps.
    """
    for role, maps in (("student", student), ("teacher", teacher)):
        if not maps:
            raise ValueError(f"the {role} has no such maps; name its stages, as in kd.wrap(net, stages=[...])")
    return list(range(-min(len(student), len(teacher)), 0))


def check_stages(name: str, stages: Sequence[int], depth: int) -> None:
    """Refuse stages that a network of `depth` stages does not have, or that are named twice.

    Raises:
        ValueError: naming the setting `name` and the range.
    """
    if not depth:
        raise ValueError(f"{name}: the network has no such maps; name its stages, as in kd.wrap(net, stages=[...])")
    for stage in stages:
        if not -depth <= stage < depth:
            raise ValueError(f"{name} must be in [{-depth}, {depth - 1}] for a network of {depth} stages, got {stage}")
    if len({stage % depth for stage in stages}) < len(stages):
        raise ValueError(f"{name} must name each stage once, got {list(stages)} of {depth} stages")


def size(feature: Tensor) -> str:
    """Height and width of maps (B, C, H, W), such as "16x16"."""
    return "x".join(str(side) for side in feature.shape[2:])


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps (B, C, H, W) to the height and width of the smaller."""
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    shape = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return averaged(student, shape), averaged(teacher, shape)


def averaged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps (B, C, H, W) to a smaller height and width, as `F.adaptive_avg_pool2d` does."""
    block = maps.shape[2] // size[0], maps.shape[3] // size[1]
    if maps.shape[2:] == (block[0] * size[0], block[1] * size[1]):
        return F.avg_pool2d(maps, block)  # whose gradient is deterministic on a GPU, too
    return F.adaptive_avg_pool2d(maps, size)


def common_preacts(name: str, student: Output, teacher: Output) -> list[int]:
    """Return the stages as `common_stages` does, of maps before the activation.

    Raises:
        ValueError: naming the method and the network that has no such maps.
    """
    for role, output in (("student", student), ("teacher", teacher)):
        if not output.preacts:
            raise ValueError(
                f"{name} needs maps before the activation, and the {role} has none; take a network that has, such as "
                "cnn16 or wrn22_2, or kd.wrap(net, preacts=True)"
            )
    return common_stages(student.preacts, teacher.preacts)


def connector(channels: int, out: int) -> nn.Sequential:
    """Return a 1x1 convolution from one number of channels to another, and BatchNorm."""
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))


def is_mean_of_last_map(output: Output) -> bool:
    """Whether the embedding of an output is the mean of its last map over all places."""
    if not output.features:
        return False
    mean = output.features[-1].float().mean(dim=(2, 3))
    return mean.shape == output.embedding.shape and _near(mean, output.embedding.float())


def classifier_head(net: nn.Module, output: Output) -> nn.Linear:
    """Return the linear layer that turns the embedding of `output` into its logits.

    Where a network has its classes in another order than the data, or more of them, it is a copy of the layer's rows
    for the data's.

    Args:
        net: the network.
        output: its output for a probe batch of different images, in eval mode.

    Raises:
        ValueError: if no single linear layer does, as in an ensemble.
    """
    embedding, logits = output.embedding.detach().float(), output.logits.detach().float()
    modules = list(net.modules())
    # Of a network that has classes of its own: where the data's are among its logits.
    columns = next((found for module in modules if isinstance(found := getattr(module, "columns", None), Tensor)), None)
    with torch.no_grad():
        for layer in modules:
            if not isinstance(layer, nn.Linear) or layer.in_features != embedding.shape[1]:
                continue
            head = layer if columns is None or layer.out_features <= int(columns.max()) else _rows(layer, columns)
            if head.out_features == logits.shape[1]:
                bias = None if head.bias is None else head.bias.float()
                if _near(F.linear(embedding, head.weight.float(), bias), logits):
                    return head
    raise ValueError(
        f"{type(net).__name__} has no linear layer that makes its logits of its embedding "
        f"({output.embedding.shape[1]} numbers), so this method has no head to use; choose a single network whose "
        "classifier is linear, or a method that reads logits, maps or embeddings"
    )


def _rows(layer: nn.Linear, rows: Tensor) -> nn.Linear:
    """Return a copy of a layer with some of its outputs, in their order."""
    head = nn.Linear(
        layer.in_features, len(rows), layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype
    )
    head.weight.copy_(layer.weight[rows])
    if layer.bias is not None:
        head.bias.copy_(layer.bias[rows])
    return head.requires_grad_(layer.weight.requires_grad)


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Whether no number is off by more than a thousandth of the largest, and of what differs between the images.

    The second part tells a head of small weights from its bias. Rounding of fp32 is allowed for.
    """
    largest = wanted.abs().amax()
    spread = (wanted - wanted.mean(dim=0)).abs().amax()
    off = found - wanted
    same = off.abs().amax() <= 1e-3 * largest
    return bool(same and (off - off.mean(dim=0)).abs().amax() <= 1e-3 * spread + 1e-5 * largest)
