"""Decoding of image files to tensors, for all sources that read files."""

import hashlib
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kd.data.stored import Pixels, StoredPixels, chunks
from kd.data.tree import CACHE
from kd.errors import UserError
from kd.files import TEMPORARY, clear_leftovers, open_regular, replaced, reserve
from kd.hashing import digest
from kd.ranges import Size, require, short_size, sides, size_text
from kd.terminal import visible, with_progress

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read, recognised by content. Nothing else is: other formats of PIL start programs (EPS) or have no use."""

MAX_PIXELS = 64_000_000
"""Pixels of one image, at most, as its header has it: what decoding takes memory for."""

BACKGROUND = "white"

FORMAT = 2
"""Version of decoded pixels on disk; another one when `decode` makes other pixels of the same files."""

MAX_FACTS = 2**24
"""Bytes that are read of what is known of decoded images."""

OF_EARLIER_VERSIONS = re.compile(r"[0-9a-f]{16}\.(npy|json)")
"""Files of decoded pixels, named by their key."""

ORIENTATION = 0x0112
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, what brings the image upright."""

PLAIN_FORMATS = {"PNG", "JPEG"}
SPECIAL = {"transparency", "loop", "exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Entries of PIL's `info` without which an RGB image of these formats is used as it is."""


class Decoded(NamedTuple):
    x: Pixels
    """(N, 3, H, W), uint8, RGB; or grey, (N, 1, H, W)."""
    jpeg: bool
    """Whether any of the images is a JPEG: pixels that were re-encoded are not the original's."""
    resized_from: frozenset[tuple[int, int]]
    """Width and height of the images that were resized."""
    changes: Counter[str]
    """How many images were changed otherwise, by what was done."""


class Cache(NamedTuple):
    """A place on disk for the decoded pixels of one split: one for each size, so that new ones replace old ones."""

    path: Path
    """Without suffix: `.npy` holds the pixels, `.json` what is known of them."""
    key: str
    """Changes when any of the files does."""


def decode(
    encoded: Iterable[tuple[str, bytes]],
    n: int,
    size: Size,
    cache: Cache | None = None,
    channels: int | None = None,
    in_memory: bool = False,
) -> Decoded:
    """Decode N image files.

    Images become upright (EXIF), RGB, 8 bits, and opaque:

    * grey values v of 16 bits become round(v / 257), or with transparency their high byte, as those of colours do;
    * transparency is composited on white;
    * of several frames or pages the first is taken;
    * other sizes are resized, bilinear and antialiased, without regard to their aspect ratio.

    Args:
        encoded: the name of each image for errors, and its file's content, in one of `FORMATS`; N pairs.
        n: N.
        size: height and width in pixels, at least 1; one number for squares.
        cache: see `cache_of`: pixels that were decoded there before are used, if key, shape and checksum agree; else
            they are written there. They stay there, see `kd.data.stored`. By default the pixels are in memory.
        channels: 1 for grey images, RGB ones made grey; 3 or None for RGB.
        in_memory: whether the pixels are in memory in spite of a cache, which then only saves the decoding: where it
            cannot be read or written it is done without.

    Raises:
        UserError: for an image that cannot be decoded, has more than `MAX_PIXELS`, or pixels of 32 bits; for pixels
            that memory does not hold, or that cannot be written.
        ValueError: for a size below 1.
    """
    if channels is not None:
        require("data.channels", channels)
    shape = (n, 3 if channels is None else int(channels), *sides("data.image_size", size))
    if cache is None or in_memory:
        kept = None if cache is None else _kept(cache, shape)
        return kept or _in_memory(encoded, shape, size, cache)
    file, facts = cache.path.with_suffix(".npy"), cache.path.with_suffix(".json")
    folder = cache.path.parent
    try:
        decoded = _cached(file, facts, shape, cache.key)
        if decoded is None:
            with _new_file(cache) as temporary:
                pixels = new_mapping(temporary, shape)
                known = _fill(pixels, encoded)
                pixels.flush()
                _write_facts(cache, pixels, known)
            decoded = _cached(file, facts, shape, cache.key)
        if decoded is None:
            raise OSError(0, "was changed while it was read; is another run decoding other images there?", str(file))
        return decoded
    except OSError as error:
        where = Path(error.filename or file)
        if folder not in (where, *where.parents):
            raise  # an image that cannot be read
        shown = file if TEMPORARY.fullmatch(where.name) else where
        raise UserError(
            f"{visible(shown)}: {error.strerror or error}; data.in_memory=false keeps decoded pixels there: have it "
            "made readable and writable for you, or leave that out"
        ) from error


def _in_memory(
    encoded: Iterable[tuple[str, bytes]], shape: tuple[int, ...], size: Size, cache: Cache | None
) -> Decoded:
    """Decode into memory, and keep a copy in the cache if there is one that can be written."""
    try:
        pixels = np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        raise UserError(
            f"{shape[0]:,} images of {size_text(size)} pixels do not fit into memory; "
            "give a smaller data.source.image_size, or data.in_memory=false"
        ) from error
    known = _fill(pixels, encoded)
    if cache is not None:
        with suppress(OSError), _new_file(cache) as temporary:
            with open(temporary, "wb") as file:
                np.lib.format.write_array(file, pixels, version=(1, 0))
            _write_facts(cache, pixels, known)
    return Decoded(torch.from_numpy(pixels), *known)


def _kept(cache: Cache, shape: tuple[int, ...]) -> Decoded | None:
    """Return images of the cache, read to memory; None if there are none that can be used."""
    try:
        found = _cached(cache.path.with_suffix(".npy"), cache.path.with_suffix(".json"), shape, cache.key)
        return found and found._replace(x=found.x[:])
    except (OSError, UserError):
        return None


def display_name(name: str, *marks: str) -> str:
    """Return the data set's name with marks behind it, such as "JPEG" if its images were re-encoded; "" is no mark."""
    present = [mark for mark in marks if mark]
    return f"{name} ({', '.join(present)})" if present else name


def change_notes(*decoded: Decoded) -> tuple[str, ...]:
    """Return what was done to the images of all splits, for `Images.notes`."""
    total: Counter[str] = sum((part.changes for part in decoded), Counter())
    return tuple(f"{n:,} {'image' if n == 1 else 'images'} {change}" for change, n in sorted(total.items()))


Mapped = np.memmap[Any, np.dtype[np.uint8]]


def cache_of(root: Path, name: str, files: Iterable[Path], size: Size, channels: int | None = None) -> Cache:
    """Return the place under root for the decoded pixels of some files.

    The key has what the file system knows of each file, and not its content, which would have to be read in every run:
    10 to 20 microseconds a file. Size and time of change can be set at will; inode and the time of the last change of
    the inode cannot.

    Args:
        root: the data set's folder.
        name: of the source and split.
        files: in order.
        size: of the decoded images, in pixels.
        channels: of the decoded images, as of `decode`.

    Raises:
        OSError: for a file that is missing.
    """
    known = []
    for file in files:
        of = file.stat()  # as text: numbers of 64 bits are more than `digest` tells apart
        identity = f"{of.st_size} {of.st_mtime_ns} {of.st_ctime_ns} {of.st_ino}"
        known.append((str(file.relative_to(root)), identity))
    grey = "-grey" if channels is not None and int(channels) == 1 else ""
    return Cache(root / CACHE / f"{name}-{short_size(size)}{grey}", digest([FORMAT, known]))


def _cached(file: Path, facts: Path, shape: tuple[int, ...], key: str) -> Decoded | None:
    """Return decoded images from their files; None if these are missing, not whole or of other images."""
    try:
        with open_regular(facts) as text:
            found = json.loads(text.read(MAX_FACTS))
        jpeg, sizes, changes = found["known"]
        known = bool(jpeg), frozenset((int(width), int(height)) for width, height in sizes), Counter[str](changes)
        if found["key"] != key:
            return None
        pixels = StoredPixels(file)
        whole = pixels.shape == shape and _checksum(pixels) == found["sha256"]
    except (FileNotFoundError, ValueError, TypeError, KeyError, EOFError, RecursionError, MemoryError):
        return None
    return Decoded(pixels, *known) if whole else None


def read_only(pixels: NDArray[Any]) -> Tensor:
    """Return a mapped array as a tensor; torch has none that are read-only, and it must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def new_mapping(file: Path, shape: tuple[int, ...]) -> Mapped:
    """Return an array in a new file, memory-mapped, with its space allocated."""
    pixels: Mapped = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    with open(file, "r+b") as opened:
        reserve(opened, opened.seek(0, os.SEEK_END))
    return pixels


@contextmanager
def _new_file(cache: Cache) -> Iterator[Path]:
    """Yield the place of new pixels, which replace those of the cache when the block ends."""
    cache.path.parent.mkdir(parents=True, exist_ok=True)
    _clear(cache.path.parent)
    with replaced(cache.path.with_suffix(".npy")) as temporary:
        yield temporary


def _write_facts(cache: Cache, pixels: NDArray[np.uint8], known: "Facts") -> None:
    """Write what is known of decoded pixels, before these are in their place."""
    jpeg, sizes, changes = known
    facts = {"key": cache.key, "sha256": _checksum(pixels), "known": [jpeg, sorted(sizes), changes]}
    with replaced(cache.path.with_suffix(".json")) as written:
        written.write_text(json.dumps(facts))


def _checksum(pixels: NDArray[np.uint8] | StoredPixels) -> str:
    digest = hashlib.sha256()
    for part in with_progress(list(chunks(pixels)), "checking decoded images"):
        digest.update(np.ascontiguousarray(pixels[part]).data)
    return digest.hexdigest()


def _clear(folder: Path) -> None:
    """Remove what a kill left in a folder of decoded pixels, and the files of earlier versions."""
    clear_leftovers(folder)
    for file in folder.iterdir():
        if OF_EARLIER_VERSIONS.fullmatch(file.name):
            file.unlink(missing_ok=True)


Facts = tuple[bool, frozenset[tuple[int, int]], Counter[str]]
"""`Decoded` without the pixels."""


def _fill(pixels: NDArray[np.uint8], encoded: Iterable[tuple[str, bytes]]) -> Facts:
    """Decode into (N, 3, H, W), or grey into (N, 1, H, W)."""
    channels, height, width = pixels.shape[1:]
    size = width, height
    jpeg, sizes, changes = False, set(), Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of damaged metadata, which are not used
        # No threads: on images this small PIL holds the interpreter's lock, and two threads were slower than one.
        images = with_progress(zip(pixels, encoded, strict=True), "decoding images", len(pixels))
        for target, (name, data) in images:
            image = read_rgb(name, data, changes)
            if channels == 1:
                image = image.convert("L")  # what was grey has its values again
            if image.size != size:
                sizes.add(image.size)
                image = image.resize(size, Image.Resampling.BILINEAR)
            target[:] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
            jpeg |= data.startswith(b"\xff\xd8")
    return jpeg, frozenset(sizes), changes


def read_rgb(name: str, data: bytes, changes: Counter[str]) -> Image.Image:
    """Return the image in a file's content as `to_rgb` makes it.

    Args:
        name: the file's name, for errors.
        data: its content.
        changes: where to count what was done.

    Raises:
        UserError: as `decode`.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(_too_large(name, f"{image.width:,}x{image.height:,} pixels are"))
        return image if _is_plain(image) else to_rgb(image, name, changes)
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # PIL's own bound, which is higher
        raise UserError(_too_large(name, "its pixels are")) from error
    except Exception as error:  # on damaged files PIL raises anything
        raise UserError(
            f"{visible(name)}: damaged, or not an image (PNG, JPEG, WebP, BMP, GIF, TIFF); copy or download it again"
        ) from error


def _too_large(name: str, pixels: str) -> str:
    return f"{visible(name)}: {pixels} more than {MAX_PIXELS // 1_000_000} megapixels; make the image smaller"


def _is_plain(image: Image.Image) -> bool:
    """Return whether an image can be used as it is: the quick way for the many."""
    if image.format not in PLAIN_FORMATS or image.mode != "RGB":
        return False
    image.load()  # entries of a PNG may lie behind its pixels
    return SPECIAL.isdisjoint(image.info)


def to_rgb(image: Image.Image, name: str, changes: Counter[str]) -> Image.Image:
    """Return an image upright, RGB, of 8 bits, opaque, and count in `changes` what was done; see `decode`."""
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo with its preview
        changes["of several frames, the first taken"] += 1
    # PIL turns a TIFF when it is loaded. For a PNG this would load it, and take no notice of damage.
    stored = _orientation(image) if image.format == "TIFF" else 1
    image.load()
    orientation = _orientation(image)  # PIL has turned a TIFF by now; the entry of a PNG may lie behind its pixels
    if (stored if orientation == 1 else orientation) in TURNED:
        changes["turned upright as EXIF has it"] += 1
    if image.mode[0] in "IF":
        image = _eight_bits(image, name)
        changes["of 16 bits scaled to 8"] += 1
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            changes[f"with transparency composited on {BACKGROUND}"] += 1
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if orientation in TURNED:
        image = image.transpose(TURNED[orientation])
        image.info = {}  # which still say how it lay, so that whoever is given it would turn it again
    return image


def _orientation(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 for upright, also if its EXIF data are damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # PIL raises anything on damaged data, and the pixels are good
        return 1


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Return a grey image of 16 bits as one of 8: v becomes round(v / 257), so that 65,535 becomes 255."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    bits, white_is_zero = tags.get(258, (16,)), tags.get(262) == 0
    if image.mode == "F" or bits != (16,) or (image.mode == "I" and image.format != "PNG"):
        raise UserError(
            f"{visible(name)}: pixels of {'x'.join(map(str, bits))} bits, mode {image.mode}, have no known range; "
            "convert the image to 8 or 16 bits, unsigned"
        )
    values = np.asarray(image).astype(np.int64)
    if white_is_zero:
        values = 65535 - values
    grey = Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey
