"""Many runs in one directory: what is asked for, what is done, what is left. No torch import."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kd.errors import UserError
from kd.results import FILE, Result, read

if TYPE_CHECKING:
    from rich.table import Table

POLL_SECONDS = 1.0
ENDED = ("skipped", "refused", "done", "failed")
LONG = 40
"""Of more jobs than this the table at the end names only those that a reader has to know of."""


@dataclass(eq=False)
class Job:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    """As on the command line."""
    fingerprint: str
    """Of its settings."""
    name: str
    """Of its directory, unless that is taken."""
    reason: str | None = None
    """Why it is refused, or has failed."""
    label: str = ""
    """The overrides that set it apart from the other jobs."""
    directory: Path | None = None
    """Where it runs; None if it is refused or the same as another."""
    before: Result | None = None
    """Its record, if it was done before this sweep began."""
    same_as: "Job | None" = None
    """The first of those that ask for the same run."""
    stale: int | None = None
    """When the record of an earlier attempt was written."""

    @property
    def record(self) -> Result | None:
        """What its directory says of this sweep's attempt by now."""
        if self.directory is None or _written(self.directory) == self.stale:
            return None
        try:
            return read(self.directory / FILE)
        except UserError:
            return None

    def wait(self) -> None:
        """Until no process is at work in its directory."""
        if self.directory is not None and self.directory.exists():
            with FileLock(self.directory / ".lock"):
                pass

    @property
    def status(self) -> str:
        """skipped, refused, done, failed, interrupted, running, or waiting."""
        if self.before is not None or self.same_as is not None:
            return "skipped"
        if self.directory is None:
            return "refused"
        record = self.record
        if record is not None and record.status == "done":
            return "done"
        if self.reason is not None:
            return "failed"
        return "waiting" if record is None else record.status

    @property
    def why(self) -> str:
        """What is to be said about a status other than done."""
        if self.same_as is not None:
            return f"the same as {self.same_as.label}"
        if self.before is not None:
            return "done before"
        record = self.record
        return self.reason or (record.error if record else None) or ""


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keeps other multiruns out of a directory until this process ends, however it ends.

    Raises:
        UserError: if one is at work in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / ".lock").acquire(timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"another multirun is at work in {directory}; wait for it, or choose another hydra.sweep.dir"
        ) from error


def place(jobs: Sequence[Job], directory: Path) -> list[Job]:
    """Find out which jobs are done, and give each of the others a directory below `directory`; returns those.

    A job keeps the directory that it had in an earlier sweep.
    """
    found = dict(_records(directory))
    homes = {record.fingerprint: home for home, record in found.items()}
    taken = {home.name for home in found}
    first: dict[str, Job] = {}
    for job in jobs:
        if job.reason is not None:
            continue
        job.same_as = first.get(job.fingerprint)
        if job.same_as is not None:
            continue
        first[job.fingerprint] = job
        job.directory = homes.get(job.fingerprint) or directory / _free(job.name, taken)
        taken.add(job.directory.name)
        earlier = found.get(job.directory)
        job.before = earlier if earlier is not None and earlier.status == "done" else None
        job.stale = _written(job.directory)
    common = set.intersection(*(set(job.overrides) for job in jobs))
    for job in jobs:
        job.label = " ".join(override for override in job.overrides if override not in common) or "the run"
    return [job for job in first.values() if job.before is None]


def _records(directory: Path) -> Iterator[tuple[Path, Result]]:
    for path in sorted(directory.glob(f"*/{FILE}")):
        try:
            yield path.parent, read(path)
        except UserError:  # whoever runs there next begins anew
            continue


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = str(int(name) + 1) if name.isdecimal() else f"{name}_"
    return name


def _written(directory: Path) -> int | None:
    try:
        return (directory / FILE).stat().st_mtime_ns
    except OSError:
        return None


class Progress:
    """One line for each job that has ended: how it did, how many are left, how long they will take, the best so far.

    Args:
        jobs: all of the sweep, placed.
        say: prints a line.
        now: the time in seconds.
    """

    def __init__(
        self, jobs: Sequence[Job], say: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.jobs, self.say, self.now = jobs, say, now
        self.began = now()
        self.left = list(jobs)
        self.told = self.run = 0
        """Jobs that have been told of, and that this sweep has run."""
        self.best: tuple[float, str] = (-math.inf, "")
        """Highest validation accuracy of a student, and whose."""
        self._lock = threading.Lock()

    def look(self) -> None:
        """Tell of the jobs that have ended since the last look."""
        with self._lock:
            ended = [(job, status) for job in self.left if (status := job.status) in ENDED]
            for job, status in ended:
                self.left.remove(job)
                self.run += status in ("done", "failed")
            for job, status in ended:
                self._tell(job, status)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again, while jobs run in other processes."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_SECONDS):
                self.look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.look()

    def _tell(self, job: Job, status: str) -> None:
        record = job.before or job.record
        told = [job.why] if job.why else []
        if record is not None and record.val_acc is not None:
            told.append(f"val {100 * record.val_acc:.2f} %")
            if record.student is not None:
                self.best = max(self.best, (record.val_acc, job.label))
        self.told += 1
        of = str(len(self.jobs))
        line = f"[{self.told:{len(of)}}/{of}] {status:<7} {job.label}"
        line += f": {', '.join(told)}" if told else ""
        if status in ("done", "failed"):
            elapsed = self.now() - self.began
            line += f" | {clock(elapsed)} gone"
            if self.left:
                running = sum(other.status == "running" for other in self.left)
                line += f", {len(self.left)} left{f', {running} of them running,' if running else ''}"
                line += f" in about {clock(elapsed / self.run * len(self.left))}"
            if self.best[1]:
                line += f" | best val {100 * self.best[0]:.2f} %: {self.best[1]}"
        self.say(line)


def table(jobs: Sequence[Job]) -> "Table":
    """Every job, or of many those that failed and the ten best by validation accuracy."""
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown.add_column("run")
    shown.add_column("settings", overflow="fold")
    shown.add_column("status", no_wrap=True)
    for heading in ("val acc", "test acc"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    for job in jobs if len(jobs) <= LONG else _notable(jobs):
        record = job.before or job.record
        accuracies = (None, None) if record is None else (record.val_acc, record.test_acc)
        shown.add_row(
            job.directory.name if job.directory else "",
            job.label,
            job.status,
            *("" if accuracy is None else f"{100 * accuracy:.2f}" for accuracy in accuracies),
            job.why,
        )
    return shown


def _notable(jobs: Sequence[Job]) -> list[Job]:
    def accuracy(job: Job) -> float:
        record = job.before or job.record
        return -math.inf if record is None or record.val_acc is None else record.val_acc

    ended_well = [job for job in jobs if job.status in ("done", "skipped") and job.same_as is None]
    best = sorted(ended_well, key=accuracy, reverse=True)[:10]
    return [job for job in jobs if job in best or job.status not in ("done", "skipped")]


def count(jobs: Sequence[Job]) -> str:
    """How many of each status: "10 done, 2 failed"."""
    counts = Counter(job.status for job in jobs)
    order = ("done", "skipped", "failed", "refused", "interrupted", "running", "waiting")
    return ", ".join(f"{counts[status]} {status}" for status in order if counts[status])


def clock(seconds: float) -> str:
    """As on a clock: "4:05", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
