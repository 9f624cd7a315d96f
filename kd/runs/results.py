"""Result records of runs: write, read, collect."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from kd.errors import UserError
from kd.files import replaced

FILE = "result.json"
REPORT = "report"
"""Name of the directory that a report goes to by default; `collect` does not look into one."""


Scalar = float | int | str | bool
Knob = Scalar | list[Scalar]
"""A setting of the method, as YAML and JSON have it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Settings and outcome of one run: flat but for `knobs` and the curves.

    Accuracies, agreement and retention are fractions of 1. None means unknown.
    """

    method: str
    knobs: dict[str, Knob] = field(default_factory=dict)
    """Every knob of the method by name, such as T, alpha, beta."""
    seed: int
    student: str | None = None
    teacher: str | None = None
    teacher_id: str | None = None
    """Hash of the teacher's weights."""
    student_params: int | None = None
    """Number of parameters; None where no student is trained, as in a run of the teacher alone."""
    teacher_params: int | None = None
    """Number of parameters; None where no teacher takes part."""
    taught: bool | None = None
    """Whether a method beside the labels taught the network, with a teacher or without one, as in mutual learning.

    None in records of older versions, in which every method but training on labels alone had a teacher.
    """
    dataset: str
    data_id: str = ""
    """Hash of its pixels and labels."""
    epochs: int
    val_acc: float | None = None
    """Accuracy with the last epoch's weights, like all test figures; None without a validation split."""
    test_acc: float | None = None
    test_images: int | None = None
    """Number of images that were tested on, which bounds the precision of the test accuracy."""
    test_total: int | None = None
    """Number of images of the whole test split; `test_images` may be fewer in a trial."""
    test_nll: float | None = None
    """Mean negative log-likelihood of the test labels, in nats."""
    test_ece: float | None = None
    """Expected calibration error, a fraction of 1."""
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
    variant: str = ""
    """Overrides beside knobs, networks and seed that decide the result, as in "student.scale=8 recipe.epochs=50"."""
    fingerprint: str = ""
    """Hash of the resolved configuration."""
    group: str = ""
    """The same hash without the seed: shared by runs that differ by their seed only."""
    date: str = ""
    """Time of the run's start, ISO 8601."""
    error: str | None = None
    """Reason of a failure."""
    trial: str | None = None
    """Why this is not a whole run, as in "tested on 128 of 360 images"; None for a whole one."""
    diverged: bool = False
    """Whether training diverged: the test figures are those of a network that has not learnt anything."""
    warnings: list[str] = field(default_factory=list)
    """What a reader of the figures should know, one sentence each."""
    epoch_train_loss: list[float] = field(default_factory=list)
    """One value per epoch, like the next three; shorter than `epochs` where a run ended early."""
    epoch_train_acc: list[float] = field(default_factory=list)
    epoch_val_loss: list[float] = field(default_factory=list)
    """Empty without a validation split, like the next one."""
    epoch_val_acc: list[float] = field(default_factory=list)


class Collected(NamedTuple):
    """Records below some directories."""

    results: list[Result]
    """Sorted by path, whatever their status."""
    skipped: list[str]
    """One "FILE: reason" for each record that cannot be read."""


_KINDS = get_type_hints(Result)
_REQUIRED = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
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
    record = {name: _without_nan(value) for name, value in asdict(result).items()}
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(path: Path) -> Result:
    """Return the record in `path`.

    Keys that `Result` does not know are ignored: a newer version may have added them. T, alpha and beta, which records
    of older versions have as fields of their own, become knobs.

    Raises:
        UserError: naming the file and its fault, if it cannot be read, is cut short or no JSON, lacks a field, or has
            one of the wrong type.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: cut short or not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a result record, which is one JSON object")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise UserError(f"{path}: not a whole result record, it lacks {', '.join(missing)}")
    known = [name for name in _KINDS if name in record]
    try:
        values = {name: _typed(name, record[name]) for name in known}
        values["knobs"] = _former_knobs(record) | values.get("knobs", {})
        return Result(**values)
    except (TypeError, OverflowError) as error:
        raise UserError(f"{path}: {error}") from error


def collect(dirs: Iterable[Path]) -> Collected:
    """Read every `result.json` below `dirs`, at any depth, links followed.

    A file reached twice counts once. Directories called "report" below `dirs` are not searched. Different data sets of
    the same name get a piece of their hash behind it.

    Raises:
        UserError: if a directory does not exist or holds no record, or if none of the records can be read.
    """
    results, skipped = [], []
    for path in records(dirs):
        try:
            results.append(read(path))
        except UserError as error:
            skipped.append(str(error))
    if not results:
        raise UserError(f"none of {len(skipped)} result records can be read, the first: {skipped[0]}")
    return Collected(_with_distinct_datasets(results), skipped)


def _with_distinct_datasets(results: Sequence[Result]) -> list[Result]:
    """Add hashes to data sets of the same name, as of two folders, whose accuracies must not be averaged."""
    names = Counter(name for name, _ in {(run.dataset, run.data_id) for run in results if run.data_id})
    return [
        replace(run, dataset=f"{run.dataset} {run.data_id[:6]}") if run.data_id and names[run.dataset] > 1 else run
        for run in results
    ]


def records(dirs: Iterable[Path]) -> list[Path]:
    """Return the path of every `result.json` below `dirs`, each once, sorted; see `collect`."""
    return sorted({path.resolve(): path for root in dirs for path in _below(root)}.values())


def _below(root: Path) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give one that training runs were written to")
    paths: list[Path] = []
    seen: set[str] = set()
    for here, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back up, or a second one to the same place
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if name != REPORT)
        if FILE in files:
            paths.append(Path(here, FILE))
    if not paths:
        raise UserError(f"{root}: no {FILE} in it or below it; give a directory that training runs were written to")
    return paths


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _typed(name: str, value: Any) -> Any:
    """Return `value` as the field `name` holds it, a whole number as a float where that is its type; or TypeError."""
    kind = _KINDS[name]
    if kind == dict[str, Knob]:
        return _knobs(name, value)
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


def _knobs(name: str, value: Any) -> dict[str, Knob]:
    """Return the knobs in `value`, without those that are null; or TypeError."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r:.40}, not knobs by name")
    for knob, setting in value.items():
        for item in setting if isinstance(setting, list) else [setting]:
            if type(item) not in get_args(Scalar) and setting is not None:
                raise TypeError(f"knob {knob} is {setting!r:.40}, not a number, text, a boolean or a list of these")
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
