import json
import logging
import multiprocessing
import os
import re
import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn, tensor

from kd.data.batch import Batch
from kd.errors import UserError
from kd.hashing import digest
from kd.models.output import Output
from kd.runs.weights import checksum, content_id, save_weights
from kd.teachers.frozen import FrozenTeacher, load, verify
from kd.teachers.store import find_or_train

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


# --- the store


def test_trained_once_and_found_ever_after(tmp_path):
    store, train = tmp_path / "not" / "yet", Training()
    entry = find_or_train(store, RECIPE, train)
    assert entry == find_or_train(store, RECIPE, train)
    assert train.found == [[]]
    assert (entry / "teacher.safetensors").read_bytes() == b"weights"
    facts = json.loads((entry / "entry.json").read_text())
    assert facts == {"recipe": RECIPE, "sha256": checksum(entry / "teacher.safetensors")}
    assert re.fullmatch("[0-9a-f]{16}", entry.name)
    assert not list(store.glob("*.partial"))


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


def edit_recipe(entry):
    facts = json.loads((entry / "entry.json").read_text())
    facts["recipe"]["model"]["scale"] = 16
    (entry / "entry.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entry: (entry / "teacher.safetensors").write_bytes(b"Weights"), "do not match their checksum"),
        (lambda entry: (entry / "teacher.safetensors").unlink(), "is damaged"),
        (lambda entry: (entry / "entry.json").unlink(), "is damaged"),
        (lambda entry: (entry / "entry.json").write_text('{"recipe":'), "is damaged"),
        (lambda entry: (entry / "entry.json").write_text("[]"), "is damaged"),
        (edit_recipe, "was made by another recipe than its name says"),
    ],
    ids=["other weights", "no weights", "no entry.json", "half an entry.json", "no entry", "other recipe"],
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


# --- the frozen teacher


class Echo(nn.Module):
    """Its logits are in the pixels: images (B, 1, 1, C)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(tensor(1.0))

    def forward(self, x):
        return Output(self.scale * x.flatten(1), (), x)


def batches(*predicted_and_true):
    """A batch for each list of (prediction, label)."""
    for pairs in predicted_and_true:
        predicted, y = (tensor(column) for column in zip(*pairs, strict=True))
        x = nn.functional.one_hot(predicted, 3).float()[:, None, None]
        yield Batch(x, y, torch.arange(len(y)), torch.zeros_like(y))


def test_accuracy_counts_images_not_batches():
    # three of four, then none of one: 3 / 5, where the mean over batches would be 3 / 8
    some = batches([(0, 0), (1, 1), (2, 2), (2, 1)], [(0, 2)])
    assert FrozenTeacher(Echo(), "id").accuracy(some) == 0.6


def test_teacher_is_frozen(tiny_net):
    net = tiny_net(dropout=0.5).train()
    teacher = FrozenTeacher(net, "id")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    batch = Batch(x, tensor([0, 1, 2, 3]), torch.arange(4), torch.zeros(4))
    first, second = teacher(batch), teacher(batch)
    assert torch.equal(first.logits, second.logits)
    assert not any(t.requires_grad for t in (first.logits, *first.features, first.embedding))
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_holding_a_teacher_does_not_make_it_part_of_a_module(tiny_net):
    student = nn.Module()
    student.teacher = FrozenTeacher(tiny_net(), "id")
    student.train().double()
    assert not list(student.parameters())
    assert not student.state_dict()
    assert not student.teacher.net.training
    assert student.teacher.net.classifier.weight.dtype == torch.float32


def test_teacher_follows_the_batch_to_its_device(tiny_net):
    teacher = FrozenTeacher(tiny_net(), "id")
    x = torch.empty(2, 3, 8, 8, device="meta")
    assert teacher(Batch(x, x, x, x)).logits.device.type == "meta"


def test_loaded_teacher_is_the_saved_network(tiny_net, tmp_path):
    net = tiny_net(seed=4)
    path = tmp_path / "teacher.safetensors"
    save_weights(net, path, {})
    teacher = load(tiny_net(seed=5), path)
    assert teacher.id == content_id(net.state_dict())
    assert all(torch.equal(t, teacher.net.state_dict()[name]) for name, t in net.state_dict().items())
    with pytest.raises(UserError, match=r"classifier.bias is \(10,\) there and \(3,\) here"):
        load(tiny_net(num_classes=3), path)


@pytest.mark.parametrize("claimed", [None, 0.75, 0.754, 0.746])
def test_verified_teacher_reaches_what_it_claims(tmp_path, claimed, caplog):
    caplog.set_level(logging.INFO, "kd.teachers.store")
    some = list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))
    assert verify(FrozenTeacher(Echo(), "id"), some, claimed, tmp_path / "t") == 0.75
    assert "75.00 % on the test split" in caplog.text


@pytest.mark.parametrize("claimed", [0.76, 0.74, 0.0])
def test_teacher_that_went_bad_is_refused(tmp_path, claimed):
    message = f"{tmp_path / 't'} is on record with {100 * claimed:.2f} % .* but reaches 75.00 %; remove {tmp_path} to"
    many = 50 * list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))
    with pytest.raises(UserError, match=message):
        verify(FrozenTeacher(Echo(), "id"), many, claimed, tmp_path / "t")


@pytest.mark.parametrize(("claimed", "fine"), [(0.5, True), (1.0, True), (0.25, False), (0.0, False)])
def test_of_few_images_one_may_have_been_rounded_the_other_way(tmp_path, claimed, fine):
    some = list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))
    with nullcontext() if fine else pytest.raises(UserError, match="but reaches 75"):
        verify(FrozenTeacher(Echo(), "id"), some, claimed, tmp_path / "t")


def test_the_network_itself_decides_where_its_copy_is_unsure(tmp_path):
    """As on few images, of which rounding in half precision turns some."""
    many = 50 * list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))

    def unsure(net):
        copy = Echo().bfloat16()
        copy.scale.requires_grad_(False).neg_()  # another class for every image
        return copy

    teacher = FrozenTeacher(Echo(), "id", unsure)
    assert teacher.accuracy(many) != 0.75
    assert verify(teacher, many, 0.75, tmp_path / "t") == 0.75
    with pytest.raises(UserError, match=r"but reaches 75\.00 %"):
        verify(teacher, many, 0.5, tmp_path / "t")
