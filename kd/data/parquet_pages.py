"""What the columns of a parquet file unpack to, as the headers of their pages have it.

A footer's sizes are claims: few bytes of pages may unpack to any number of values, whatever the footer says of them.
pyarrow allocates what the headers of the pages promise, and it ends the process (SIGABRT, pyarrow 26) when it is asked
for the sizes of a column whose footer contradicts itself. So both are read here, before pyarrow reads a value.

Sources: https://github.com/apache/parquet-format (src/main/thrift/parquet.thrift);
https://github.com/apache/thrift (doc/specs/thrift-compact-protocol.md).
"""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

MAX_FOOTER = 2**25
"""Bytes of a footer that are read: it has the extremes of each row group's column, some 5 kB of small images."""

MAX_PAGE_HEADER = 2**20

MAX_DEPTH = 32
"""Depth of structures in one another, at most; the format has six."""

VALUE = 8
"""Bytes that a value takes in memory, at least, however few bits it is stored in: a number, or the levels of a list."""

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
HEADER_OF = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
"""By a page's type, which field of its header has the number of values."""


class Chunk(NamedTuple):
    """The values of one column in one row group; each field of a struct is a column of its own."""

    group: int
    column: int
    """Its place in the schema, which alone says what it is: readers do not use the name that it has here, too."""
    rows: int
    """Rows of its row group, as the footer has it."""
    values: int
    """In the pages; of a column that is no list, one a row."""
    packed: int
    """Bytes in the file."""
    unpacked: int
    """Bytes of the pages in memory, or of their values if those are more."""


def chunks(file: BinaryIO) -> Iterator[Chunk]:
    """Yield each column of each row group of a parquet file.

    Raises:
        ValueError: for a footer or page header that is damaged, or leads out of the file.
    """
    size = file.seek(0, os.SEEK_END)
    footer_size = int.from_bytes(_read(file, size - 8, 4), "little")
    if footer_size > min(MAX_FOOTER, size - 12):
        raise ValueError(f"a footer of {footer_size:,} bytes")
    try:
        footer = Compact(_read(file, size - 8 - footer_size, footer_size)).struct()
        types = [element[1] for element in footer[2] if not element.get(5)]  # which others are made of
        for place, group in enumerate(footer[4]):
            if [chunk[3][1] for chunk in group[1]] != types:
                raise ValueError("columns of another type than the schema has")
            for column, chunk in enumerate(group[1]):
                about = chunk[3]
                data, dictionary, packed = about[9], about.get(11, 0), about[7]
                start = dictionary if 0 < dictionary < data else data
                if about[5] and not 4 <= start <= start + packed <= size - 8 - footer_size:
                    raise ValueError("a column that lies outside of the file")
                values, unpacked = _pages(file, start, start + packed, about[5])
                yield Chunk(place, column, group[3], values, packed, unpacked)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("a damaged footer") from error


def _pages(file: BinaryIO, start: int, stop: int, claimed: int) -> tuple[int, int]:
    """Return the number of values in the pages of a column, and what they take in memory.

    Args:
        start, stop: where the pages lie.
        claimed: the number of values by the footer, after which no page is read.
    """
    values = entries = unpacked = 0
    while values < claimed and start < stop:
        header, length = _page_header(file, start)
        page, in_file = header[2], header[3]
        count = header[HEADER_OF[header[1]]][1] if header[1] in HEADER_OF else 0
        start += length + in_file
        if min(page, in_file, count) < 0 or start > stop:
            raise ValueError("a damaged page header")
        unpacked += page
        if header[1] == DICTIONARY:
            entries += count
        else:
            values += count
    return values, max(unpacked, VALUE * (values + entries))


def _page_header(file: BinaryIO, start: int) -> tuple[dict[int, Any], int]:
    """Return a page's header and its length in bytes."""
    size = 2**10  # more than most have
    while True:
        thrift = Compact(_read(file, start, size))
        try:
            return thrift.struct(), thrift.place
        except IndexError:  # it is longer, as one may be that has the smallest and the largest value
            if size >= MAX_PAGE_HEADER:
                raise
            size *= 32


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(max(0, start))
    return file.read(size)


class Compact:
    """A reader of Thrift's compact protocol.

    Args:
        data: structures, which have to be whole.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the next structure, its values by the numbers of the fields.

        Raises:
            ValueError: for what readers may take differently: a field that is there twice, numbers beyond their type.
            IndexError: if the data end before.
        """
        if depth > MAX_DEPTH:
            raise ValueError("structures too deep in one another")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer(16)
            if number in fields:
                raise ValueError("a field that is there twice")
            fields[number] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # switches, here in a list, and bytes
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer({4: 16, 5: 32, 6: 64}[kind])
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            length = self._varint() if head >> 4 == 15 else head >> 4
            if depth > MAX_DEPTH:
                raise ValueError("lists too deep in one another")
            return [self._value(head & 15, depth + 1) for _ in range(length)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"a field of type {kind}")

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _bytes(self, length: int) -> bytes:
        self.place += length
        if self.place > len(self.data):
            raise IndexError
        return self.data[self.place - length : self.place]

    def _integer(self, bits: int) -> int:
        value = self._varint()
        if value >> bits:
            raise ValueError("a number beyond its type")
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number beyond its type")
