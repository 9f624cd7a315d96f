"""Images in parquet files, laid out as on the Hugging Face hub."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kd.data.decode import Decoded, cache_path, decode, display_name
from kd.data.images import Images
from kd.errors import UserError


def parquet(
    root: str | os.PathLike[str], image_size: int = 32, name: str | None = None, in_memory: bool = True
) -> Images:
    """Load the images in all *train*.parquet and *test*.parquet below root.

    Each file has a column `img` or `image`, a struct whose `bytes` are an encoded image, and an integer column
    `label` or `fine_label`. A split's files are read in the order of their paths. Class names are those in the
    schema's Hugging Face metadata, or else "0", "1", ...

    Args:
        root: the folder; `~` is expanded.
        image_size: height and width in pixels; images of another size are resized, see `kd.data.decode`.
        name: the data set's name, by default root's. " (JPEG)" is appended if any training image is one.
        in_memory: whether the pixels are decoded to memory, or once to files under root/.decoded.

    Raises:
        UserError: for a missing or unreadable folder or file, a split without files, a damaged file, a missing
            column, a missing or damaged image, a label that is missing or names no class. Rows count from 0.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    train, test = ([_read(file) for file in files] for files in _files(root))
    names = next((shard.names for shard in train + test if shard.names), None)
    if names is None:
        names = tuple(str(label) for label in range(len({label for shard in train for label in shard.labels.tolist()})))
    for shard in train + test:
        shard.check(names)
    (train_x, jpeg), (test_x, _) = (
        _decode(shards, image_size, None if in_memory else root) for shards in (train, test)
    )
    return Images(
        name=display_name(name or root.name, jpeg),
        classes=names,
        train_x=train_x,
        train_y=torch.cat([shard.labels for shard in train]),
        test_x=test_x,
        test_y=torch.cat([shard.labels for shard in test]),
    )


class _Shard(NamedTuple):
    file: Path
    image: str
    """Name of the image column."""
    labels: Tensor
    names: tuple[str, ...]
    """Class names; empty if the file has none."""

    def row(self, i: int) -> str:
        return f"{self.file}, row {i}"

    def encoded(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name of each image for errors, and its file's content."""
        row = 0
        with _readable(self.file) as source:
            for batch in source.iter_batches(columns=[self.image]):
                for data in pc.struct_field(batch[0], "bytes").to_pylist():
                    if data is None:
                        raise _missing(self.row(row), self.image)
                    yield self.row(row), data
                    row += 1

    def check(self, names: tuple[str, ...]) -> None:
        """Raise a UserError if this file contradicts the data set's class names."""
        if self.names and self.names != names:
            raise UserError(
                f"{self.file}: names other classes than the files before it; set data.root=DIR to a folder with one "
                "data set only"
            )
        bad = ((self.labels < 0) | (self.labels >= len(names))).nonzero()[:, 0].tolist()
        if bad:
            raise UserError(
                f"{self.row(bad[0])}: label {self.labels[bad[0]]} is none of the {len(names)} classes 0 to "
                f"{len(names) - 1}; correct the file"
            )


def _decode(shards: list[_Shard], image_size: int, cache_root: Path | None) -> Decoded:
    cache = None if cache_root is None else cache_path(cache_root, [shard.file for shard in shards], image_size)
    encoded = chain.from_iterable(shard.encoded() for shard in shards)
    return decode(encoded, sum(len(shard.labels) for shard in shards), image_size, cache)


def _files(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of train and test."""
    try:
        os.listdir(root)  # rglob ignores a folder that is missing or unreadable
        found = sorted(root.rglob("*.parquet"))
    except OSError as error:
        raise UserError(f"{root}: {error.strerror}; set data.root=DIR to the parquet files' folder") from error
    train = [file for file in found if "train" in file.name]
    test = [file for file in found if "test" in file.name and "train" not in file.name]
    for split, files in (("train", train), ("test", test)):
        if not files:
            names = ", ".join(str(file.relative_to(root)) for file in found[:5]) or "none"
            raise UserError(
                f"{root}: no *{split}*.parquet in it or below (parquet files found: {names}); put it there or set "
                "data.root=DIR to where it is"
            )
    return train, test


@contextmanager
def _readable(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a file; errors while it is open become a UserError."""
    try:
        with pq.ParquetFile(file) as source:
            yield source
    except PermissionError as error:
        raise UserError(f"{file}: permission denied; make it readable") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a readable parquet file ({reason}); copy or download it again") from error


def _read(file: Path) -> _Shard:
    """Read everything but the images themselves."""
    with _readable(file) as source:
        schema = source.schema_arrow
        image = _column(file, schema, ("img", "image"), "that is a struct with bytes", _is_image)
        label = _column(file, schema, ("label", "fine_label"), "of integers", pa.types.is_integer)
        names = _names(schema, label)
        labels = source.read(columns=[label])[label].to_pylist()
    if not labels:
        raise UserError(f"{file}: no rows in it; delete it or download it again")
    if None in labels:
        raise _missing(f"{file}, row {labels.index(None)}", label)
    return _Shard(file, image, torch.tensor(labels), names)


def _missing(row: str, column: str) -> UserError:
    return UserError(f"{row}: {column} is missing; correct the file or download it again")


def _column(
    file: Path, schema: pa.Schema, names: tuple[str, str], kind: str, is_kind: Callable[[pa.DataType], bool]
) -> str:
    """Return which of two column names the file has."""
    for name in names:
        if name in schema.names and is_kind(schema.field(name).type):
            return name
    found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    raise UserError(f"{file}: no column {' or '.join(names)} {kind} (columns found: {found}); rename or convert it")


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names that the Hugging Face metadata gives to a label column, empty if none."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(metadata.get("info", {}).get("features", {}).get(label, {}).get("names", ()))
