"""Many runs in one directory: which are requested, which are done, which are left. No torch import."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from kd.errors import UserError
from kd.files import open_regular
from kd.runs.results import CURVES, FILE, Result, read, write
from kd.runs.status import refuse_links, vacant


def forget_frames(error: object) -> bool:
    """Drop an error's tracebacks, whose frames hold the images and networks of its run; return whether it is one."""
    failed = isinstance(error, BaseException)
    while isinstance(error, BaseException):
        error = error.with_traceback(None)
        error = error.__cause__ or error.__context__
    return failed


@dataclass(eq=False)
class Job:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    """The settings of this job, as on the command line."""
    fingerprint: str
    """The fingerprint of its settings."""
    name: str
    """The name of its directory, unless that is taken."""
    reason: str | None = None
    """Why it is refused, or has failed; None otherwise."""
    label: str = ""
    """The overrides that set it apart from the other jobs."""
    directory: Path | None = None
    """Where it runs; None if it is refused or the same as another."""
    before: Result | None = None
    """Its record, if it was done before this sweep began."""
    same_as: "Job | None" = None
    """The first of the jobs with the same settings, if it is not this one."""
    stale: int | None = None
    """When the record of an earlier attempt was written."""

    @property
    def record(self) -> Result | None:
        """The record of this sweep's attempt; None until there is one."""
        if self.directory is None or written(self.directory) == self.stale:
            return None
        try:
            return read(self.directory / FILE)
        except UserError:
            return None

    @property
    def outcome(self) -> Result | None:
        """The record of this sweep's attempt, or of the earlier sweep in which it was done; None until there is one."""
        return self.before or self.record

    @property
    def trained(self) -> float:
        """The share of its epochs that it has trained, 0 to 1, by whichever attempt."""
        if self.directory is None:
            return 0.0
        try:
            epochs = read(self.directory / FILE).epochs
            with open_regular(self.directory / CURVES) as lines:
                return min(1.0, max(0, sum(1 for _ in lines) - 1) / epochs)
        except (UserError, OSError, ZeroDivisionError):
            return 0.0

    def wait(self) -> None:
        """Block until no process is at work in its directory."""
        if self.directory is not None and self.directory.exists():
            with FileLock(self.directory / ".lock"):
                pass

    @property
    def status(self) -> str:
        """The status: skipped, refused, done, failed, interrupted, running, or waiting."""
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
        """The reason of a status other than done, for the line and the table."""
        if self.same_as is not None:
            return f"the same as {self.same_as.label}"
        if self.before is not None:
            return "done before"
        if self.status == "done":  # before its process died of another one
            return ""
        record = self.record
        return self.reason or (record.error if record else None) or ""


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other multiruns out of a directory until the block ends or the process dies.

    Raises:
        UserError: if another multirun is at work in it.
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
    """Find out which jobs are done, assign directories below `directory`, and return the jobs that are left.

    A job keeps the directory that it had in an earlier sweep.
    """
    found = dict(_records(directory))
    # Of several directories with the same settings, as in sweeps that were copied together, one that is done.
    done_last = sorted(found.items(), key=lambda item: item[1].status == "done")
    homes = {record.fingerprint: home for home, record in done_last}
    # Also by records that cannot be read, and by what is not ours.
    taken = {path.name for path in directory.iterdir() if (path / FILE).exists() or not vacant(path)}
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
        job.stale = written(job.directory)
    common = set.intersection(*(set(job.overrides) for job in jobs))
    for job in jobs:
        job.label = " ".join(override for override in job.overrides if override not in common) or "the run"
    return [job for job in first.values() if job.before is None]


def settle(jobs: Sequence[Job], seconds: float = 5.0) -> None:
    """Record as interrupted those jobs that a killed process left "running", as joblib leaves them after Ctrl-C.

    Args:
        jobs: some of a sweep, after `place`.
        seconds: how long to wait, for all of them together, until their processes have ended. A job whose process
            goes on, as on a cluster, stays as it is.
    """
    deadline = time.monotonic() + seconds
    for job in jobs:
        if job.directory is None or job.record is None or job.record.status != "running":
            continue
        with (
            suppress(Timeout, OSError),
            FileLock(job.directory / ".lock").acquire(timeout=max(0, deadline - time.monotonic())),
        ):
            record = job.record
            if record is not None and record.status == "running":
                write(replace(record, status="interrupted"), job.directory / FILE)


def fail(directory: Path, reason: str) -> None:
    """Record as failed a run whose process has died without recording anything."""
    with suppress(UserError, OSError):
        record = read(directory / FILE)
        if record.status == "running":
            write(replace(record, status="failed", error=reason), directory / FILE)


def together(some: Sequence[Job], jobs: Sequence[Job]) -> str:
    """Return a name of some of the jobs: the settings that they have in common and no other has, else their labels."""
    if len(some) == 1:
        return some[0].label
    number = f"{len(some)} jobs"
    if len(some) == len(jobs):
        return f"all {number}"
    other = {override for job in jobs if job not in some for override in job.overrides}
    own = [name for name in some[0].overrides if name not in other and all(name in job.overrides for job in some)]
    if own:
        return f"{' '.join(own)} ({number})"
    more = f" and {len(some) - 3} more" if len(some) > 3 else ""
    return ", ".join(job.label for job in some[:3]) + more


def by_reason(jobs: Sequence[Job]) -> list[list[Job]]:
    """Group jobs by status and reason, in order of their first."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.status, job.why), []).append(job)
    return list(groups.values())


def _records(directory: Path) -> Iterator[tuple[Path, Result]]:
    for path in sorted(directory.glob(f"*/{FILE}")):
        try:
            refuse_links(path.parent)
            yield path.parent, read(path)
        except UserError:  # nothing is known of it: it stays as it is
            continue


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = str(int(name) + 1) if name.isdecimal() else f"{name}_"
    return name


def written(directory: Path) -> int | None:
    """Return when a directory's record was written, in nanoseconds; None without one."""
    try:
        return (directory / FILE).stat().st_mtime_ns
    except OSError:
        return None
