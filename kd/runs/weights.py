"""Weights on disk: safetensors, with the network's description and origin in the metadata."""

import argparse
import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
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

MAX_PICKLE = 2**26
"""Bytes of the names and plain values in an archive of `torch.save`, which beside weights may hold an optimiser's."""

ARCHIVE = b"PK\3\4"
"""How files of torch begin, and of `zipfile`."""

LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""How files begin that torch wrote before version 1.6, and official weights of torchvision still do."""

STATE_DICTS = ("state_dict", "model_state_dict", "model", "net")
"""Where training programs put the state dict in their checkpoints."""

PREFIXES = ("module.", "_orig_mod.", "net.", "model.")
"""What DataParallel, torch.compile, wrappers and LightningModules put before the names of a network's weights."""

COUNTER = "num_batches_tracked"
"""What the name of BatchNorm's number of batches ends with, which nothing but its own momentum reads."""

LISTED = 4
"""Names of each of three kinds that are listed of two networks that differ: a dozen at most."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Numbers that are converted to one another on loading."""


def save_weights(net: nn.Module, path: Path, metadata: dict[str, Any]) -> None:
    """Write all parameters and buffers, whole or not at all.

    Tensors that share memory, as of a layer that is used twice, are written once under each name.

    Args:
        metadata: JSON values; each is stored as JSON text under its key.
    """
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, shared in net.state_dict().items():
        tensor = shared.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in written else tensor  # the format has no shared ones
        written.add(place)
    try:
        with replaced(path) as temporary:
            save_file(tensors, temporary, {key: json.dumps(value) for key, value in metadata.items()})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code:
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise UserError(f"cannot write {path}: {error}") from error


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata of a file.

    The tensors are mapped: one takes memory when it is used, so that a file of any size can be compared with a network.

    Raises:
        UserError: if the file is missing, no regular file, not whole, or its header is longer than `MAX_HEADER`.
    """
    try:
        with open_regular(path) as opened:
            start = opened.read(len(LEGACY))
            if _is_of_torch(start):
                raise UserError(
                    f"{path} was written by torch.save; only safetensors, as runs leave them, are read here"
                )
            header = int.from_bytes(start[:8], "little")
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


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata of a file that any program wrote: safetensors, or a state dict by `torch.save`.

    A state dict is also found in a checkpoint, under one of the keys in `STATE_DICTS`. No archive is
    unpacked that is larger than its file, and nothing is unpickled but tensors, plain values, and options of a program
    that are such values (argparse's Namespace). Files by `torch.save` have no metadata.

    Raises:
        UserError: if the file is missing, no regular file, not whole, too large, holds code, or is no state dict.
    """
    try:
        with open_regular(path) as file:
            start = file.read(len(LEGACY))
    except OSError:
        return load_weights(path)  # which says why
    if not (_is_of_torch(start) or path.suffix in (".pth", ".pt")):
        return load_weights(path)
    zipped = start.startswith(ARCHIVE)
    try:
        if zipped:
            _check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a program, values in their turn
            loaded = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError as error:
        raise UserError(f"there is no memory for {path}, of {path.stat().st_size:,} bytes") from error
    except UserError:
        raise
    except Exception as error:  # whatever its content leads to; torch's advice is to unpickle it all the same
        code = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.[\w.]+)", str(error))
        why = (
            f"it holds {code[1]}, which would have to be executed" if code else "it is damaged, or no archive of torch"
        )
        raise UserError(
            f"{path} cannot be read as tensors and plain values: {why}; write it by torch.save(net.state_dict(), FILE)"
        ) from error
    return _state_dict(loaded, path), {}


def _is_of_torch(start: bytes) -> bool:
    """Return whether a file that begins with these bytes, as many as `LEGACY`, is one by `torch.save`."""
    return start.startswith(ARCHIVE) or start == LEGACY


def is_packed(archive: zipfile.ZipFile, size: int) -> bool:
    """Return whether an archive of so many bytes may unpack to more: torch packs nothing."""
    parts = archive.infolist()
    return sum(part.file_size for part in parts) > size or any(part.compress_type for part in parts)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts, packed = archive.infolist(), is_packed(archive, path.stat().st_size)
    if packed:
        raise UserError(f"{path} is a packed archive, which torch.save does not write; write it by torch.save")
    if any(part.filename.endswith(".pkl") and part.file_size > MAX_PICKLE for part in parts):
        raise UserError(f"{path} holds more than {MAX_PICKLE:,} bytes of names, too many for weights of a network")


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    found = [loaded, *(loaded[key] for key in STATE_DICTS if key in loaded)] if isinstance(loaded, Mapping) else []
    size = path.stat().st_size
    for part in found:
        if not (isinstance(part, Mapping) and part and all(isinstance(value, Tensor) for value in part.values())):
            continue
        for name, tensor in part.items():
            if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.numel() > size:
                raise UserError(f"{path}: {name} is no plain tensor, or larger than the file")
        return {str(name): tensor.detach() for name, tensor in part.items()}
    what = ", ".join(map(repr, list(loaded)[:6])) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    raise UserError(
        f"{path} is no state dict: it holds {what or 'nothing'}, and no names with tensors, neither itself nor under "
        f"{' or '.join(STATE_DICTS)}; write it by torch.save(net.state_dict(), FILE)"
    )


def renamed(net: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Name tensors as the network does, if they have other `PREFIXES`, or are named as another program does.

    Where the names with one prefix are all that the network has, those without it are left out, such as the loss of a
    LightningModule. Numbers of batches that BatchNorm has seen, which old files lack, are the network's own. Where
    names differ otherwise, tensors are taken in their order if kinds and shapes are the network's, one after the other:
    a program names layers as it likes, and defines them in the order in which an image passes through them.

    Returns:
        The tensors, still to be compared with the network's by `fill`, and what was done, a note each.
    """
    own = net.state_dict()
    if tensors.keys() == own.keys():
        return tensors, []
    ours = max(set.intersection(*map(_prefixes, own)), key=len) if own else ""
    bare = {name[len(ours) :] for name in own}
    needed = {name for name in bare if not name.endswith(COUNTER)}

    def matched(prefix: str) -> int:
        return sum(prefix + name in tensors for name in bare)

    prefix = max(sorted(set().union(*map(_prefixes, tensors)), key=len), key=matched, default="")
    given = {ours + name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    given.update({name: own[name] for name in own if name not in given and name.endswith(COUNTER)})
    others = [name for name in tensors if not name.startswith(prefix)]
    notes = [f"the prefix '{prefix}' was stripped from its names"] if prefix not in ("", ours) else []
    if others and all(prefix + name in tensors for name in needed):
        notes.append(f"{len(others)} further tensors were left out, such as {others[0]}")
    else:
        given.update({name: tensors[name] for name in others})
    in_order = _in_order(own, tensors) if given.keys() != own.keys() else None
    if in_order is not None:
        return in_order, ["its names are of another program; its tensors are taken in their order, as all shapes agree"]
    return given, notes


def _in_order(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Name tensors as the network's at the same places; None if those are of other kinds or shapes."""
    if list(tensors) == sorted(tensors):
        return None  # as of a safetensors file, which keeps no order

    def listed(named: dict[str, Tensor]) -> list[tuple[str, str, torch.Size]]:
        return [(n, n.rpartition(".")[2], tensor.shape) for n, tensor in named.items() if not n.endswith(COUNTER)]

    ours, theirs = listed(own), listed(tensors)
    if [kind for _, *kind in ours] != [kind for _, *kind in theirs]:
        return None
    return own | {name: tensors[source] for (name, *_), (source, *_) in zip(ours, theirs, strict=True)}


def _prefixes(name: str) -> set[str]:
    """Everything that could be a prefix of a name: "", "model." and "model.net." of "model.net.conv.weight"."""
    found, length = {""}, 0
    while known := next((prefix for prefix in PREFIXES if name.startswith(prefix, length)), None):
        length += len(known)
        found.add(name[:length])
    return found


def begin_from(net: nn.Module, path: Path, head: str | None) -> list[str]:
    """Load the weights that a training begins with: all, but for a classifier of another number of classes.

    Args:
        net: the network; a classifier that the file does not fit keeps its initial weights.
        path: see `read_weights`.
        head: what the names of the classifier's weights begin with; None if it has to fit as well.

    Returns:
        What was done, a note each.

    Raises:
        UserError: as `read_weights` and `fill`.
    """
    tensors, notes = renamed(net, read_weights(path)[0])
    own = {name: tensor for name, tensor in net.state_dict().items() if head is not None and name.startswith(head)}
    if any(name not in tensors or tensors[name].shape != tensor.shape for name, tensor in own.items()):
        tensors = {name: t for name, t in tensors.items() if head is None or not name.startswith(head)} | own
        notes.append("the classifier is of other classes, and begins with initial weights")
    fill(net, tensors, path)
    return notes


def fill(net: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load the tensors into the network.

    Raises:
        UserError: if they belong to another architecture or number of classes, listing up to a dozen differences; if a
            tensor of another kind would have to be cast, such as int8 or float8; if a weight is not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != given:
        raise UserError(
            f"{source} holds another architecture or number of classes than the network that is to be filled: "
            f"{_differences(expected, given)}"
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


def _differences(expected: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> str:
    both = expected.keys() & given.keys()
    kinds = {
        "": [
            f"{name} is {given[name]} there and {expected[name]} here"
            for name in sorted(both)
            if expected[name] != given[name]
        ],
        "missing there: ": sorted(expected.keys() - both),
        "unexpected there: ": sorted(given.keys() - both),
    }
    return "; ".join(
        title + ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")
        for title, names in kinds.items()
        if names
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
