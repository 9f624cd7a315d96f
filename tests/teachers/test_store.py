import json
import multiprocessing
import os
import re
import time

import pytest

from kd.errors import UserError
from kd.files import checksum
from kd.hashing import digest
from kd.runs.results import Result, write
from kd.teachers.store import copy_from_store, find_or_train

RECIPE = {
    "model": {"_target_": "kd.models.cnn.CNN", "scale": 32, "activation": "relu"},
    "data": {"id": "0123", "split": [0.1, 0], "flip": True},
    "clip_norm": None,
    "seed": 0,
}


class Training:
    """Leaves some bytes for weights, and remembers where it was called and what it found there."""

    def __init__(self, fails=None):
        self.fails, self.found = fails, []

    def __call__(self, directory):
        self.found.append(sorted(path.name for path in directory.iterdir()))
        (directory / "last.ckpt").write_text("half way")
        if self.fails:
            raise self.fails
        (directory / "teacher.safetensors").write_bytes(b"weights")
        (directory / "result.json").write_text("{}")


def test_trained_once_and_found_ever_after(tmp_path):
    store, train = tmp_path / "not" / "yet", Training()
    entry = find_or_train(store, RECIPE, train)
    assert entry == find_or_train(store, RECIPE, train)
    assert train.found == [[]]
    assert (entry / "teacher.safetensors").read_bytes() == b"weights"
    facts = json.loads((entry / "entry.json").read_text())
    weights = entry / "teacher.safetensors"
    assert facts == {"recipe": RECIPE, "sha256": checksum(weights), "bytes": weights.stat().st_size}
    assert re.fullmatch("[0-9a-f]{16}", entry.name)
    assert not list(store.glob("*.partial"))


@pytest.mark.parametrize("name", ["entry.json", "teacher.safetensors", ""])
def test_teacher_that_may_not_be_read_is_not_called_damaged(public_path, as_nobody, name):
    entry = find_or_train(public_path / "store", RECIPE, Training())
    (entry / name).chmod(0)
    with as_nobody(), pytest.raises(UserError, match=rf"{name}: permission denied; have it made readable for you"):
        find_or_train(public_path / "store", RECIPE, Training())
    (entry / name).chmod(0o755)
    assert (entry / "teacher.safetensors").exists()


def test_store_that_may_not_be_entered_is_named(public_path, as_nobody):
    find_or_train(public_path / "store", RECIPE, Training())
    (public_path / "store").chmod(0)
    with as_nobody(), pytest.raises(UserError, match=f"{digest(RECIPE)}: permission denied; .* set teacher_store=DIR"):
        find_or_train(public_path / "store", RECIPE, Training())
    (public_path / "store").chmod(0o755)


def test_store_for_reading_only_gives_the_teachers_it_has(public_path, as_nobody):
    entry = find_or_train(public_path / "store", RECIPE, Training())
    (public_path / "store").chmod(0o555)
    with as_nobody():
        assert find_or_train(public_path / "store", RECIPE, Training()) == entry
        with pytest.raises(
            UserError, match=r"store cannot be written: .*\.lock: Permission denied; .* a folder of your"
        ):
            find_or_train(public_path / "store", {**RECIPE, "seed": 1}, Training())
    (public_path / "store").chmod(0o755)


def test_copy_of_a_teacher_may_be_written_to_whatever_its_store_allows(public_path, as_nobody):
    entry = public_path / "store" / "key"
    (entry / "tensorboard").mkdir(parents=True)
    (entry / "tensorboard" / "events").write_text("curve")
    record = Result(method="teacher", seed=0, dataset="d", epochs=1, status="done", teacher="cnn32")
    write(record, entry / "result.json")
    for path in (entry / "tensorboard" / "events", entry / "tensorboard", entry):
        path.chmod(0o555)
    (public_path / "run").mkdir(mode=0o777)
    (public_path / "run").chmod(0o777)
    with as_nobody():
        for _ in range(2):  # also after a kill in the middle of it
            copy_from_store(entry, record, public_path / "run")
    assert (public_path / "run" / "tensorboard" / "events").read_text() == "curve"
    assert (public_path / "run" / "result.json").exists()
    for path in (entry, entry / "tensorboard"):
        path.chmod(0o755)


def test_training_that_another_user_left_is_named(public_path, as_nobody):
    (public_path / "store").mkdir()
    (public_path / "store").chmod(0o777)
    (public_path / "store" / f"{digest(RECIPE)}.partial").mkdir(mode=0o555)
    with (
        as_nobody(),
        pytest.raises(UserError, match=r"\.partial: another user's training that ended early; .* your own"),
    ):
        find_or_train(public_path / "store", RECIPE, Training())


def test_lock_of_a_shared_store_serves_every_user(public_path, as_nobody):
    """The first user's lock is left there; one that only its owner may write would end all others' trainings."""
    (public_path / "store").mkdir()
    (public_path / "store").chmod(0o777)
    train = Training(RuntimeError("broken"))
    with pytest.raises(RuntimeError):
        find_or_train(public_path / "store", RECIPE, train)
    (public_path / "store" / f"{digest(RECIPE)}.partial").chmod(0o777)
    (public_path / "store" / f"{digest(RECIPE)}.partial" / "last.ckpt").unlink()
    with as_nobody():
        find_or_train(public_path / "store", RECIPE, Training())


def changed(value):
    """Every version of some settings in which one value differs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {other: v for other, v in value.items() if other != key}
            yield from ({**value, key: version} for version in changed(inner))
    elif isinstance(value, list):
        yield value[::-1]
        for i, inner in enumerate(value):
            yield from ([*value[:i], version, *value[i + 1 :]] for version in changed(inner))
    else:
        yield f"{value}'"
        yield None if value is not None else 0


def test_another_value_anywhere_is_another_teacher(tmp_path):
    versions = [RECIPE, *changed(RECIPE)]
    train = Training()
    entries = {find_or_train(tmp_path, recipe, train) for recipe in versions}
    assert len(entries) == len(train.found) == len(versions) > 20


def test_order_of_keys_does_not_matter(tmp_path):
    train = Training()
    shuffled = {key: dict(reversed(v.items())) if isinstance(v, dict) else v for key, v in reversed(RECIPE.items())}
    assert json.dumps(shuffled) != json.dumps(RECIPE)
    assert find_or_train(tmp_path, RECIPE, train) == find_or_train(tmp_path, shuffled, train)
    assert len(train.found) == 1


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=type)
def test_failed_training_is_no_teacher_and_is_continued(tmp_path, failure):
    with pytest.raises(type(failure)):
        find_or_train(tmp_path, RECIPE, Training(failure))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == [f"{digest(RECIPE)}.partial"]
    second = Training()
    entry = find_or_train(tmp_path, RECIPE, second)
    assert second.found == [["last.ckpt"]]
    assert (entry / "last.ckpt").exists()


def test_training_that_leaves_no_weights_makes_no_entry(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_or_train(tmp_path, RECIPE, lambda directory: None)
    assert not (tmp_path / digest(RECIPE)).exists()


def in_two_processes(work, *arguments):
    """Exit codes of two processes, forked as importing torch takes seconds."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(i, *arguments)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=20)
    return [process.exitcode for process in processes]


def test_two_processes_that_want_the_same_train_it_once(tmp_path):
    barrier = multiprocessing.get_context("fork").Barrier(2)

    def work(i):
        train = Training()

        def slowly(directory):
            with open(tmp_path / "trainings", "a") as file:
                file.write("one\n")
            time.sleep(0.3)
            train(directory)

        barrier.wait(timeout=10)
        (tmp_path / f"entry{i}").write_text(find_or_train(tmp_path / "store", RECIPE, slowly).name)

    assert in_two_processes(work) == [0, 0]
    assert (tmp_path / "trainings").read_text() == "one\n"
    assert (tmp_path / "entry0").read_text() == (tmp_path / "entry1").read_text() == digest(RECIPE)


def test_killed_training_neither_blocks_nor_counts(tmp_path):
    def work(i):
        find_or_train(tmp_path, {**RECIPE, "seed": i}, lambda directory: os._exit(9))

    assert in_two_processes(work) == [9, 9]
    assert not (tmp_path / digest(RECIPE)).exists()
    train = Training()
    find_or_train(tmp_path, RECIPE, train)
    assert len(train.found) == 1


def replace_by(path, make):
    path.unlink()
    make(path)


def to_device(path):
    path.symlink_to("/dev/zero")


def edit_recipe(entry):
    facts = json.loads((entry / "entry.json").read_text())
    facts["recipe"]["model"]["scale"] = 16
    (entry / "entry.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entry: (entry / "teacher.safetensors").write_bytes(b"Weights"), "do not match their checksum"),
        (lambda entry: os.truncate(entry / "teacher.safetensors", 10**13), "do not match their checksum"),  # at once
        (lambda entry: (entry / "teacher.safetensors").unlink(), "is damaged"),
        (lambda entry: (entry / "entry.json").unlink(), "is damaged"),
        (lambda entry: (entry / "entry.json").write_text('{"recipe":'), "is damaged"),
        (lambda entry: (entry / "entry.json").write_text("[]"), "is damaged"),
        (lambda entry: (entry / "entry.json").write_text('"text"'), "is damaged"),
        (lambda entry: (entry / "entry.json").write_text("[" * 100_000), "is damaged"),
        (lambda entry: (entry / "entry.json").write_text('{"recipe": 3, "sha256": []}'), "another recipe"),
        (lambda entry: (entry / "entry.json").write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda entry: os.truncate(entry / "entry.json", 10**10), "is damaged"),
        (lambda entry: replace_by(entry / "entry.json", os.mkfifo), "not a regular file"),
        (lambda entry: replace_by(entry / "teacher.safetensors", os.mkfifo), "not a regular file"),
        (lambda entry: replace_by(entry / "entry.json", os.mkdir), "not a regular file"),
        (lambda entry: replace_by(entry / "entry.json", to_device), "not a regular file"),
        (edit_recipe, "was made by another recipe than its name says"),
    ],
)
def test_entry_that_is_not_what_it_was_is_refused(tmp_path, damage, message):
    entry = find_or_train(tmp_path, RECIPE, Training())
    damage(entry)
    train = Training()
    with pytest.raises(UserError, match=f"^the teacher in {entry} .*{message}.*; remove {entry} to have it") as error:
        find_or_train(tmp_path, RECIPE, train)
    assert len(str(error.value).splitlines()) == 1
    assert train.found == []


def test_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / f"{digest(RECIPE)}.lock").mkdir()
    with pytest.raises(UserError, match=f"teacher_store={tmp_path} cannot be written"):
        find_or_train(tmp_path, RECIPE, Training())


def test_store_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"teacher_store={tmp_path / 'file' / 'store'} cannot be written"):
        find_or_train(tmp_path / "file" / "store", RECIPE, Training())
