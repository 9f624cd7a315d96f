"""Cases of images and parquet files: what is accepted is what the file says, or what the undamaged file gives."""

import io
import json
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from kd.data.decode import FORMATS
from kd.data.folder import folder
from kd.data.parquet import parquet
from tests.fuzz import mutate
from tests.fuzz.files import replace
from tests.fuzz.lies import lie
from tests.fuzz.originals import CLASSES, SIZE, picture
from tests.fuzz.workers import NonsenseError

# --- images


def images(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged picture among whole ones with the reader of image folders."""
    data, suffix = _image(rng)
    if rng.random() < 0.7:
        data = _headers(rng, data) if rng.random() < 0.3 else mutate.damage(rng, data)
    if rng.random() < 0.1:
        suffix = rng.choice((".png", ".jpg", ".gif", ".tiff"))
    for split in ("train", "test"):
        for label in CLASSES:
            (here / "images" / split / label).mkdir(parents=True)
            shutil.copy(originals / "images" / "train" / label / ("00.png" if label == "a" else "01.png"),
                        here / "images" / split / label / "0.png")  # fmt: skip
    file = here / "images" / "train" / "a" / f"1{suffix}"
    file.write_bytes(data)
    if rng.random() < 0.03:
        replace(rng, file, here)
        read = folder(here / "images", SIZE)
        if len(read.train_y) != 2:
            raise NonsenseError("what is no regular file was read")
        return
    read = folder(here / "images", SIZE)
    if read.train_x.shape != (3, 3, SIZE, SIZE):
        raise NonsenseError(f"{tuple(read.train_x.shape)} pixels")
    whole = np.asarray(Image.open(originals / "images" / "train" / "a" / "00.png"))
    for part in (read.train_x[0], read.test_x[0]):
        if not np.array_equal(part.numpy().transpose(1, 2, 0), whole):
            raise NonsenseError("a whole picture was read as another one")
    expected = reference(data)
    if expected is not None and not np.array_equal(read.train_x[1].numpy().transpose(1, 2, 0), expected):
        raise NonsenseError("other pixels than those of the same bytes")


def reference(data: bytes) -> Any:
    """Return the pixels (SIZE, SIZE, 3) as PIL alone decodes them; None where the program has rules of its own."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Exception as error:
        raise NonsenseError(f"read, though PIL cannot: {type(error).__name__}: {error}") from error
    if image.mode not in ("RGB", "L") or "transparency" in image.info or image.getexif():
        return None
    if image.size != (SIZE, SIZE):
        if image.mode != "RGB":
            image = image.convert("RGB")
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image.convert("RGB"))


def _image(rng: random.Random) -> tuple[bytes, str]:
    noise = np.random.default_rng(rng.randrange(2**32))
    size = rng.choice((SIZE, SIZE, SIZE, 1, 3, 40))
    image = picture(noise, 0, size)
    kind = rng.choice(("PNG", "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "EPS", "PPM", "ICO", "PDF"))
    if kind in ("PNG", "TIFF"):
        image = image.convert(rng.choice(("RGB", "RGBA", "L", "P", "1", "LA") if kind == "PNG" else ("RGB", "L", "F")))
    elif kind in ("JPEG", "BMP"):
        image = image.convert(rng.choice(("RGB", "L")))
    buffer = io.BytesIO()
    more: dict[str, Any] = {}
    if kind == "TIFF":
        more = {"compression": rng.choice((None, "tiff_lzw", "tiff_adobe_deflate"))} if image.mode != "F" else {}
    if kind in ("PNG", "JPEG") and rng.random() < 0.2:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((1, 3, 6, 8, 0, 99))
        more["exif"] = exif
    if kind == "GIF" and rng.random() < 0.3:
        more = {"save_all": True, "append_images": [image.rotate(90)]}
    image.save(buffer, kind, **more)
    return buffer.getvalue(), {"JPEG": ".jpg", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}.get(
        kind, ".png"
    )


def _headers(rng: random.Random, data: bytes) -> bytes:
    """Return a picture with another header: other sizes with the right checksum, other formats' magic numbers."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and rng.random() < 0.8:
        sides = [rng.choice((0, 1, 7, 9, 5000, 13_300, 60_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        header = b"IHDR" + struct.pack(">II", *sides) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    magic = (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.4\n", b"GIF89a", b"BM", b"II*\0", b"P6 9 9 255\n",
             b"RIFF\xff\xff\xff\xffWEBP", b"\xff\xd8\xff", b"", b"\0\0\0\x0cjP  ", b"\x89PNG\r\n\x1a\n")  # fmt: skip
    return rng.choice(magic) + data[rng.choice((0, 0, 8, 33)) :]


# --- parquet files


def parquets(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged parquet file with the reader of parquet files."""
    shutil.copytree(originals / "parquet", here / "parquet")
    split = rng.choice(("train", "test"))
    file = here / "parquet" / f"{split}.parquet"
    how = rng.random()
    if how < 0.3:
        file.write_bytes(mutate.damage(rng, file.read_bytes()))
    elif how < 0.6:
        file.write_bytes(lie(rng, file.read_bytes()))
    else:
        _table(rng, file)
    read = parquet(here / "parquet", SIZE)
    x, y = (read.train_x, read.train_y) if split == "train" else (read.test_x, read.test_y)
    # Not as a whole: before pyarrow 26 a table has as many rows as the metadata tell, and not as are there.
    table = pa.Table.from_batches(pq.ParquetFile(file).iter_batches(use_threads=False)).to_pydict()
    column = next(name for name in ("img", "image", "bytes") if name in table)
    label = next(name for name in ("label", "labels", "fine_label", "fine_labels") if name in table)
    if len(y) != len(table[label]) or len(x) != len(y):
        raise NonsenseError(f"{len(y)} labels of {len(table[label])}")
    for place, (cell, given) in enumerate(zip(table[column], table[label], strict=True)):
        if not 0 <= int(y[place]) < len(read.classes):
            raise NonsenseError(f"label {int(y[place])} of {len(read.classes)} classes")
        if isinstance(given, str) != (given in read.classes and read.classes[int(y[place])] == given):
            raise NonsenseError(f"label {given!r:.50} became {read.classes[int(y[place])]!r:.50}")
        if not isinstance(given, str) and int(y[place]) != given:
            raise NonsenseError(f"label {given!r:.50} became {int(y[place])}")
        expected = reference(bytes(cell["bytes"] if isinstance(cell, dict) else cell))
        if expected is not None and not np.array_equal(x[place].numpy().transpose(1, 2, 0), expected):
            raise NonsenseError(f"row {place} has other pixels than its bytes")


def _table(rng: random.Random, file: Path) -> None:
    rows = pq.read_table(file, use_threads=False).to_pydict()
    place = rng.randrange(len(rows["label"]))
    how = rng.randrange(9)
    metadata: bytes | None = None
    names = ["img", "label"]
    if how == 0:
        rows["label"][place] = rng.choice((None, -1, 2, 2**31, 2**62, 99))
    elif how == 1:
        rows["label"] = [rng.choice(("a", "b", "", "a\nb", "\x1b[31m", "x" * 5000, "ä")) for _ in rows["label"]]
    elif how == 2:
        rows["img"][place]["bytes"] = rng.choice((None, b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG", bytes(1000)))
    elif how == 3:
        rows["img"][place]["bytes"] = mutate.damage(rng, rows["img"][place]["bytes"])
    elif how == 4:
        facts: Any = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
        text = json.dumps(mutate.structure(rng, facts)).encode("utf-8", "surrogatepass")
        metadata = rng.choice((text, text, text, b"[]", b"null", b"[" * 50_000, b"\xff", b'{"info": null}', b"1e999"))
    elif how == 5:
        rows[rng.choice(("labels", "image", "bytes", "more", ""))] = rows[rng.choice(names)]
    elif how == 6:
        rows = {rng.choice(("img", "image", "x")): rows["img"], rng.choice(("label", "fine_label", "y")): rows["label"]}
    elif how == 7:
        rows[rng.choice(names)] = [rng.choice(("0", 1.5, True, [1], 2**63 + 1, b"x"))] * len(rows["label"])
    else:
        rows = {name: column[: rng.choice((0, 1, 3))] for name, column in rows.items()}
    try:
        table = pa.table(rows)
    except (pa.ArrowException, OverflowError):
        table = pa.table({"img": [b""], "label": [0]})
    if metadata is not None:
        table = table.replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(
        table, file, compression=rng.choice(("none", "snappy", "zstd")), row_group_size=rng.choice((1, 5, 100))
    )
