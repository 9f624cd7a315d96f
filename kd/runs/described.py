"""Networks as files of weights describe them: built without running what a stranger has written."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import UserError, reason_of

OURS = "kd.models."
"""Where the networks lie that a file may name."""

FOREIGN = f"{OURS}external.custom"
"""The one of them that itself names code, in its argument `target`."""

FOREIGN_NETWORKS = (FOREIGN, f"{OURS}external.timm", f"{OURS}external.torchvision")
"""Those that other libraries make."""

MOST_MISSING = 2**20
"""Parameters that a file may lack before its network is made, and what is missing is listed."""

TRUST = "pass trust=True if the file is from someone you trust (a program: --trust)"


class _UntrustedError(Exception):
    """A file names code that it may not."""


def build_network(settings: dict[str, Any]) -> nn.Module:
    """Return a network of `kd.models`, with random weights.

    Args:
        settings: {"_target_": a class or function there, its arguments by name}.
    """
    net: nn.Module = build(settings, trust=False)
    return net


def build(node: Any, trust: bool) -> Any:
    """The object that a node describes: {"_target_": a class or function, its arguments by name}, also nested."""
    if isinstance(node, list):
        return [build(value, trust) for value in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value, trust) for key, value in node.items() if key != "_target_"}
    return _resolve(node["_target_"], trust)(**arguments) if "_target_" in node else arguments


def _resolve(target: str, trust: bool) -> Any:
    where, _, name = target.rpartition(".")
    refused = f"{target} does not lie in {OURS.rstrip('.')}; {TRUST}"
    if not trust and target == FOREIGN:
        raise _UntrustedError(f"it names a class of other code; {TRUST}")
    if not trust and (not where.startswith(OURS) or name.startswith("_")):
        raise _UntrustedError(refused)
    found = getattr(importlib.import_module(where), name)
    # What a module of ours imports, such as torch, is not ours.
    if not trust and getattr(found, "__module__", None) != where:
        raise _UntrustedError(refused)
    return found


def refuse_giants(model: dict[str, Any], numbers: int, path: Path) -> None:
    """Refuse a network far larger than what the file holds: a stranger's settings would take all memory."""
    with torch.device("meta"):
        net = build(model, trust=False)
    if not isinstance(net, nn.Module):
        raise UserError(f"{path}: {model['_target_']} makes no network")
    wanted = sum(parameter.numel() for parameter in net.parameters())
    if wanted > 2 * numbers + MOST_MISSING:
        raise UserError(f"{path}: its metadata describe a network of {wanted:,} parameters, and it holds {numbers:,}")


def why_not(model: dict[str, Any], error: Exception) -> str:
    """Return which network could not be built, and why, in one line."""
    target = model["_target_"]
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "kd":
        return f"which needs {error.name}: pip install {error.name.partition('.')[0]}"
    of = f" of {model['target']}" if target == FOREIGN and "target" in model else ""
    changed = isinstance(error, AttributeError | ImportError | TypeError) and target.startswith(OURS) and not of
    hint = "; was it written by another version of kd?" if changed else ""
    reason = reason_of(error)
    return f"{target}{of}: {reason}{hint}"


def described_network(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], shape: Mapping[str, Any], path: Path
) -> dict[str, Any] | None:
    """Return the settings of the network that a file describes, if it is one of ours: plain values, by name.

    Args:
        tensors, metadata: the file's.
        shape: the network's further arguments, which come from the data.
        path: the file, for messages.

    Raises:
        UserError: if that network is far larger than what the file holds, or cannot be built.
    """
    model = metadata.get("model")
    if not isinstance(model, dict) or not all(_is_plain(name, value) for name, value in model.items()):
        return None
    try:
        _resolve(str(model.get("_target_")), trust=False)
    except (_UntrustedError, ImportError, AttributeError, RecursionError):
        return None
    if model["_target_"] in FOREIGN_NETWORKS:
        return None
    try:
        refuse_giants({**model, **shape}, sum(tensor.numel() for tensor in tensors.values()), path)
    except UserError:
        raise
    except Exception as error:  # such as of a version with other arguments
        why = why_not(model, error)
        raise UserError(f"{path}: cannot build its network, {why}; name the network by teacher=") from error
    return model


def foreign_network(metadata: Mapping[str, Any]) -> str | None:
    """Return the settings that choose the network of other code that a file describes; None if it describes none."""
    model = metadata.get("model")
    if not isinstance(model, dict) or model.get("_target_") not in FOREIGN_NETWORKS:
        return None
    named = "target" if model["_target_"] == FOREIGN else "name"
    value = str(model.get(named))
    shown = value if re.fullmatch(r"[\w.-]+", value) else named.upper()  # a stranger's text is no advice
    return f"teacher={model['_target_'].rpartition('.')[2]} teacher.{named}={shown}"


def _is_plain(name: str, value: object) -> bool:
    """Whether a setting stands for itself alone: no option of Hydra, no interpolation, nothing nested."""
    if name == "_target_":
        return True
    if name.startswith("_") or name in ("num_classes", "image_size", "in_channels"):  # which come from the data
        return False
    return isinstance(value, int | float) or str(value).isidentifier()


def are_numbers(values: object) -> bool:
    """Whether metadata have a list of numbers here, none beyond a million, which NaN and infinity are, too."""
    return isinstance(values, list) and bool(values) and all(type(v) in (int, float) and abs(v) < 1e6 for v in values)
