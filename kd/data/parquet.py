"""Images in parquet files, laid out as on the Hugging Face hub."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kd.data.decode import Decoded, cache_of, change_notes, decode, display_name
from kd.data.images import Images
from kd.data.parquet_pages import Chunk, chunks
from kd.data.tree import LONGEST_NAME, SPLITS, Tree, check_class_names, in_order
from kd.errors import UserError
from kd.files import checksum
from kd.ranges import Size
from kd.terminal import visible

IMAGE = ("img", "image", "bytes")
LABEL = ("label", "labels", "fine_label", "fine_labels")

ROWS = 1000
"""Images in memory at a time, encoded."""

AT_A_TIME = 2**29
"""Bytes of values to be in memory at a time, at most, but for a single one."""

PACKED = 100
"""How many times its own size a column may unpack to; images and names of classes are hardly compressed further."""


def parquet(
    root: str | os.PathLike[str],
    image_size: Size = 32,
    name: str | None = None,
    in_memory: bool = True,
    channels: int | None = None,
    keep: bool = False,
) -> Images:
    """Load the images in the train and test parquet files below root.

    A file's split is named in its name, or else in that of its folder, as a whole word: train-00000-of-00002.parquet,
    cifar10-train.parquet, plain_text/train/0000.parquet. The files of a split are one series in one folder, all its
    shards, read in the order of their numbers. Without a test split, validation is the test split. `Images.summary`
    has what was decided and what was passed over, see `kd.data.tree`.

    Each file has an image column, `img`, `image` or `bytes`: encoded images, or a struct whose `bytes` are; binary or
    lists of uint8. Its label column, `label`, `labels`, `fine_label` or `fine_labels`, has integers or class names.
    The names of integers are those in the schema's Hugging Face metadata, or else "0", "1", ...; classes that are names
    are sorted, by value if all are whole numbers.

    Args:
        root: the folder; `~` is expanded.
        image_size: height and width in pixels, one number for squares; images of another size are resized, see
            `kd.data.decode`.
        name: the data set's name, by default root's. " (JPEG)" is appended if any training image is one.
        in_memory: whether the pixels are decoded to memory, or once to files under root/.decoded.
        channels: 1 to have all images grey; 3 or None for RGB.
        keep: whether pixels in memory are also kept in files under root/.decoded, where that can be written, so that
            they need not be decoded again.

    Raises:
        UserError: for a missing or unreadable folder or file, a split without files, with a shard missing or with
            several series that differ, a damaged file, a missing column, a missing or damaged image, a label that is
            missing or names no class. Rows count from 0.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    tree = Tree(root, [".parquet"], links_out=True)  # a hub cache links to its blobs
    try:
        splits, notes = _splits(tree)
    except OSError as error:
        raise UserError(
            f"{visible(error.filename)}: {error.strerror}; set data.root=DIR to the parquet files' folder"
        ) from error
    train, test = ([_read(file) for file in files] for files in splits)
    names = _class_names(train, test)
    labels = [torch.cat([shard.targets(names) for shard in shards]) for shards in (train, test)]
    cache_root = None if in_memory and not keep else root
    decoded = [
        _decode(*split, image_size, cache_root, channels, in_memory) for split in (("train", train), ("test", test))
    ]
    return Images(
        name=display_name(name or visible(root.name), "JPEG" if decoded[0].jpeg else ""),
        classes=names,
        train_x=decoded[0].x,
        train_y=labels[0],
        test_x=decoded[1].x,
        test_y=labels[1],
        resized_from=decoded[0].resized_from | decoded[1].resized_from,
        notes=(*notes, *tree.notes(), *change_notes(*decoded)),
    )


def has_parquet(root: Path) -> bool:
    """Return whether there are parquet files of a train split below a folder."""
    files = Tree(root, [".parquet"], links_out=True).files(root)
    return any(_split(file, root)[0] == "train" for file in files)


# --- which files


def _splits(tree: Tree) -> tuple[tuple[list[Path], list[Path]], tuple[str, ...]]:
    """Return the files of train and test, and what was decided."""
    root = tree.root
    found = tree.files(root)
    of_split: dict[str, list[Path]] = {split: [] for split in ("train", "test", "val", "")}
    for file in found:
        of_split[_split(file, root)[0]].append(file)
    notes = []
    tree.pass_over(of_split[""], ".parquet of no split")
    if of_split["test"]:
        tree.pass_over(of_split["val"], ".parquet of a validation split")
    elif of_split["val"]:
        of_split["test"] = of_split["val"]
        notes.append("validation taken as the test split")
    chosen = []
    for split in ("train", "test"):
        if not of_split[split]:
            names = ", ".join(_relative(file, root) for file in found[:5]) or "none"
            raise UserError(
                f"{visible(root)}: no *{split}*.parquet in it or below (parquet files found: {names}); put it "
                "there or set data.root=DIR to where it is"
            )
        files, copies = _one_set(root, split, of_split[split])
        chosen.append(files)
        if copies:
            notes.append(f"{copies + 1} copies of the {split} split, {_relative(files[0], root)} taken")
    places = [_relative(_split(files[0], root)[1], root) for files in chosen]
    if places[0] != places[1]:
        notes.append(f"training images from {places[0]}/, test images from {places[1]}/")
    return (chosen[0], chosen[1]), tuple(notes)


def _split(file: Path, root: Path) -> tuple[str, Path]:
    """Return a file's split and the folder of its data set.

    The split is what the file's name has as a whole word, or else its folder's; "" for none, or several.
    """
    for place in (file, file.parent):
        words = {SPLITS[word] for word in re.findall("[a-z]+", place.name.lower()) if word in SPLITS}
        if words and place != root:
            return (words.pop() if len(words) == 1 else ""), place.parent
    return "", file.parent


class _Set(NamedTuple):
    """What the files of one split have in common: their folder, and the name but for its numbers."""

    folder: Path
    pattern: str
    """# stands for a number."""
    shards: int
    """How many there are, as in 00000-of-00002; 0 if the name does not say."""


def _one_set(root: Path, split: str, files: list[Path]) -> tuple[list[Path], int]:
    """Return the files of a split, sorted by their numbers, and how many copies of them there are beside."""
    sets: dict[_Set, list[tuple[list[int], Path]]] = defaultdict(list)
    for file in files:
        name = re.sub(r"-[0-9a-f]{16}$", "", file.stem)  # what older versions of the hub's tools append to a shard
        number = rf"(?<![^\W_])({'|'.join(SPLITS)}|)\d+(?![^\W_])"  # cifar100 is a name; 00000 and train0 have numbers
        of = re.search(r"(?<!\d)(\d+)-of-(\d+)(?!\d)", name)
        numbers = [int(of[1])] if of else [int(n) for n in re.findall(r"\d+", name)]
        key = _Set(file.parent, re.sub(number, r"\1#", name, flags=re.IGNORECASE), int(of[2]) if of else 0)
        sets[key].append((numbers, file))
    ordered = [[file for _, file in sorted(sets[key])] for key in sorted(sets)]
    first, *others = ordered
    if not all(_same(first, other) for other in others):
        places = ", ".join(_relative(members[0], root) for members in ordered[:5])
        folder = _split(ordered[-1][0], root)[1]
        mend = f"set data.root to one of them, such as data.root={visible(folder)}"
        if len({key.folder for key in sets}) == 1:
            mend = "move all but one of them away"
        raise UserError(f"{visible(root)}: {len(sets)} sets of {split} files that differ: {places}; {mend}")
    for key, members in sets.items():
        numbers = sorted(number for of_file, _ in members for number in of_file[:1])
        if key.shards and (len(numbers) != key.shards or numbers != list(range(len(numbers)))):
            there = ", ".join(f"{n:05}" for n in numbers[:10]) + (" ..." if len(numbers) > 10 else "")
            raise UserError(
                f"{visible(members[0][1])}: one of {key.shards:,} shards, of which {there} "
                "are there; download what is missing, delete what is there twice"
            )
    return first, len(others)


def _same(files: list[Path], others: list[Path]) -> bool:
    """Return whether two lists of files have the same content."""
    pairs = list(zip(files, others, strict=False))
    if len(files) != len(others) or any(a.stat().st_size != b.stat().st_size for a, b in pairs):
        return False
    return all(a.samefile(b) or checksum(a) == checksum(b) for a, b in pairs)


def _relative(path: Path, root: Path) -> str:
    return visible(path.relative_to(root))


# --- what is in them


class _Shard(NamedTuple):
    file: Path
    image: str
    """Name of the image column."""
    labels: list[int | str]
    """Integers or names, not both."""
    names: tuple[str, ...]
    """Class names of integer labels; empty if the file has none."""
    at_a_time: int
    """Rows whose images may be in memory at a time."""

    def row(self, i: int) -> str:
        return f"{self.file}, row {i}"

    def encoded(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name of each image for errors, and its file's content."""
        row = 0
        with _readable(self.file) as source:
            for column in _values(source, self.image, self.at_a_time):
                column = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
                binary = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
                for data in column.to_pylist() if binary else map(_bytes, column):
                    if data is None:
                        raise _missing(self.row(row), self.image)
                    if row < len(self.labels):
                        yield self.row(row), data
                    row += 1
        _check_count(self.file, self.image, row, len(self.labels))

    def targets(self, names: tuple[str, ...]) -> Tensor:
        """Return the labels (N,), int64, as places in the class names.

        Raises:
            UserError: if this file contradicts the data set's class names.
        """
        if self.names and self.names != names:
            raise UserError(
                f"{visible(self.file)}: names other classes than the files before it; set data.root=DIR to a "
                "folder with one data set only"
            )
        text = isinstance(self.labels[0], str)
        places = dict(zip(names if text else range(len(names)), range(len(names)), strict=True))
        try:
            return torch.tensor([places[label] for label in self.labels])
        except KeyError:
            row, label = next((row, label) for row, label in enumerate(self.labels) if label not in places)
        raise UserError(
            f"{visible(self.row(row))}: label {visible(label)[:50]} is none of the {len(names):,} classes "
            f"{' to '.join(visible(known) for known in (*places,)[:: max(1, len(places) - 1)])}; correct the file"
        )


def _class_names(train: list[_Shard], test: list[_Shard]) -> tuple[str, ...]:
    """Return the class names: those of the metadata, of the labels themselves, or numbers."""
    text = isinstance(train[0].labels[0], str)
    for shard in (*train, *test):
        if isinstance(shard.labels[0], str) != text:
            raise UserError(
                f"{visible(shard.file)}: its labels are {'numbers' if text else 'names'}, unlike those of "
                f"{visible(train[0].file)}; convert one of them"
            )
    names = next((shard.names for shard in (*train, *test) if shard.names), None)
    if names is None or text:
        labels = {label for shard in train for label in shard.labels}
        names = tuple(in_order(map(str, labels)) if text else map(str, range(len(labels))))
    check_class_names(names, train[0].file)
    return names


def _decode(
    split: str, shards: list[_Shard], image_size: Size, cache_root: Path | None, channels: int | None, in_memory: bool
) -> Decoded:
    files = [shard.file for shard in shards]
    cache = None if cache_root is None else cache_of(cache_root, f"parquet-{split}", files, image_size, channels)
    encoded = chain.from_iterable(shard.encoded() for shard in shards)
    return decode(encoded, sum(len(shard.labels) for shard in shards), image_size, cache, channels, in_memory)


@contextmanager
def _readable(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a file; errors while it is open become a UserError."""
    shown = visible(file)
    try:
        with pq.ParquetFile(file) as source:
            yield source
    except PermissionError as error:
        raise UserError(f"{shown}: permission denied; make it readable") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = visible((str(error).splitlines() or [type(error).__name__])[0])
        raise UserError(f"{shown}: not a readable parquet file ({reason}); copy or download it again") from error


def _read(file: Path) -> _Shard:
    """Read everything but the images themselves."""
    with _readable(file) as source:
        schema = source.schema_arrow
        image = _column(file, schema, IMAGE, "of encoded images", _is_image)
        label = _column(file, schema, LABEL, "of integers or names", _is_label)
        names = _names(file, schema, label)
        images, of_labels = (_chunks(file, source, column) for column in (image, label))
        rows = source.metadata.num_rows
        _check_sizes(file, rows, {image: images, label: of_labels})
        for chunk in of_labels:
            _check_count(file, label, chunk.values, chunk.rows)
        labels = list(_labels(file, source, label, _rows_at_a_time(of_labels, AT_A_TIME // 2)))  # str takes as much
        _check_count(file, label, len(labels), rows)
    if not labels:
        raise UserError(f"{visible(file)}: no rows in it; delete it or download it again")
    if None in labels:
        raise _missing(f"{file}, row {labels.index(None)}", label)
    return _Shard(file, image, cast(list[int | str], labels), names, _rows_at_a_time(images, AT_A_TIME))


def _chunks(file: Path, source: pq.ParquetFile, column: str) -> list[Chunk]:
    """Return the parts of a column: of a struct all its fields."""
    schema = source.schema
    parts = {i for i in range(len(schema)) if schema.column(i).path.partition(".")[0] == column}
    with open(file, "rb") as opened:
        return [chunk for chunk in chunks(opened) if chunk.column in parts]


def _check_sizes(file: Path, rows: int, columns: dict[str, list[Chunk]]) -> None:
    """Refuse a file that would unpack to far more than it is."""
    size = file.stat().st_size
    if rows > size:
        raise UserError(f"{visible(file)}: {rows:,} rows in {size:,} bytes, which no images are; download it again")
    for name, parts in columns.items():
        packed, unpacked = sum(chunk.packed for chunk in parts), sum(chunk.unpacked for chunk in parts)
        if unpacked > max(AT_A_TIME, PACKED * packed):
            raise UserError(
                f"{visible(file)}: {name} unpacks from {packed:,} bytes to {unpacked:,}; if you trust it, write it "
                "anew without compression"
            )


def _check_count(file: Path, column: str, values: int, rows: int) -> None:
    if values != rows:
        raise UserError(
            f"{visible(file)}: damaged, {rows:,} rows and {values:,} values of {column}; copy or download it again"
        )


def _rows_at_a_time(parts: list[Chunk], at_a_time: int) -> int:
    """Return how many rows of a column take no more than that many bytes in memory, at least one."""
    of_group: dict[int, int] = defaultdict(int)
    for chunk in parts:
        of_group[chunk.group] += chunk.unpacked
    # Each value may be as long as all that is stored of its group: a dictionary stores equal ones once.
    return max(1, min(ROWS, at_a_time // max(1, *of_group.values(), 1)))


def _values(source: pq.ParquetFile, column: str, rows: int) -> Iterator[pa.Array]:
    """Yield a column's values, so many rows at a time."""
    for batch in source.iter_batches(rows, columns=[column]):
        yield batch[0]


def _labels(file: Path, source: pq.ParquetFile, column: str, rows: int) -> Iterator[int | str | None]:
    """Yield the labels; equal names are one object."""
    same: dict[int | str | None, int | str | None] = {}
    for values in _values(source, column, rows):
        part = values.to_pylist()
        new = set(part) - same.keys()
        check_class_names((y for y in new if isinstance(y, str) and len(y) > LONGEST_NAME), file)  # before all are read
        same.update(zip(new, new, strict=True))
        yield from (same[label] for label in part)


def _missing(row: str, column: str) -> UserError:
    return UserError(f"{visible(row)}: {column} is missing; correct the file or download it again")


def _column(
    file: Path, schema: pa.Schema, names: tuple[str, ...], kind: str, is_kind: Callable[[pa.DataType], bool]
) -> str:
    """Return which of some column names the file has."""
    matching = [field.name for field in schema if field.name in names and is_kind(field.type)]
    if len(matching) == 1:
        return str(matching[0])
    found = ", ".join(f"{visible(field.name)} ({field.type})"[:60] for field in list(schema)[:20]) or "none"
    wrong = f"several columns {' and '.join(matching)}" if matching else f"no column {' or '.join(names)}"
    mend = "leave one of them" if matching else "rename or convert it"
    raise UserError(f"{visible(file)}: {wrong} {kind} (columns found: {found}); {mend}")


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0) and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or (lists and pa.types.is_uint8(kind.value_type))
    )


def _bytes(values: pa.ListScalar) -> bytes | None:
    """Return a list of uint8 as bytes."""
    return bytes(values.values.to_numpy().tobytes()) if values.is_valid else None


def _is_label(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names(file: Path, schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names that the Hugging Face metadata gives to a label column, empty if none."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return ()
    damaged = UserError(f"{visible(file)}: damaged metadata (huggingface); download the file again")
    try:
        names = json.loads(text)
        for key in ("info", "features", label, "names"):
            names = names.get(key, {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged from error
    names = names or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise damaged
    return tuple(names)
