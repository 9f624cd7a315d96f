"""Result records of runs: write, read, collect."""

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from kd import ranges
from kd.errors import UserError
from kd.files import read_regular, replaced
from kd.terminal import with_progress

FILE = "result.json"
CURVES = "metrics.csv"
"""Name of the file that has one line an epoch below its heading."""
CARD = "README.md"
"""Name of the model card, see `kd.deploy.card`."""
REPORT = "report"
"""Name of the directory that a report goes to by default; `collect` does not look into one."""
MOST_BYTES = 16 << 20
"""Size of the largest file that is read as a record; curves of 100,000 epochs fit."""
MOST_CHARACTERS = 1000
"""Characters of a name, at most. Where a name is shown, it may be shortened."""
MOST_IN_TEXT = 1 << 20
"""Characters of a text that is no name, such as the command."""
MOST_KNOBS = 100
MOST_ITEMS = 1000
"""Items of a list other than a curve."""
MOST_DIGITS = 1000
STATUSES = ("running", "done", "failed", "interrupted", "pruned")


Scalar = float | int | str | bool
Knob = Scalar | list[Scalar]
"""A setting of the method, as YAML and JSON have it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Settings and outcome of one run: flat but for `knobs`, the curves, and figures by test set.

    Accuracies, agreement and retention are fractions of 1. None means unknown.
    """

    method: str
    knobs: dict[str, Knob] = field(default_factory=dict)
    """Every knob of the method by name, such as T, alpha, beta."""
    seed: int
    student: str | None = None
    teacher: str | None = None
    teacher_id: str | None = None
    """Hash of the teacher's weights and settings; in records of older versions of the weights alone."""
    student_params: int | None = None
    """Number of parameters; None where no student is trained, as in a run of the teacher alone."""
    teacher_params: int | None = None
    """Number of parameters; None where no teacher takes part."""
    multiply_adds: int | None = None
    """Those of one image, in convolutions and products of matrices, in the network that was trained, as it is used."""
    taught: bool | None = None
    """Whether a method beside the labels taught the network, with a teacher or without one, as in mutual learning.

    None in records of older versions, in which every method but training on labels alone had a teacher.
    """
    dataset: str
    data_id: str = ""
    """Hash of its pixels and labels."""
    epochs: int
    train_images: int | None = None
    """Number of images that were trained on, those for validation and those beyond `data.fraction` left out."""
    noisy_labels: int | None = None
    """How many of their labels were made wrong, by `data.noise`."""
    order_seed: int | None = None
    """What the order of the images and their views are drawn by; None in records of older versions, and of teachers."""
    val_acc: float | None = None
    """Accuracy with the last epoch's weights, like all test figures; None without a validation split."""
    test_acc: float | None = None
    test_balanced_acc: float | None = None
    """Mean of the classes' accuracies: of those with test images."""
    test_class_acc: list[float] = field(default_factory=list)
    """Accuracy on the test images of each class, by label; NaN for a class without any."""
    test_images: int | None = None
    """Number of images that were tested on, which bounds the precision of the test accuracy."""
    test_total: int | None = None
    """Number of images of the whole test split; `test_images` may be fewer in a trial."""
    test_nll: float | None = None
    """Mean negative log-likelihood of the test labels, in nats."""
    test_ece: float | None = None
    """Expected calibration error, a fraction of 1."""
    also_test_acc: dict[str, float] = field(default_factory=dict)
    """Accuracy on each further test set by its name, and on each part of one, as in "CIFAR-10-C/fog/3"."""
    also_test_nll: dict[str, float] = field(default_factory=dict)
    """Mean negative log-likelihood there, in nats."""
    teacher_test_acc: float | None = None
    retention: float | None = None
    """Test accuracy of the student divided by that of its teacher."""
    agreement: float | None = None
    """Share of the test images for which student and teacher predict the same class."""
    train_seconds: float | None = None
    images_per_second: float | None = None
    """Training images, over the whole fit."""
    device: str = ""
    precision: str = ""
    git: str = ""
    versions: str = ""
    status: str
    """"running", "done", "failed", "interrupted", or "pruned" by a search."""

    command: str | None = None
    """Overrides of the command line, as typed."""
    cwd: str = ""
    """Where it was typed, which the paths in it are relative to."""
    config_dir: str | None = None
    """The folder that `--config-dir` gave."""
    variant: str = ""
    """Overrides beside knobs, networks and seed that decide the result, as in "student.scale=8 recipe.epochs=50"."""
    fingerprint: str = ""
    """Hash of all that decides the result, and of `data.root` and further test sets."""
    group: str = ""
    """Hash of all that decides the result but the seed."""
    date: str = ""
    """Time of the run's start, ISO 8601."""
    error: str | None = None
    """Reason of a failure."""
    trial: str | None = None
    """Why this is not a whole run, as in "tested on 128 of 360 images"; None for a whole one."""
    diverged: bool = False
    """Whether training diverged: its test figures, if any, are those of a network that has not learnt anything."""
    warnings: list[str] = field(default_factory=list)
    """What a reader of the figures should know, one sentence each."""
    epoch_train_loss: list[float] = field(default_factory=list)
    """One value per epoch, like the next three; shorter than `epochs` where a run ended early."""
    epoch_train_acc: list[float] = field(default_factory=list)
    epoch_val_loss: list[float] = field(default_factory=list)
    """Empty without a validation split, like the next one."""
    epoch_val_acc: list[float] = field(default_factory=list)


def start_of(run: Result) -> float | None:
    """Return when a run began, in seconds since 1970; None where its date is no time."""
    try:
        return datetime.fromisoformat(run.date).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def typed(run: Result) -> list[str]:
    """Return the overrides that a run was started with; none of a command that no shell would take."""
    try:
        return shlex.split(run.command or "")
    except ValueError:
        return []


class Collected(NamedTuple):
    """Records below some directories."""

    results: list[Result]
    """Sorted by path, whatever their status."""
    skipped: list[str]
    """One "FILE: reason" for each record that cannot be read."""


_KINDS = get_type_hints(Result)
_REQUIRED = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
_FIGURE = "[-3.5e38, 3.5e38]"  # what fp32 holds
_CHECKED_LATER = ("seed", "epochs")
"""Settings that the first record of a run has as they were typed: what is wrong with them is found after it."""
_SPANS = {
    **dict.fromkeys(("val_acc", "test_acc", "teacher_test_acc", "agreement", "test_ece"), "[0, 1]"),
    **dict.fromkeys(("also_test_acc", "test_balanced_acc", "test_class_acc"), "[0, 1]"),
    **dict.fromkeys(("epoch_train_acc", "epoch_val_acc"), "[0, 1]"),
    **dict.fromkeys(("test_nll", "also_test_nll", "epoch_train_loss", "epoch_val_loss"), _FIGURE),
    **dict.fromkeys(("student_params", "teacher_params", "multiply_adds"), "whole [0, 1e15]"),
    **dict.fromkeys(("train_images", "noisy_labels", "test_images", "test_total"), "whole [0, 1e15]"),
    **dict.fromkeys((*_CHECKED_LATER, "order_seed"), "whole [-1e15, 1e15]"),
    **dict.fromkeys(("retention", "train_seconds", "images_per_second"), "[0, 1e12]"),
}
"""Ranges of all numbers, each item of a curve among them, but for knobs, which are finite."""
_LONG = ("command", "cwd", "config_dir", "variant", "error", "warnings")
"""Texts that are no names."""
_PLAIN = ("teacher_id", "data_id", "device", "precision", "git", "versions", "fingerprint", "group", "date")
"""Texts that no user chooses. They have neither control characters nor line ends."""
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
_FORMER_KNOBS = ("T", "alpha", "beta")
"""Fields of their own in records of older versions: numbers, or null for a knob that the method lacks."""


def write(result: Result, path: Path) -> None:
    """Write the record as strict JSON, whole or not at all: a reader of `path` sees the old file or the new one.

    JSON has no NaN and no infinity. Both become null, since a run that diverged must still leave its record;
    `read` returns None for them, and NaN inside a curve.

    Raises:
        OSError: if `path` cannot be written.
    """
    if result.error is not None and len(result.error) > MOST_IN_TEXT:
        result = replace(result, error=f"{result.error[: MOST_IN_TEXT - 3]}...")
    record = {name: _without_nan(value) for name, value in asdict(result).items()}
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(path: Path) -> Result:
    """Return the record in `path`.

    Keys that `Result` does not know are ignored: a newer version may have added them. T, alpha and beta, which records
    of older versions have as fields of their own, become knobs.

    Nothing in the file is trusted: its size is limited, and every field is checked for its type and range.

    Raises:
        UserError: naming the file and its fault in one line, if it cannot be read, is no regular file or too large, is
            cut short or no JSON, lacks a field, or has one of the wrong type or out of its range.
    """
    try:
        content = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return _from_json(content)
    except RecursionError as error:
        raise UserError(f"{path}: not a result record: nested too deeply") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: {error}") from error


def _from_json(content: bytes) -> Result:
    try:
        record = json.loads(
            content.decode("utf-8"), parse_constant=_refuse, parse_int=_whole, object_pairs_hook=_distinct
        )
    except ValueError as error:
        raise ValueError(f"cut short or not JSON: {error}") from error
    if not isinstance(record, dict):
        raise TypeError("not a result record, which is one JSON object")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise ValueError(f"not a whole result record, it lacks {', '.join(missing)}")
    values = {name: _typed(name, record[name]) for name in _KINDS if name in record}
    values["knobs"] = _former_knobs(record) | values.get("knobs", {})
    for name, value in values.items():
        _require(name, value)
    result = Result(**values)
    if result.status == "done":
        for name in _CHECKED_LATER:
            ranges.require(name, getattr(result, name))
    return result


class Found(NamedTuple):
    """Files below some directories."""

    paths: list[Path]
    """Path of every `result.json`, each file once, sorted."""
    left_out: list[str]
    """One "PATH: reason" for each directory that is not searched, as it cannot be read or is a link that leads out."""


def collect(dirs: Iterable[Path]) -> Collected:
    """Read every `result.json` below `dirs`, at any depth.

    A file reached twice counts once. Directories called "report" below `dirs` are not searched, nor is a link to a
    directory followed: one that leads out of `dirs` is among the skipped. Different data sets of the same name get a
    piece of their hash behind it.

    Raises:
        UserError: if a directory does not exist or holds no record, or if none of the records can be read.
    """
    results = []
    paths, skipped = records(dirs)
    for path in with_progress(paths, "reading records"):
        try:
            results.append(read(path))
        except UserError as error:
            skipped.append(str(error))
    if not results:
        raise UserError(f"none of {len(paths)} result records can be read, the first: {skipped[-len(paths)]}")
    return Collected(_with_distinct_datasets(results), skipped)


def _with_distinct_datasets(results: Sequence[Result]) -> list[Result]:
    """Add hashes to data sets of the same name, as of two folders, whose accuracies must not be averaged."""
    names = Counter(name for name, _ in {(run.dataset, run.data_id) for run in results if run.data_id})
    return [
        replace(run, dataset=f"{run.dataset} {run.data_id[:6]}") if run.data_id and names[run.dataset] > 1 else run
        for run in results
    ]


def records(dirs: Iterable[Path]) -> Found:
    """Find every `result.json` below `dirs`, without opening any; see `collect`.

    Raises:
        UserError: if a directory does not exist or holds no such file.
    """
    roots = list(dirs)
    inside = [os.path.join(os.path.realpath(root), "") for root in roots]
    paths: dict[str, Path] = {}
    left_out: list[str] = []
    for root in roots:
        here, unread, links = _below(root)
        out = [path for path in links if not os.path.join(os.path.realpath(path), "").startswith(tuple(inside))]
        reasons = unread + [f"{path}: a link that leads out; give the directory itself" for path in out]
        if not here:
            why = f" ({reasons[0]})" if reasons else ""
            raise UserError(
                f"{root}: no {FILE} in it or below it{why}; give a directory that training runs were written to"
            )
        paths |= {os.path.realpath(path): Path(path) for path in here}
        left_out += reasons
    return Found(sorted(paths.values()), list(dict.fromkeys(left_out)))


def _below(root: Path) -> tuple[list[str], list[str], list[str]]:
    """Return what is below a directory: paths of records, directories that cannot be read and why, links to others."""
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such directory; give one that training runs were written to")
    found: list[str] = []
    unread: list[str] = []
    links: list[str] = []
    waiting = [str(root)]
    while waiting:  # no recursion, and no link followed: a tree may be deep, and links may go in circles
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name == FILE:
                        found.append(entry.path)
                    elif entry.name == REPORT:
                        continue
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        links.append(entry.path)
        except OSError as error:
            unread.append(f"{here}: cannot be read: {error.strerror or error}")
    return sorted(found), sorted(unread), sorted(links)


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:  # the time to read a number grows with the square of its length
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON whose keys differ: of two values, programs would choose differently."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r:.40} is there twice")
    return made


def _typed(name: str, value: Any) -> Any:
    """Return `value` as the field `name` holds it, a whole number as a float where that is its type; or TypeError."""
    kind = _KINDS[name]
    if kind == dict[str, Knob]:
        return _knobs(name, value)
    if kind == dict[str, float]:
        if not isinstance(value, dict) or not {type(item) for item in value.values()} <= {float, int, NoneType}:
            raise TypeError(f"{name} is not numbers by name")
        return {part: math.nan if item is None else float(item) for part, item in value.items()}
    if kind == list[float]:
        if not isinstance(value, list) or not {type(item) for item in value} <= {float, int, NoneType}:
            raise TypeError(f"{name} is not a list of numbers")
        return [math.nan if item is None else float(item) for item in value]
    if kind == list[str]:
        if not isinstance(value, list) or not {type(item) for item in value} <= {str}:
            raise TypeError(f"{name} is not a list of texts")
        return value
    allowed = get_args(kind) or (kind,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) not in allowed:  # not isinstance: True is no number here
        raise TypeError(f"{name} is {value!r:.40}, not {' or '.join(_TYPE_NAMES[k] for k in allowed)}")
    return value


def _require(name: str, value: Any) -> None:
    """Check that a value of the right type is in its range, or that a text is one of its kind; or ValueError."""
    if value is None:
        return
    if name == "knobs":
        _require_knobs(value)
    elif name == "status":
        if value not in STATUSES:
            raise ValueError(f"status is {value!r:.40}, not one of {', '.join(STATUSES)}")
    elif name in _SPANS:
        if isinstance(value, dict):
            if len(value) > MOST_ITEMS:
                raise ValueError(f"{name} has {len(value):,} items")
            for part in value:
                _require_text(f"a name in {name}", part)
            value = list(value.values())
        known = [item for item in value if not math.isnan(item)] if isinstance(value, list) else [value]
        for end in (min(known), max(known)) if known else ():
            ranges.require(name, end, _SPANS[name])
    elif isinstance(value, list):
        if len(value) > MOST_ITEMS:
            raise ValueError(f"{name} has {len(value):,} items")
        for item in value:
            _require_text(name, item)
    elif isinstance(value, str):
        _require_text(name, value)


def _require_text(name: str, text: str) -> None:
    most = MOST_IN_TEXT if name in _LONG else MOST_CHARACTERS
    if len(text) > most:
        raise ValueError(f"{name:.40} has {len(text):,} characters, more than {most:,}")
    if name in _PLAIN and not text.isprintable():
        raise ValueError(f"{name} is {text!r:.40}, with control characters in it")
    try:
        text.encode("utf-8", "surrogateescape")  # a path may have bytes that are no UTF-8
    except UnicodeEncodeError:
        raise ValueError(f"{name:.40} is no text: it holds half of a character") from None


def _require_knobs(knobs: dict[str, Knob]) -> None:
    if len(knobs) > MOST_KNOBS:
        raise ValueError(f"knobs are {len(knobs):,}, more than {MOST_KNOBS}")
    for name, value in knobs.items():
        _require_text("the name of a knob", name)
        items = value if isinstance(value, list) else [value]
        if len(items) > MOST_ITEMS:
            raise ValueError(f"knob {name!r:.40} has {len(items):,} items")
        for item in items:
            if isinstance(item, str):
                _require_text(f"knob {name!r}", item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"knob {name!r:.40} is {item}")


def _knobs(name: str, value: Any) -> dict[str, Knob]:
    """Return the knobs in `value`, without those that are null; or TypeError."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r:.40}, not knobs by name")
    for knob, setting in value.items():
        for item in setting if isinstance(setting, list) else [setting]:
            if type(item) not in get_args(Scalar) and setting is not None:
                raise TypeError(f"knob {knob:.40} is {setting!r:.40}, not a number, text, a boolean or a list of these")
            if type(item) is int:
                float(item)  # OverflowError for a number that no table or picture could hold
    return {knob: setting for knob, setting in value.items() if setting is not None}


def _former_knobs(record: dict[str, Any]) -> dict[str, Knob]:
    """Return the knobs that a record of an older version has as fields of their own; or TypeError."""
    knobs = {name: record[name] for name in _FORMER_KNOBS if record.get(name) is not None}
    for name, value in knobs.items():
        if type(value) not in (float, int):
            raise TypeError(f"{name} is {value!r:.40}, not a number or null")
    return knobs
