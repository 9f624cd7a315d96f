"""The teacher store: each teacher is trained once and stored under the hash of its key.

A store entry is the run directory of the training that made it, plus `entry.json`. It is named by the digest of its
key, which `kd.app.identity.teacher_key` makes:

    <store>/<id>/teacher.safetensors   the weights
    <store>/<id>/result.json           the record of its training
    <store>/<id>/entry.json            key (as "recipe") and checksum, checked on every loading
    <store>/<id>/README.md             the model card
    <store>/<id>.partial/              a training in progress, or interrupted and to be resumed
    <store>/<id>.lock                  locked while it is in progress
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

from filelock import Timeout

from kd.errors import UserError
from kd.files import checksum, open_regular, read_regular, replaced, shared_lock
from kd.hashing import digest
from kd.runs.given import TEACHER_WEIGHTS
from kd.runs.results import CARD, FILE, Result, read
from kd.runs.status import first_process, write_once

ENTRY = "entry.json"
MAX_ENTRY = 2**24
"""Bytes of `entry.json` that are read; a chain of many teachers has some thousands."""

log = logging.getLogger(__name__)


def find_or_train(store: Path, key: dict[str, Any], train: Callable[[Path], object]) -> Path:
    """Return the directory of the teacher of a key, trained first if the store has none.

    If several processes need the same teacher at once, one trains and the others wait. An interrupted training is
    resumed by the next call.

    Args:
        store: directory of all teachers.
        key: all settings that decide the teacher, resolved, as plain JSON values.
        train: trains, tests and writes `teacher.safetensors` and `result.json` into the given directory, which may
            hold the files of an interrupted call.

    Raises:
        UserError: if the entry was made by another key or is damaged, or the store cannot be written.
    """
    name = digest(key)
    entry, partial = store / name, store / f"{name}.partial"
    if not _exists(entry):
        try:
            store.mkdir(parents=True, exist_ok=True)
            lock = _locked(store / f"{name}.lock")
        except OSError as error:
            raise UserError(_not_writable(store, error.filename or store, error.strerror)) from error
        with lock:
            if not _exists(entry):
                log.info("training the teacher, to be kept in %s", entry)
                partial.mkdir(exist_ok=True)
                if not os.access(partial, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                    raise UserError(_not_writable(store, partial, "another user's training that ended early"))
                train(partial)
                weights = partial / TEACHER_WEIGHTS
                facts = {"recipe": key, "sha256": checksum(weights), "bytes": weights.stat().st_size}
                with replaced(partial / ENTRY) as temporary:
                    temporary.write_text(json.dumps(facts, indent=2, sort_keys=True))
                os.rename(partial, entry)
    _check(entry, key)
    return entry


def held_out(entry: Path, unknown: str) -> tuple[float, int]:
    """Return which training images a teacher has not seen: their share, 0 for none, and the seed they are drawn by.

    Raises:
        UserError: with the text `unknown`, if the entry does not say.
    """
    try:
        data = _facts(entry)["recipe"]["data"]
        return float(data["val_fraction"]), int(data["split_seed"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(unknown) from error


def copy_from_store(entry: Path, record: Result, directory: Path, data_parallel: bool = False) -> Result:
    """Copy a teacher's training from the store into the directory of a run whose only result is that teacher.

    Args:
        entry: the store's directory of that teacher.
        record: the run's record, whose settings, teacher and teacher's accuracies are kept.
        directory: the run directory.
        data_parallel: whether the run has several processes, each of which calls this.
    """
    if first_process(data_parallel):
        for path in entry.rglob("*"):
            place = directory / path.relative_to(entry)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)  # not with its mode: a store may be read-only
            elif path.name not in (ENTRY, FILE, CARD):
                shutil.copyfile(path, place)
    trained = read(entry / FILE)
    result = replace(
        trained,
        warnings=list(dict.fromkeys([*trained.warnings, *record.warnings])),
        teacher_id=record.teacher_id,
        teacher_test_acc=record.teacher_test_acc,
        also_test_acc=record.also_test_acc,
        also_test_nll=record.also_test_nll,
        data_id=record.data_id,
        command=record.command,
        cwd=record.cwd,
        config_dir=record.config_dir,
        variant=record.variant,
        fingerprint=record.fingerprint,
        group=record.group,
    )
    write_once(result, directory / FILE, data_parallel)
    return result


def _exists(entry: Path) -> bool:
    try:
        return entry.exists()
    except OSError as error:
        raise UserError(_forbidden(entry)) from error


def _locked(path: Path) -> AbstractContextManager[object]:
    lock = shared_lock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is training this teacher; waiting for it")
        return lock.acquire()


def _facts(entry: Path) -> Any:
    """Return what the file of an entry says, unchecked."""
    return json.loads(read_regular(entry / ENTRY, MAX_ENTRY))


def _check(entry: Path, key: dict[str, Any]) -> None:
    advice = f"remove {entry} to have it trained again"
    try:
        facts = _facts(entry)
        stored_key, recorded = facts["recipe"], facts["sha256"]
        with open_regular(entry / TEACHER_WEIGHTS) as file:
            size = os.fstat(file.fileno()).st_size
        # Of another size it is not read to its end, which could be far away. Older versions did not store the size.
        digest = checksum(entry / TEACHER_WEIGHTS) if facts.get("bytes", size) == size else None
    except PermissionError as error:
        raise UserError(_forbidden(error.filename)) from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"the teacher in {entry} is damaged ({error}); {advice}") from error
    if stored_key != key:
        raise UserError(f"the teacher in {entry} was made by another recipe than its name says; {advice}")
    if recorded != digest:
        raise UserError(f"the teacher in {entry} is damaged (its weights do not match their checksum); {advice}")


def _forbidden(path: object) -> str:
    return f"{path}: permission denied; have it made readable for you, or set teacher_store=DIR to a folder of your own"


def _not_writable(store: Path, path: object, reason: str | None) -> str:
    return (
        f"teacher_store={store} cannot be written: {path}: {reason}; have it made writable for you, or set "
        "teacher_store=DIR to a folder of your own"
    )
