"""The plan of a sweep in a file of its directory, for whoever looks on: its jobs, and where each of them runs."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from kd.errors import UserError
from kd.files import open_regular, replaced
from kd.runs.results import MOST_BYTES
from kd.sweeps.jobs import Job

FILE = "jobs.json"
KNOWN = ("skipped", "refused", "failed")
"""Statuses that the plan knows of jobs without a record of their own."""
MOST = 100_000
"""Jobs that are read."""
LATEST = 1e11
"""Seconds since 1970, of a time that is one."""


class Planned(NamedTuple):
    """A job of a plan."""

    settings: str
    """What sets it apart from the other jobs."""
    directory: str | None
    """The name of its directory in that of the sweep; None if it has none."""
    status: str | None
    """One of `KNOWN`; None where its own record tells."""
    why: str
    trained: float
    """The share of its epochs that was trained before the sweep began, 0 to 1."""
    stale: int | None
    """When the record of an earlier attempt was written, in nanoseconds; it says nothing of this one."""


class Plan(NamedTuple):
    """All jobs of a sweep, as its latest command has them."""

    began: float
    """When that command began, in seconds since 1970."""
    jobs: list[Planned]


def planned(job: Job, trained: float) -> Planned:
    """Return what the plan says of a job.

    Args:
        job: after `kd.sweeps.jobs.place`.
        trained: see `Planned`.
    """
    status = job.status
    has_reason = status in ("skipped", "refused") or (status == "failed" and job.reason is not None)
    directory = None if job.directory is None else job.directory.name
    return Planned(
        job.label, directory, status if has_reason else None, job.why if has_reason else "", trained, job.stale
    )


def write(jobs: Sequence[Job], trained: Sequence[float], began: float) -> None:
    """Write the plan of jobs, after `place`, into their sweep's directory; a disk that is full stops no sweep.

    Args:
        jobs: of the sweep; if none has a directory, nothing is written.
        trained: of each, see `Planned`.
        began: see `Plan`.
    """
    directory = next((job.directory.parent for job in jobs if job.directory is not None), None)
    if directory is None:
        return
    rows = [planned(job, share)._asdict() for job, share in zip(jobs, trained, strict=True)]
    with suppress(OSError), replaced(directory / FILE) as temporary:
        temporary.write_text(json.dumps({"began": began, "jobs": rows}), "utf-8")


def read(directory: Path) -> Plan | None:
    """Return the plan in a sweep's directory; None if there is none, as of versions that wrote none.

    Raises:
        UserError: naming the file, if it cannot be read or is no plan. Nothing in it is trusted.
    """
    path = directory / FILE
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(MOST_BYTES))
        jobs = [_checked(job) for job in found["jobs"][:MOST]]
        began = found["began"]
        if not isinstance(began, int | float) or not 0 <= began < LATEST:
            raise TypeError("began is no time")
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a sweep's list of jobs"
        raise UserError(f"{path}: {reason}") from error
    return Plan(float(began), jobs)


def _checked(job: Any) -> Planned:
    made = Planned(**job)
    name, known = made.directory, made.status in (None, *KNOWN)
    if not isinstance(made.settings, str) or not isinstance(made.why, str) or not known:
        raise TypeError("not a job")
    if name is not None and (not isinstance(name, str) or Path(name).name != name or name in ("", "..")):
        raise TypeError("not the name of a directory")
    if not isinstance(made.trained, int | float) or not 0 <= made.trained <= 1:
        raise TypeError("not a share")
    if made.stale is not None and not isinstance(made.stale, int):
        raise TypeError("not a time")
    return made
