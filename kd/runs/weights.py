"""Weights on disk: safetensors, with the network's description and origin in the metadata."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kd.errors import UserError
from kd.files import open_regular, replaced

MAX_HEADER = 2**22
"""Bytes of a file's header: names, shapes and metadata, of which a network with thousands of layers has a tenth."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Numbers that are converted to one another on loading."""


def save_weights(net: nn.Module, path: Path, metadata: dict[str, Any]) -> None:
    """Write all parameters and buffers, whole or not at all.

    Args:
        metadata: JSON values; each is stored as JSON text under its key.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    try:
        with replaced(path) as temporary:
            save_file(tensors, temporary, {key: json.dumps(value) for key, value in metadata.items()})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}; is the disk full?") from error


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata of a file.

    The tensors are mapped: one takes memory when it is used, so that a file of any size can be compared with a network.

    Raises:
        UserError: if the file is missing, no regular file, not whole, or its header is longer than `MAX_HEADER`.
    """
    try:
        with open_regular(path) as opened:
            header = int.from_bytes(opened.read(8), "little")
            if MAX_HEADER < header < os.fstat(opened.fileno()).st_size:
                raise UserError(f"{path} has a header of {header:,} bytes, which is too long for weights of a network")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}") from error
    except PermissionError as error:
        raise UserError(f"{path}: permission denied; have it made readable for you") from error
    except RuntimeError as error:  # torch's, of a file that cannot be mapped
        raise UserError(f"there is no memory for {path}, of {path.stat().st_size:,} bytes") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error
    return tensors, {key: _parse(value) for key, value in metadata.items()}


def fill(net: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load the tensors into the network.

    Raises:
        UserError: if they belong to another architecture or number of classes, naming the first difference; if a
            tensor of another kind would have to be cast, such as int8 or float8; if a weight is not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise UserError(
                f"{source} holds another architecture or number of classes than the network that is to be filled: "
                f"{name} is {given.get(name, 'missing')} there and {expected.get(name, 'missing')} here"
            )
    for name, tensor in net.state_dict().items():
        kind = tensors[name].dtype
        if kind != tensor.dtype and not {kind, tensor.dtype} <= set(FLOATS):
            raise UserError(
                f"{source}: {name} is {_name(kind)}, and the network has {_name(tensor.dtype)}; give weights in "
                f"{', '.join(map(_name, FLOATS))}: quantised or complex ones are not converted"
            )
    net.load_state_dict(tensors)
    broken = not_finite(net)
    if broken is not None:
        raise UserError(
            f"{source} is useless: its {broken} holds NaN or infinity; its training diverged, or it is damaged"
        )


def not_finite(net: nn.Module) -> str | None:
    """Return the name of the first parameter or buffer that holds NaN or infinity; None if there is none.

    Negative infinity in a buffer is allowed: it may be a mask.
    """
    for name, parameter in net.named_parameters():
        if not parameter.isfinite().all():
            return name
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point() and not (buffer < math.inf).all():
            return name
    return None


def content_id(tensors: dict[str, Tensor]) -> str:
    """Return 16 hex digits that depend on every value and name, but, unlike the file's checksum, not on their order."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # written by another program
