"""A run's status, recorded from its start to its end, however it ends. No torch import."""

import errno
import logging
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd.errors import DivergedError, RefusedError, UserError, described
from kd.files import TEMPORARY
from kd.runs.results import FILE, Result, read, write

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
FOLDERS = (".hydra", CHECKPOINTS, "tensorboard")
"""Those in a run directory that a run writes into."""
OF_HYDRA = re.compile(r"[^/]+\.log|[^/]+/(config|hydra|overrides)\.yaml")
"""What Hydra leaves in a directory, whatever hydra.job.name and hydra.output_subdir."""
BEFORE_A_RUN = (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", ".lock", FILE, "train.log")
"""What a directory holds of a command that was refused."""
BEGUN = (".hydra/config.yaml", ".lock")
"""What may be there already before Hydra has written all of its files."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def tracked(
    record: Result,
    directory: Path,
    execute: Callable[[Result], Result],
    single: bool = False,
    program: str = "python train.py",
    data_parallel: bool = False,
    typed: Sequence[str] = (),
) -> Result:
    """Execute a run, and keep its status in `result.json`: running, done, failed or interrupted.

    A run whose record in the directory is done is not repeated. Of a refused command nothing is left in a directory
    that held nothing else.

    Args:
        record: the fields that are known beforehand.
        directory: the run directory.
        execute: does the run, and returns its completed record.
        single: whether to print how to continue an interrupted run; a sweep prints it once for all of its runs.
        program: the command that starts the program, for that hint.
        data_parallel: whether the run has several processes, each of which calls this.
        typed: overrides that a run is not continued with unless they are typed again, for that hint.

    Raises:
        UserError: if the directory holds another run, or links.
        SystemExit: 130 if interrupted.
    """
    refuse_links(directory)
    folder = [] if record.config_dir is None else [f"--config-dir={record.config_dir}"]
    hint = f"{program} {shlex.join([*folder, f'resume={directory}', *typed])}"
    with _locked(directory, data_parallel):
        return _tracked(record, directory, execute, hint, single, data_parallel)


def _locked(directory: Path, data_parallel: bool) -> AbstractContextManager[object]:
    """Keep other runs out of the directory; further processes of a data-parallel run share the lock."""
    if not first_process(data_parallel):
        return nullcontext()
    try:
        return FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is at work in {directory}") from error


def refuse_links(directory: Path) -> None:
    """Refuse a run directory that has a link, pipe or device where a run writes: it would write somewhere else.

    Folders of other programs in it, such as that of Weights & Biases, may hold links of their own.

    Raises:
        UserError: naming it.
    """
    for folder in (directory, *(directory / name for name in FOLDERS)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a temporary file of a process at work there
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise UserError(f"{path} is {kind}, which a run does not write through; move it away")


def check_free(directory: Path) -> None:
    """Refuse a directory with links or in which another process is at work, before anything in it is written."""
    refuse_links(directory)
    if (directory / ".lock").exists():
        with _locked(directory, data_parallel=False):
            pass


def _tracked(
    record: Result,
    directory: Path,
    execute: Callable[[Result], Result],
    hint: str,
    single: bool,
    data_parallel: bool,
) -> Result:
    path = directory / FILE
    previous = recorded(directory)
    refuse_another(previous, record.fingerprint, directory)
    if previous is not None and previous.status == "done":
        log.info("this run was done before, on %s; nothing is left to do", previous.date)
        return previous
    if previous is not None and (directory / CHECKPOINTS).exists():
        if previous.git != record.git:
            started, now = (git or "an unknown version" for git in (previous.git, record.git))
            log.warning("this run was started with the code of %s and goes on with that of %s", started, now)
        record = replace(record, data_id=previous.data_id)  # what a checkpoint has been trained on
    write_once(record, path, data_parallel)
    try:
        return execute(record)
    except (KeyboardInterrupt, SystemExit) as error:
        with suppress(OSError):
            _write_end(record, path, data_parallel, status="interrupted")
        if single:
            print(f"interrupted; continue with: {hint}", file=sys.stderr)
        raise SystemExit(130) from error
    except Exception as error:
        if isinstance(error, RefusedError) and first_process(data_parallel):
            if previous is None:
                _remove(directory)
            else:
                with suppress(OSError):
                    write(previous, path)  # its command, too, which continues the run
            raise
        # On a full disk this may fail too; the first error is the one to report.
        with suppress(OSError):
            why = str(error) if isinstance(error, UserError | OSError) else described(error)
            lost = isinstance(error, DivergedError)
            _write_end(record, path, data_parallel, status="failed", error=why, diverged=lost)
        if not single and not isinstance(error, UserError | OSError):
            log.error("the run failed", exc_info=error)  # a sweep goes on, and prints a line
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(
                f"cannot save the run: {error.strerror}; once there is space, continue with: {hint}"
            ) from error
        raise


def _write_end(began: Result, path: Path, data_parallel: bool, **changes: Any) -> None:
    """Write how a run ended, unless it was done: what comes after that, such as pictures, takes nothing from it."""
    latest = _latest(path, began)
    if latest.status != "done":
        write_once(replace(latest, **changes), path, data_parallel)


def _latest(path: Path, record: Result) -> Result:
    """The record as the run has last written it, which knows more than what it began with."""
    try:
        return read(path)
    except UserError:
        return record


@contextmanager
def refusals() -> Iterator[None]:
    """Mark the user's mistakes in this block as found before the run did anything."""
    try:
        yield
    except UserError as error:
        raise RefusedError(str(error)) from error


def recorded(directory: Path, before_hydra: bool = False) -> Result | None:
    """Return the record of the run in a directory; None if the directory is missing, or empty but for Hydra's files.

    Args:
        directory: the run directory.
        before_hydra: whether Hydra has not written into it yet, so that a log without Hydra's folder is another's.

    Raises:
        UserError: if it holds anything else, so that nothing is written over or removed that is not this program's.
    """
    if (directory / FILE).exists():
        try:
            return read(directory / FILE)
        except UserError as error:
            raise UserError(f"{error}; move it away, or choose another hydra.run.dir") from error
    files = _files(directory)
    others = [file for file in files if file not in BEFORE_A_RUN and not OF_HYDRA.fullmatch(file)]
    if before_hydra and not any(file.endswith("/hydra.yaml") for file in files):
        # But for what is there of a command that was killed as it began: an empty log, the first of Hydra's files.
        others = [file for file in files if file not in BEGUN and (directory / file).stat().st_size]
        others += [file for file in files if file not in BEFORE_A_RUN and file not in others]
    if others:
        more = f" and {len(others) - 1} other files" if len(others) > 1 else ""
        raise UserError(
            f"{directory} holds {others[0]}{more}, and no {FILE} of a run; choose another hydra.run.dir, or move that "
            "away"
        )
    return None


def refuse_another(previous: Result | None, fingerprint: str, directory: Path) -> None:
    """Refuse to put a run in the place of another one that is done or has left more than a record and curves.

    Args:
        previous: the directory's record.
        fingerprint: of the run that is to be put there.
        directory: the run directory.
    """
    if previous is None or previous.fingerprint == fingerprint:
        return
    others = [file for file in _files(directory) if file not in BEFORE_A_RUN and not OF_HYDRA.fullmatch(file)]
    if previous.status == "done" or not all(file.startswith("tensorboard/") for file in others):
        raise UserError(
            f"{directory} holds a run of another configuration ({previous.method}, seed {previous.seed}, "
            f"{previous.date}); choose another hydra.run.dir, or give the settings with which it was started"
        )


def vacant(directory: Path) -> bool:
    """Return whether a directory holds nothing but what Hydra leaves of a command, so that a job may have it."""
    try:
        refuse_links(directory)
        return directory.is_dir() and not directory.is_symlink() and recorded(directory) is None
    except (UserError, OSError):
        return False


def _files(directory: Path) -> list[str]:
    try:
        files = [path for path in directory.rglob("*") if not path.is_dir() and not TEMPORARY.fullmatch(path.name)]
        return sorted(str(path.relative_to(directory)) for path in files)
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}; choose another hydra.run.dir") from error


def _remove(directory: Path) -> None:
    """Remove the directory of a refused command, and the folders above it that are left empty, up to where we are."""
    here = Path.cwd()
    above = [folder for folder in directory.resolve().parents[:2] if here in folder.parents]
    with suppress(OSError):
        for name in BEFORE_A_RUN:
            (directory / name).unlink(missing_ok=True)
        for folder in (directory / ".hydra", directory, *above):
            if folder.is_dir() and folder != here:
                folder.rmdir()  # an error where anything is left in it


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
