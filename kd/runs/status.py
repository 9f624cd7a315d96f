"""A run's status, recorded from its start to its end, however it ends. No torch import."""

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
    execute: Callable[[Result], Result],
    single: bool = False,
    program: str = "python train.py",
    data_parallel: bool = False,
) -> Result:
    """Execute a run, and keep its status in `result.json`: running, done, failed or interrupted.

    A run whose record in the directory is done is not repeated.

    Args:
        record: the fields that are known beforehand.
        directory: the run directory.
        execute: does the run, and returns its completed record.
        single: whether to print how to continue an interrupted run; a sweep prints it once for all of its runs.
        program: the command that starts the program, for that hint.
        data_parallel: whether the run has several processes, each of which calls this.

    Raises:
        UserError: if the directory holds another run.
        SystemExit: 130 if interrupted.
    """
    with _locked(directory, data_parallel):
        return _tracked(record, directory, execute, single, program, data_parallel)


def _locked(directory: Path, data_parallel: bool) -> AbstractContextManager[object]:
    """Keep other runs out of the directory; further processes of a data-parallel run share the lock."""
    if not first_process(data_parallel):
        return nullcontext()
    try:
        return FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is at work in {directory}") from error


def _tracked(
    record: Result,
    directory: Path,
    execute: Callable[[Result], Result],
    single: bool,
    program: str,
    data_parallel: bool,
) -> Result:
    path = directory / FILE
    previous = _previous(path) if path.exists() else None
    if previous is None:
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)  # of an unknown run
    elif previous.fingerprint != record.fingerprint and (
        previous.status == "done" or (directory / CHECKPOINTS).exists()
    ):
        raise UserError(
            f"{directory} holds a run of another configuration ({previous.method}, seed {previous.seed}, "
            f"{previous.date}); choose another hydra.run.dir, or give the settings with which it was started"
        )
    elif previous.fingerprint == record.fingerprint and previous.status == "done":
        return previous
    write_once(record, path, data_parallel)
    try:
        return execute(record)
    except (KeyboardInterrupt, SystemExit) as error:
        write_once(replace(record, status="interrupted"), path, data_parallel)
        if single:
            print(f"interrupted; continue with: {program} resume={directory}", file=sys.stderr)
        raise SystemExit(130) from error
    except Exception as error:
        # On a full disk this may fail too; the first error is the one to report.
        with suppress(OSError):
            write_once(replace(record, status="failed", error=str(error)), path, data_parallel)
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


def write_once(record: Result, path: Path, data_parallel: bool = False) -> None:
    """Write the record, from one process of a data-parallel run only."""
    if first_process(data_parallel):
        write(record, path)


def first_process(data_parallel: bool) -> bool:
    """Return whether this is the only process of the run, or the first by the launcher's environment variables.

    Those say nothing about a run on one device: several may be packed into one allocation of Slurm, or be started by
    torchrun.

    Args:
        data_parallel: whether the run is one of several processes.
    """
    return not data_parallel or all(
        os.environ.get(name, "0") == "0" for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
    )


def versions() -> str:
    """Return the versions of Python and the main packages, as one line."""
    packages = ("torch", "lightning", "torchmetrics", "hydra-core", "kd")
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # as kd in a checkout that was never installed
        return "unknown"


def git_revision() -> str:
    """Return the commit of this code, with "-dirty" appended if files differ from it; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
