"""Cases of what runs write and reports read: what is accepted is what the file says."""

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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kd.runs import predictions as predictions_file
from kd.runs import results
from tests.fuzz import mutate
from tests.fuzz.command import started
from tests.fuzz.originals import patched
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
        replace(rng, odd, here)
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


def replace(rng: random.Random, file: Path, here: Path) -> None:
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
        replace(rng, file, here)
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
