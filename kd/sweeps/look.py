"""Runs as they are on disk right now, finished or not. Reads only, takes no lock, and imports no torch."""

import csv
import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from kd.errors import UserError
from kd.files import open_regular, read_regular
from kd.runs.results import CURVES, FILE, MOST_BYTES, REPORT, Result, read, start_of
from kd.sweeps import plan
from kd.sweeps.jobs import written
from kd.sweeps.plan import Plan, Planned

T = TypeVar("T")

LOG = "train.log"
QUIET_SECONDS = 600.0
"""The time without a change after which a sweep of which no process is known is taken to be stopped."""
LEFT = ("running", "waiting")
ORDER = ("done", "skipped", "running", "waiting", "failed", "refused", "interrupted", "pruned", "unreadable")
MOST_DEEP = 8
"""Folders below the one that is given in which runs are looked for."""
MOST_FOLDERS = 5000
"""Folders without a run that are looked into."""


class Curves(NamedTuple):
    """A value for each epoch so far; NaN where one is missing."""

    acc: list[float]
    """Accuracy, a fraction of 1: of the validation split, if there is one."""
    loss: list[float]
    validation: bool
    """Whether both are of the validation split, else of training."""
    epochs: int
    """Epochs trained."""


NONE = Curves([], [], False, 0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, or a job that has not begun."""

    directory: Path | None
    """None if it has none, as one that was refused."""
    settings: str
    """What sets it apart from the others of its sweep."""
    status: str
    """One of `ORDER`."""
    why: str = ""
    """Reason of a failure; before the first epoch, what the run logged last, such as that the teacher is trained."""
    record: Result | None = None
    curves: Curves = NONE
    changed: float = -math.inf
    """When record or curves were last written, in seconds since 1970."""
    trained: float = 0.0
    """The share of its epochs that it has trained, 0 to 1."""
    before: float = 0.0
    """The same when its sweep began."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The runs of one directory; a run by itself is a sweep of one."""

    directory: Path
    runs: list[Run]
    earlier: int = 0
    """Runs in the directory that its latest command did not want."""
    began: float | None = None
    """When that command, or the first of the runs, began, in seconds since 1970."""
    held: bool = False
    """Whether a process of this machine is known to be at work in it."""

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds that what is left takes, by the epochs that all have trained so far; None if unknown."""
        left = sum(1 - run.trained for run in self.runs if run.status in LEFT)
        work = sum(run.trained - run.before for run in self.runs if run.status != "skipped")
        gone = 0.0 if self.began is None else now - self.began
        return gone / work * left if min(gone, work, left) > 0 else None

    def count(self, *statuses: str) -> int:
        return sum(run.status in statuses for run in self.runs)

    @property
    def changed(self) -> float:
        return max((run.changed for run in self.runs), default=-math.inf)

    def over(self, now: float) -> bool:
        """Return whether nothing more is to be expected: all is done, or nobody seems to be at work any more."""
        quiet = now - max(self.changed, self.began or 0) > QUIET_SECONDS
        return not self.held and (quiet or not self.count(*LEFT))


@dataclass(frozen=True, kw_only=True)
class State:
    """All that is below a directory at one moment."""

    root: Path
    at: float
    """Seconds since 1970."""
    sweeps: list[Sweep]
    """The one that changed last comes first."""
    unread: list[str] = field(default_factory=list)
    """One "PATH: reason" for each file or folder that cannot be read."""

    @property
    def runs(self) -> list[Run]:
        return [run for sweep in self.sweeps for run in sweep.runs]

    @property
    def over(self) -> bool:
        return all(sweep.over(self.at) for sweep in self.sweeps)

    def counts(self) -> Counter[str]:
        return Counter(run.status for run in self.runs)

    def seconds_left(self) -> float | None:
        """Return the seconds until the last of the sweeps that go on has ended; None if that is unknown."""
        known = [sweep.seconds_left(self.at) for sweep in self.sweeps if not sweep.over(self.at)]
        return max((seconds for seconds in known if seconds is not None), default=None)


class Reader:
    """Looks at a directory of runs again and again, and reads only what has changed since.

    Args:
        root: a run directory, a sweep's, or one with several sweeps below it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records: dict[Path, tuple[object, Result | str]] = {}
        self._curves: dict[Path, tuple[object, Curves | str]] = {}
        self._first: dict[Path, tuple[float, dict[Path | None, float]]] = {}

    def look(self) -> State:
        """Return what is there now.

        Raises:
            UserError: if the directory does not exist, or holds neither runs nor the plan of a sweep.
        """
        if not os.path.isdir(self.root):
            raise UserError(f"{self.root}: no such directory; give that of a sweep or of a run")
        unread: list[str] = []
        found = _find(self.root, unread)
        sweeps = [self._sweep(directory, runs, unread) for directory, runs in found.items()]
        if not sweeps:
            why = f" ({unread[0]})" if unread else ""
            raise UserError(
                f"{self.root}: no run in it or below it{why}; give the directory of a sweep or of a run, such as the "
                "hydra.sweep.dir of train.py -m"
            )
        sweeps.sort(key=lambda sweep: sweep.changed, reverse=True)
        return State(root=self.root, at=time.time(), sweeps=sweeps, unread=unread)

    def _sweep(self, directory: Path, places: Sequence[Path], unread: list[str]) -> Sweep:
        wanted: Plan | None = None
        try:
            wanted = plan.read(directory)
        except UserError as error:
            unread.append(str(error))
        runs = {place: self._run(place, unread) for place in places}
        records = [run.record for run in runs.values() if run.record is not None]
        held = _held(place / ".lock" for place in (directory, *places))
        if wanted is None:
            common = set.intersection(*(set(_overrides(record)) for record in records)) if len(records) > 1 else set()
            began, before = self._seen(directory, list(runs.values()))
            labelled = [replace(_labelled(run, common), before=before.get(place, 0.0)) for place, run in runs.items()]
            return Sweep(directory=directory, runs=labelled, began=began, held=held)
        jobs = [_planned(job, runs.pop(directory / (job.directory or ""), None)) for job in wanted.jobs]
        return Sweep(directory=directory, runs=jobs, earlier=len(runs), began=wanted.began, held=held)

    def _seen(self, directory: Path, runs: Sequence[Run]) -> tuple[float | None, dict[Path | None, float]]:
        """Return a moment, and the share that each run had trained by then, where no plan tells.

        It is the first look, once something has been trained since; a run that was resumed had trained before it
        began. Until then, it is the beginning of the first run.
        """
        first = self._first.setdefault(directory, (time.time(), {run.directory: run.trained for run in runs}))
        if any(run.trained > first[1].get(run.directory, 0.0) for run in runs):
            return first
        began = [start_of(run.record) for run in runs if run.record is not None]
        return min((moment for moment in began if moment is not None), default=None), {}

    def _run(self, place: Path, unread: list[str]) -> Run:
        record, written = self._cached(self._records, place / FILE, read)
        if not isinstance(record, Result):
            unread.append(record or f"{place / FILE}: cannot be read")
            return Run(directory=place, settings="", status="unreadable", why="its record", changed=written)
        if record.status == "done":
            curves: Curves | str = _of_record(record)
        else:
            curves, changed = self._cached(self._curves, place / CURVES, read_curves)
            written = max(written, changed)
        if isinstance(curves, str):
            unread += [curves] if curves else []
            curves = NONE
        why = record.error or ""
        if record.status == "running" and not curves.epochs:
            why = _last_line(place / LOG)
        share = min(1.0, curves.epochs / record.epochs) if record.epochs > 0 else 0.0
        return Run(
            directory=place,
            settings="",
            status=record.status,
            why=why,
            record=record,
            curves=curves,
            changed=written,
            trained=1.0 if record.status == "done" else share,
        )

    def _cached(
        self, cache: dict[Path, tuple[object, T | str]], path: Path, load: Callable[[Path], T]
    ) -> tuple[T | str, float]:
        """Return what a file holds, or why it cannot be read, "" if it is missing; and when it was written."""
        try:
            known = path.stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return "" if missing else f"{path}: cannot be read: {error.strerror}", -math.inf
        stamp = known.st_mtime_ns, known.st_size, known.st_ino
        if path not in cache or cache[path][0] != stamp:
            try:
                cache[path] = stamp, load(path)
            except UserError as error:
                cache[path] = stamp, str(error)
        return cache[path][1], known.st_mtime


def read_curves(path: Path) -> Curves:
    """Return the curves in the `metrics.csv` of a run.

    Raises:
        UserError: naming the file, if it cannot be read or is no table of numbers.
    """
    try:
        content = read_regular(path, MOST_BYTES)
        rows = list(csv.DictReader(content.decode("utf-8").splitlines(), strict=True))
        columns = {name for row in rows for name in row}
        validation = "val/acc" in columns
        acc, loss = ("val/acc", "val/nll") if validation else ("train/acc", "train/loss")
        return Curves(_column(rows, acc), _column(rows, loss), validation, len(rows))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not the curves of a run") from error


def _column(rows: Iterable[dict[str, str]], name: str) -> list[float]:
    return [float(row.get(name) or "nan") for row in rows]


def _of_record(record: Result) -> Curves:
    epochs = max(len(record.epoch_train_acc), len(record.epoch_val_acc))
    if record.epoch_val_acc:
        return Curves(record.epoch_val_acc, record.epoch_val_loss, True, epochs)
    return Curves(record.epoch_train_acc, record.epoch_train_loss, False, epochs)


def _find(root: Path, unread: list[str]) -> dict[Path, list[Path]]:
    """Return the run directories below a directory by the directory that they lie in; links are not followed.

    A directory with a plan is there even before its first run.
    """
    if os.path.exists(root / FILE):
        return {root: [root]}
    found: dict[Path, list[Path]] = {}
    waiting = [(root, 0)]
    looked = 0
    while waiting:
        here, depth = waiting.pop()
        looked += 1
        if looked > MOST_FOLDERS:
            unread.append(f"{root}: more than {MOST_FOLDERS:,} folders; give the directory of the sweep itself")
            break
        try:
            with os.scandir(here) as entries:
                below = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError as error:
            unread.append(f"{here}: cannot be read: {error.strerror or error}")
            continue
        if os.path.exists(here / plan.FILE):
            found.setdefault(here, [])
        for name in below:
            if name == REPORT:
                continue
            if os.path.exists(here / name / FILE):
                found.setdefault(here, []).append(here / name)
            elif depth < MOST_DEEP:
                waiting.append((here / name, depth + 1))
    return found


def _planned(job: Planned, run: Run | None) -> Run:
    """Return a job of a plan as its directory has it now."""
    if run is None or run.directory is None:
        run = Run(directory=None, settings="", status="waiting", trained=job.trained)
    elif job.stale is not None and written(run.directory) == job.stale and run.status != "done":
        run = replace(run, status="waiting", why="")  # to be tried again
    if job.status is not None and not (job.status == "failed" and run.status == "done"):  # continued by itself since
        run = replace(run, status=job.status, why=job.why)
    return replace(run, settings=job.settings, before=job.trained)


def _labelled(run: Run, common: set[str]) -> Run:
    """Return a run with the overrides that the others of its directory lack, or all if there are no others."""
    if run.record is None:
        return run
    settings = " ".join(override for override in _overrides(run.record) if override not in common)
    return replace(run, settings=settings or run.record.method)


def _overrides(record: Result) -> list[str]:
    try:
        return shlex.split(record.command or "")
    except ValueError:  # a quotation mark is missing in what somebody else wrote
        return (record.command or "").split()


def _last_line(path: Path) -> str:
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            return (file.read().decode("utf-8", "replace").split("\n")[-2:] or [""])[0].strip()
    except OSError:
        return ""


def _held(locks: Iterable[Path]) -> bool:
    """Return whether a process of this machine holds any lock, by the kernel's list: trying would mean to take it."""
    try:
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except (OSError, ValueError):  # no Linux
        return False
    held = {line.split()[-3].rpartition(":")[2] for line in lines if line.count(" ") > 4}
    for lock in locks if held else ():
        with suppress(OSError):  # there is none
            if str(lock.stat().st_ino) in held:
                return True
    return False
