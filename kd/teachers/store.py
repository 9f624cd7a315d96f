"""Which teacher: trained once, kept under the hash of what made it, loaded frozen.

A store entry is the run directory of the training that made it, named by the digest of its recipe, plus `entry.json`:

    <store>/<id>/teacher.safetensors   the weights
    <store>/<id>/result.json           how it did
    <store>/<id>/entry.json            recipe and checksum, looked at on every loading
    <store>/<id>.partial/              a training that is going on, or was interrupted and will be continued
    <store>/<id>.lock                  held while it is going on
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd.errors import UserError
from kd.hashing import digest
from kd.runs.results import FILE, Result, read
from kd.runs.status import first_process, write_once
from kd.runs.weights import checksum

WEIGHTS = "teacher.safetensors"
ENTRY = "entry.json"

log = logging.getLogger(__name__)


def find_or_train(store: Path, recipe: dict[str, Any], train: Callable[[Path], object]) -> Path:
    """The directory of the teacher that `recipe` makes, trained first if the store has none.

    Of several processes that want the same teacher at once, one trains and the others wait. What an interrupted
    training left is handed to the next one.

    Args:
        store: directory of all teachers.
        recipe: everything that decides what the teacher becomes, resolved, as plain JSON values.
        train: trains, tests and leaves `teacher.safetensors` and `result.json` in the directory it is given, which may
            hold what an interrupted call left there.

    Raises:
        UserError: if the entry was made by another recipe or is damaged, or the store cannot be written.
    """
    name = digest(recipe)
    entry, partial = store / name, store / f"{name}.partial"
    if not entry.exists():
        try:
            store.mkdir(parents=True, exist_ok=True)
            lock = _locked(store / f"{name}.lock")
        except OSError as error:
            raise UserError(f"teacher_store={store} cannot be written: {error.strerror}") from error
        with lock:
            if not entry.exists():
                log.info("training the teacher, to be kept in %s", entry)
                partial.mkdir(exist_ok=True)
                train(partial)
                facts = {"recipe": recipe, "sha256": checksum(partial / WEIGHTS)}
                (partial / ENTRY).write_text(json.dumps(facts, indent=2, sort_keys=True))
                os.rename(partial, entry)
    _check(entry, recipe)
    return entry


def copy_from_store(entry: Path, record: Result, directory: Path) -> Result:
    """Make a run that wants nothing but the teacher look like the training in the store that it came from.

    Args:
        entry: the store's directory of that teacher.
        record: of the run, which keeps its own settings, teacher and its accuracy.
        directory: of the run.
    """
    if first_process():
        shutil.copytree(entry, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ENTRY, FILE))
    result = replace(
        read(entry / FILE),
        teacher_id=record.teacher_id,
        teacher_test_acc=record.teacher_test_acc,
        data_id=record.data_id,
        command=record.command,
        variant=record.variant,
        fingerprint=record.fingerprint,
        group=record.group,
    )
    write_once(result, directory / FILE)
    return result


def _locked(path: Path) -> AbstractContextManager[object]:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is training this teacher; waiting for it")
        return lock.acquire()


def _check(entry: Path, recipe: dict[str, Any]) -> None:
    advice = f"remove {entry} to have it trained again"
    try:
        facts = json.loads((entry / ENTRY).read_text())
        digest = checksum(entry / WEIGHTS)
        made_by, recorded = facts["recipe"], facts["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the teacher in {entry} is damaged ({error}); {advice}") from error
    if made_by != recipe:
        raise UserError(f"the teacher in {entry} was made by another recipe than its name says; {advice}")
    if recorded != digest:
        raise UserError(f"the teacher in {entry} is damaged (its weights do not match their checksum); {advice}")
