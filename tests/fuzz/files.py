"""Cases of files that come from elsewhere: what is accepted is what the file says, or what the undamaged file gives."""

import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from kd.data.decode import FORMATS
from kd.data.folder import folder
from kd.data.parquet import parquet
from kd.files import checksum
from kd.runs import predictions as predictions_file
from kd.runs import results
from kd.runs.weights import load_weights
from kd.teachers.store import ENTRY, WEIGHTS
from kd.training.checkpoints import MARK, SEAL
from tests.fuzz import mutate
from tests.fuzz.command import started
from tests.fuzz.lies import lie
from tests.fuzz.originals import CLASSES, SIZE, TEACHER, call, patched, picture, settings
from tests.fuzz.workers import NonsenseError, RefusedError, printed

SCRIPTS = Path(__file__).parents[2] / "scripts"


def _script(name: str, arguments: Iterable[str]) -> tuple[str, str]:
    """Call the main function of a script; return what it printed, or raise RefusedError."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    sys.argv = [f"{name}.py", *arguments]
    code = __import__(name).main()
    out, err = printed()
    if "Traceback (most recent" in out + err:
        raise RuntimeError(f"a traceback, exit code {code}: {(out + err)[-1500:]}")
    if code:
        raise RefusedError(err)
    return out, err


# --- result records


def records(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged result.json among whole ones with the report, and some with resume=."""
    record = json.loads((originals / "finished" / results.FILE).read_text())
    for seed in (0, 1):
        whole = record | {"seed": seed, "dataset": "whole", "test_acc": 0.3 + seed / 40, "fingerprint": f"{seed}"}
        _put(here / "runs" / f"whole{seed}", json.dumps(whole | {"data_id": "", "group": "whole"}).encode())
    content = _record(rng, record)
    odd = here / "runs" / "odd" / results.FILE
    _put(odd.parent, content)
    if rng.random() < 0.05:
        _replace(rng, odd, here)
    if rng.random() < 0.1:
        started([f"resume={odd.parent}"])
        return
    read = None
    try:
        read = results.read(odd)
    except results.UserError as error:
        refused = error
    if read is not None:
        _like_json(read, content)
    pictures = [] if rng.random() < 0.98 else None
    with patched(__import__("kd.report.page", fromlist=["page"]), "_pictures", lambda *_: pictures or []):
        out, _ = _script("report", ["runs"])
    if "31.25" not in out:
        raise NonsenseError(f"the whole records are not reported: {out[:800]!r}")
    if not all(letter.isprintable() or letter == "\n" for letter in out):
        raise NonsenseError(f"control characters in the report: {out[:800]!r}")
    page = (here / "runs" / "report" / "results.md").read_text(encoding="utf-8")
    if re.search(r"(?<!\\)<script", page) or not all(letter.isprintable() or letter == "\n" for letter in page):
        raise NonsenseError("HTML or control characters in results.md")
    if read is None:
        if "odd" not in out:
            raise NonsenseError(f"left out and not named: {refused}")
        raise RefusedError(str(refused))


def record_alone(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged result.json with its reader."""
    record = json.loads((originals / "finished" / results.FILE).read_text())
    content = _record(rng, record)
    _put(here / "odd", content)
    _like_json(results.read(here / "odd" / results.FILE), content)


def _put(directory: Path, content: bytes) -> None:
    directory.mkdir(parents=True)
    (directory / results.FILE).write_bytes(content)


def _replace(rng: random.Random, file: Path, here: Path) -> None:
    """Put something else in a file's place."""
    file.unlink()
    how = rng.randrange(5)
    if how == 0:
        os.mkfifo(file)
    elif how == 1:
        file.symlink_to("/dev/zero")
    elif how == 2:
        file.mkdir()
    elif how == 3:
        file.symlink_to(file)
    else:
        with open(file, "wb") as sparse:
            sparse.truncate(6 * 10**10)


def _record(rng: random.Random, record: dict[str, Any]) -> bytes:
    how = rng.random()
    if how < 0.25:
        return mutate.damage(rng, json.dumps(record, indent=2).encode())
    if how < 0.3:
        return rng.choice(
            (b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"\xff\xfe{\0}\0", b"1" * 10_000,
             b'{"method": 1e999}', b"[" + b"1," * 10**6 + b"1]")
        )  # fmt: skip
    changed = mutate.structure(rng, record)
    if how < 0.6 and isinstance(changed, dict):
        names = ("method", "dataset", "student", "teacher", "variant", "warnings", "error", "knobs", "test_acc",
                 "seed", "epoch_val_acc", "val_acc", "test_images", "test_nll", "status", "command")  # fmt: skip
        changed[rng.choice(names)] = mutate.strange(rng)
    try:
        return json.dumps(changed).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):
        return b"{" * 1000


def _like_json(read: results.Result, content: bytes) -> None:
    """Raise NonsenseError unless a record has the values of the JSON text, and fractions between 0 and 1."""
    values = json.loads(content)
    for name, value in values.items():
        got = getattr(read, name, value)
        if name in ("knobs", "T", "alpha", "beta"):
            continue
        if isinstance(value, list):
            got, value = ([None if item != item else item for item in items] for items in (got, value))
        if got != value:
            raise NonsenseError(f"{name}: {value!r:.100} was read as {got!r:.100}")
    for name in ("test_acc", "val_acc", "test_ece", "agreement", "teacher_test_acc"):
        share = getattr(read, name)
        if share is not None and not 0 <= share <= 1:
            raise NonsenseError(f"{name} of {share}")
    for name in ("epochs", "test_images", "test_total", "student_params"):
        number = getattr(read, name)
        if number is not None and number < 0 and not (name == "epochs" and read.status != "done"):
            raise NonsenseError(f"{name} of {number}")


# --- predictions


def predictions(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged predictions.npz with its reader, and some with the page on fidelity."""
    if rng.random() > 0.03:
        predictions_alone(rng, originals, here)
        return
    file = _odd_predictions(rng, originals, here)[0]
    shutil.copy(originals / "finished" / results.FILE, file.parent)
    shutil.copytree(originals / "finished", here / "runs" / "whole")
    out, _ = _script("fidelity", ["runs"])
    if not out.strip():
        raise NonsenseError("nothing written")


def predictions_alone(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged predictions.npz with its reader."""
    file, damaged = _odd_predictions(rng, originals, here)
    if rng.random() < 0.03:
        _replace(rng, file, here)
    labels, logits, teacher = predictions_file.read(originals / "finished" / predictions_file.FILE)
    read = predictions_file.read(file)
    if damaged and not all(np.array_equal(a, b) for a, b in zip(read, (labels, logits, teacher), strict=True)):
        raise NonsenseError("a damaged file was read as other numbers")
    shape = read.logits.shape
    if read.labels.shape != shape[:1] or (read.teacher_logits is not None and read.teacher_logits.shape != shape):
        raise NonsenseError(f"shapes {read.labels.shape} and {shape}")
    if len(read.labels) and (read.labels.min() < 0 or read.labels.max() >= shape[1]):
        raise NonsenseError(f"labels from {read.labels.min()} to {read.labels.max()} of {shape[1]} classes")
    if not np.isfinite(read.logits).all():
        raise NonsenseError("logits that are not finite")


def _odd_predictions(rng: random.Random, originals: Path, here: Path) -> tuple[Path, bool]:
    """Write the file; return its path, and whether its bytes are damaged and not its arrays other ones."""
    original = originals / "finished" / predictions_file.FILE
    labels, logits, teacher = predictions_file.read(original)
    arrays: dict[str, Any] = {"labels": labels, "logits": logits, "teacher_logits": teacher}
    damaged = rng.random() < 0.4
    if damaged:
        content = mutate.damage(rng, original.read_bytes())
    else:
        content = _arrays(rng, {name: np.asarray(array) for name, array in arrays.items()})
    file = here / "runs" / "odd" / predictions_file.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file, damaged


def _arrays(rng: random.Random, arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Return an archive whose arrays have other shapes, types, values, headers or names."""
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    members: dict[str, bytes] = {}
    how = rng.randrange(9)
    if how == 0:
        kind = rng.choice(("i1", "u8", ">i4", "f8", "c16", "?", "M8[s]", "S3", "U2"))
        array = array.astype(kind) if kind != "M8[s]" else array.astype("i8").astype(kind)
    elif how == 1:
        array = rng.choice((array[:0], array[:-1], array[None], array.reshape(-1), np.float32(1), array[..., :1]))
    elif how == 2:
        array = array.astype(np.float64)
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice((math.nan, math.inf, -math.inf, 1e300, -1, 0.5, 99))
    elif how == 3:
        array = np.array([{"a": 1}], object)
    elif how == 4:
        array = np.zeros(len(array), [("a", "i4"), ("b", "f8", (2, 2))])
    arrays = {**arrays, name: array}
    if how == 5:
        del arrays[name]
    if how == 6:
        arrays[rng.choice(("more", "", "../up", "a/b", "ä" * 100))] = array
    for member, content in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(content), allow_pickle=True)
        members[f"{member}.npy"] = buffer.getvalue()
    if how == 7:
        members[f"{name}.npy"] = _header(rng) + bytes(rng.choice((0, 100, 5000)))
    if how == 8:
        members[f"{name}.npy"] = bytes(rng.randrange(256) for _ in range(200))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))) as file:
        for member, data in members.items():
            file.writestr(member, data)
    content = buffer.getvalue()
    return mutate.damage(rng, content) if rng.random() < 0.1 else content


def _header(rng: random.Random) -> bytes:
    """Return the header of an .npy file that mostly is a lie."""
    kind = rng.choice(("'<f4'", "'|O'", "'<i8'", "[('a', '<i4')]", "'|V1000000000'", "'nothing'", "3", "'<f2'"))
    shape = rng.choice(
        ("(6, 2)", "(6,)", "(10**10,)", "(100000000000, 2)", "(-1, 2)", "(0, 2)", "(6, 2.5)", "()", "'a'")
    )
    text = f"{{'descr': {kind}, 'fortran_order': {rng.choice(('False', 'True', '1'))}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        text = rng.choice(("(" * 5000, "__import__('os')", "{" * 200, text * 300))
    version = rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    length = struct.pack("<H", len(text) % 65536) if version == b"\x01\x00" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode()


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
        _replace(rng, file, here)
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


# --- checkpoints and the teacher store, whose runs have to end with the weights of the undamaged ones


def checkpoints(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged last.ckpt of an interrupted run with resume=: refused, or the undisturbed run's weights."""
    shutil.copytree(originals / "interrupted", here / "run")
    last = here / "run" / "checkpoints" / "last.ckpt"
    how, edited = rng.random(), False
    if how < 0.5:
        last.write_bytes(mutate.damage(rng, last.read_bytes()))
    elif how < 0.95:
        edited = _checkpoint(rng, last)
    else:
        _replace(rng, last, here)
    _finish([f"resume={here / 'run'}"], originals, here / "run", edited)


def _checkpoint(rng: random.Random, last: Path) -> bool:
    """Write other content; return whether nothing tells it from another training's, as one finite weight differs."""
    content = torch.load(last, weights_only=True)
    key = rng.choice([name for name in content if name in _DECISIVE or rng.random() < 0.3] or list(content))
    how, edited = rng.randrange(5), False
    changed: Any = content
    if how == 0:
        changed.pop(key)
    elif how == 1:
        changed[key] = mutate.strange(rng)
    elif how == 2:
        tensors = changed["state_dict"]
        name = rng.choice(sorted(tensors))
        value = tensors[name]
        tensors[name] = rng.choice(
            (value * math.nan, value[None], value.double(), value + 1, value.to(torch.int8), torch.ones(5))
        )
        edited = torch.equal(tensors[name], value + 1)
    elif how == 3:
        name = rng.choice(("epoch", "global_step"))
        changed[name] = rng.choice((-1, 0, 2, 5, 10**9, 10**30, 0.5, "1", None))
    else:
        changed = rng.choice(({}, [], [content], None, 5, {"state_dict": {}}, torch.ones(3)))
    _write(rng, changed, last)
    return edited


_DECISIVE = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "loops", "callbacks")


def _write(rng: random.Random, content: Any, last: Path) -> None:
    """Write a checkpoint as torch does, without the program's checksum or with the right one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    if rng.random() < 0.7:
        archive = archive[:-2] + SEAL.to_bytes(2, "little")
        archive += MARK + hashlib.sha256(archive).hexdigest().encode()
    last.write_bytes(archive)


def store(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a store with a damaged teacher or damaged logits: refused, or the weights of the undamaged store."""
    shutil.copytree(originals / TEACHER, here / TEACHER)
    entry = next(path.parent for path in (here / TEACHER).glob(f"*/{ENTRY}"))
    logits = next((here / TEACHER / "logits").glob("*.logits"))
    file = rng.choice((entry / ENTRY, entry / WEIGHTS, logits, logits, entry / results.FILE))
    how = rng.random()
    if how < 0.15:
        _replace(rng, file, here)
    elif file.suffix == ".json" and how < 0.7:
        text = json.dumps(mutate.structure(rng, json.loads(file.read_text())))
        file.write_bytes(rng.choice((text.encode("utf-8", "surrogatepass"),) * 4 + (b"[" * 100_000, b"null", b"")))
    else:
        file.write_bytes(mutate.damage(rng, file.read_bytes()))
    if file.name == WEIGHTS and rng.random() < 0.6:  # by someone who knows of the checksum
        facts = json.loads((entry / ENTRY).read_text())
        (entry / ENTRY).write_text(json.dumps(facts | {"sha256": _sum(file)}))
    run = [*settings(originals), "method=logits", "teacher_store=teachers", "hydra.run.dir=run"]
    _finish(run, originals, here / "run", edited=file.name == WEIGHTS)


def _sum(file: Path) -> str:
    return checksum(file) if file.is_file() and file.stat().st_size < 10**9 else ""


def _finish(arguments: list[str], originals: Path, run: Path, edited: bool = False) -> None:
    """Do a run to its end, and raise NonsenseError unless its weights are those of the undisturbed one."""
    code = call(arguments)
    out, err = printed()
    if "Traceback (most recent" in out + err:
        raise RuntimeError(f"a traceback, exit code {code}: {(out + err)[-1500:]}")
    if code == 1 and "error: " in err:
        raise RefusedError(err[err.rindex("error: ") :])
    if code:
        raise NonsenseError(f"exit code {code}: {err[-300:]!r}")
    ours, _ = load_weights(run / "student.safetensors")
    theirs, _ = load_weights(originals / "finished" / "student.safetensors")
    if not all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()) and not edited:
        raise NonsenseError("other weights than those of the undisturbed run")
