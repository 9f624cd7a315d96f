"""Parquet files whose footer or page headers say something else than what is there.

Footer and page headers are structures in Thrift's compact protocol. They are taken apart here, each integer can be
changed, and they are put together again, so that all else of the file stays right.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

BYTE, BINARY, LIST, STRUCT = 3, 8, 9, 12
INTEGERS = (4, 5, 6)
DICTIONARY = 2

LIES = (0, 1, -1, 7, 100, 100_000, 2**27, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))

Field = list[Any]
"""A number, a type and a value. Structures are lists of them; lists have a type and their values."""


class Place(NamedTuple):
    """Where an integer stands."""

    path: tuple[int, ...]
    """Numbers of the fields, places in lists."""
    holder: list[Any]
    index: int

    @property
    def value(self) -> int:
        return int(self.holder[self.index])


class Parquet:
    """A parquet file taken apart."""

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[-8:-4], "little")
        self.footer, _ = parse(STRUCT, data, len(data) - 8 - size)
        self.columns: list[tuple[Field, bytes, list[tuple[list[Field], bytes]]]] = []
        """Of each column in each row group: what the footer has of it, what lies before it, which older versions of
        pyarrow write, and its pages, header and content."""
        end = 4
        for group in field(self.footer, 4)[1]:
            for column in field(group, 1)[1]:
                about = field(column, 3)
                place = field(about, 11) or field(about, 9)
                before, stop, pages = data[end:place], place + field(about, 7), []
                while place < stop:
                    header, start = parse(STRUCT, data, place)
                    place = start + field(header, 3)
                    pages.append((header, data[start:place]))
                self.columns.append((about, before, pages))
                end = stop
        self.rest = data[end : -8 - size]

    def places(self) -> list[Place]:
        """Return all integers: those of the footer, whose path begins with 0, then those of each page header."""
        found = list(_integers(STRUCT, self.footer, (0,)))
        headers = (header for _, _, pages in self.columns for header, _ in pages)
        return found + [place for i, header in enumerate(headers) for place in _integers(STRUCT, header, (i + 1,))]

    def settle(self) -> None:
        """Let the footer have the places and sizes of the columns as they are now."""
        end = 4
        for about, before, pages in self.columns:
            places: dict[int, int] = {}
            start = end = end + len(before)
            for header, content in pages:
                places.setdefault(11 if field(header, 1) == DICTIONARY else 9, end)
                end += len(unparse(STRUCT, header)) + len(content)
            places[7] = end - start
            for entry in about:
                entry[2] = places.get(entry[0], entry[2])

    def data(self) -> bytes:
        data = b"PAR1"
        for _, before, pages in self.columns:
            data += before + b"".join(unparse(STRUCT, header) + content for header, content in pages)
        footer = unparse(STRUCT, self.footer)
        return data + self.rest + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def changed(data: bytes, path: tuple[int, ...], value: int) -> bytes:
    """Return a parquet file with another integer at a place."""
    file = Parquet(data)
    place = next(place for place in file.places() if place.path == path)
    place.holder[place.index] = value
    if path[0]:
        file.settle()
    return file.data()


def lie(rng: random.Random, data: bytes) -> bytes:
    """Return a parquet file with one or two other integers."""
    file = Parquet(data)
    for place in rng.sample(file.places(), rng.choice((1, 1, 2))):
        near = (place.value - 1, place.value + 1, place.value * 2)
        place.holder[place.index] = rng.choice((*near, *LIES))
        if place.path[0]:
            file.settle()
    return file.data()


# --- Thrift's compact protocol


def field(struct: list[Field], number: int) -> Any:
    return next((value for known, _, value in struct if known == number), None)


def _integers(kind: int, value: Any, path: tuple[int, ...]) -> Iterator[Place]:
    if kind == STRUCT:
        for entry in value:
            if entry[1] in INTEGERS:
                yield Place((*path, entry[0]), entry, 2)
            else:
                yield from _integers(entry[1], entry[2], (*path, entry[0]))
    elif kind == LIST:
        of, items = value
        for i, item in enumerate(items):
            if of in INTEGERS:
                yield Place((*path, i), items, i)
            else:
                yield from _integers(of, item, (*path, i))


def parse(kind: int, data: bytes, place: int) -> tuple[Any, int]:
    """Return the value of a type that begins at a place, and where it ends."""
    if kind in INTEGERS:
        value, place = _varint(data, place)
        return value >> 1 ^ -(value & 1), place
    if kind == BYTE:
        return data[place : place + 1], place + 1
    if kind == BINARY:
        length, place = _varint(data, place)
        return data[place : place + length], place + length
    if kind == LIST:
        head, place = data[place], place + 1
        length, place = _varint(data, place) if head >> 4 == 15 else (head >> 4, place)
        items = []
        for _ in range(length):
            item, place = parse(head & 15, data, place)
            items.append(item)
        return [head & 15, items], place
    if kind == STRUCT:
        fields: list[Field] = []
        while head := data[place]:
            number = (fields[-1][0] if fields else 0) + (head >> 4)
            if head & 15 in (1, 2):  # true and false, which take no more
                fields.append([number, head & 15, None])
                place += 1
            else:
                value, place = parse(head & 15, data, place + 1)
                fields.append([number, head & 15, value])
        return fields, place + 1
    raise ValueError(f"type {kind}, which pyarrow does not write")


def unparse(kind: int, value: Any) -> bytes:
    """Return the bytes of a value."""
    if kind in INTEGERS:
        return _to_varint((value << 1 ^ value >> 63) & (2**64 - 1))
    if kind == BYTE:
        return bytes(value)
    if kind == BINARY:
        return _to_varint(len(value)) + value
    if kind == LIST:
        of, items = value
        head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([15 << 4 | of]) + _to_varint(len(items))
        return head + b"".join(unparse(of, item) for item in items)
    written, last = b"", 0
    for number, of, item in value:
        written += bytes([number - last << 4 | of]) + (b"" if item is None else unparse(of, item))
        last = number
    return written + b"\0"


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 128:
            return value, place


def _to_varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])
