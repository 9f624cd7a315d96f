"""A run on record: its status is kept from the first moment, whatever comes of it. No torch import."""

import errno
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout

from kd.errors import UserError
from kd.runs.results import FILE, Result, read, write

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def tracked(
    record: Result,
    directory: Path,
    work: Callable[[Result], Result],
    single: bool = False,
    program: str = "python train.py",
) -> Result:
    """Do the run, and keep its status in `result.json` from the first moment: running, done, failed, interrupted.

    A run that the directory says is done is not done again.

    Args:
        record: what is known beforehand.
        directory: of the run.
        work: does it.
        single: whether it is a run by itself; of several, whatever started them prints how to go on.
        program: how to start the program again, for the hint on how to go on.

    Raises:
        UserError: if the directory holds another run.
        SystemExit: 130 if interrupted.
    """
    with _held(directory):
        return _tracked(record, directory, work, single, program)


def _held(directory: Path) -> AbstractContextManager[object]:
    """Keeps other runs out of the directory; the further processes of a data-parallel run belong to the first."""
    if not first_process():
        return nullcontext()
    try:
        return FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is at work in {directory}") from error


def _tracked(record: Result, directory: Path, work: Callable[[Result], Result], single: bool, program: str) -> Result:
    path = directory / FILE
    previous = _previous(path) if path.exists() else None
    if previous is None:
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)  # whose they are cannot be told
    elif previous.fingerprint != record.fingerprint and (
        previous.status == "done" or (directory / CHECKPOINTS).exists()
    ):
        raise UserError(
            f"{directory} holds a run of another configuration ({previous.method}, seed {previous.seed}, "
            f"{previous.date}); choose another hydra.run.dir, or give the settings with which it was started"
        )
    elif previous.fingerprint == record.fingerprint and previous.status == "done":
        return previous
    write_once(record, path)
    try:
        return work(record)
    except (KeyboardInterrupt, SystemExit) as error:
        write_once(replace(record, status="interrupted"), path)
        if single:
            print(f"interrupted; continue with: {program} resume={directory}", file=sys.stderr)
        raise SystemExit(130) from error
    except Exception as error:
        # On a full disk not even this may fit; the first error is the one to hear of.
        with suppress(OSError):
            write_once(replace(record, status="failed", error=str(error)), path)
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(
                f"cannot save the run: {error.strerror}; once there is space, continue with: "
                f"{program} resume={directory}"
            ) from error
        raise


def _previous(path: Path) -> Result | None:
    try:
        return read(path)
    except UserError as error:
        log.warning("%s; the run begins anew", error)
        return None


def write_once(record: Result, path: Path) -> None:
    """Write the record, from one process of a data-parallel run only."""
    if first_process():
        write(record, path)


def first_process() -> bool:
    """Whether this is the only process of the run, or the first of several, by what their launchers tell them."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))


def versions() -> str:
    """What the run was made with, as one line."""
    packages = ("torch", "lightning", "torchmetrics", "hydra-core", "kd")
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # as kd in a checkout that was never installed
        return "unknown"


def git_revision() -> str:
    """The commit that this code is at, "-dirty" behind it if files differ from it; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
