"""Checkpoints that are damaged, of another training or of a stranger, and those that a kill leaves."""

import copy
import math
import os
import random
import zipfile
from pathlib import Path

import pytest
import torch

from kd.errors import UserError
from kd.training.checkpoints import AtomicCheckpoints


@pytest.fixture(scope="module")
def content(finished):
    """What the smallest run has in its checkpoint."""
    return torch.load(finished / "run" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def plugin(content):
    return AtomicCheckpoints(content["training"], epochs=2)


@pytest.fixture
def last(tmp_path, content, plugin):
    """A checkpoint after one epoch; it has been the only one."""
    plugin.save_checkpoint(after_one_epoch(content), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def after_one_epoch(content):
    """The checkpoint as if it were one epoch younger, but for the weights."""
    younger = copy.deepcopy(content)
    younger["epoch"] = 0
    younger["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] = 1
    del younger["callbacks"]["History"]["rows"][1:]
    return younger


def refusal(plugin, path):
    """The one line that refuses a checkpoint."""
    with pytest.raises(UserError) as refused:
        plugin.load_checkpoint(path)
    message = str(refused.value)
    assert message.startswith(f"{path} ")
    assert len(message.splitlines()) == 1
    assert "weights_only" not in message
    return message


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut off, cut out, append, zero or replace a random range."""
    data = bytearray(whole)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([1, 16, 512, 4096, len(data)]))
    kind = rng.choice(["flip", "flips", "cut off", "cut out", "append", "zero", "noise"])
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 40):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut off":
        del data[start:]
    elif kind == "cut out":
        del data[start:end]
    elif kind == "append":
        data += rng.randbytes(rng.choice([1, 22, 84, 5000]))
    else:
        data[start:end] = bytes(end - start) if kind == "zero" else rng.randbytes(end - start)
    return bytes(data)


def test_load_checkpoint_refuses_every_random_damage(plugin, last):
    rng, whole = random.Random(0), last.read_bytes()
    others = [other for other in (damaged(whole, rng) for _ in range(60)) if other != whole]
    assert len(others) > 50
    for other in others:
        last.write_bytes(other)
        assert refusal(plugin, last).endswith("; remove it to begin this training anew")
    last.write_bytes(whole)
    assert plugin.load_checkpoint(last)["epoch"] == 0


def test_load_checkpoint_reads_one_of_an_older_version_and_refuses_its_damages(plugin, last, content):
    """Such a file has no checksum of the whole; what lies between its parts may change without any effect."""
    del (older := after_one_epoch(content))["training"]
    torch.save(older, last)
    rng, whole = random.Random(1), last.read_bytes()
    refused = 0
    for _ in range(40):
        last.write_bytes(damaged(whole, rng))
        try:
            loaded = plugin.load_checkpoint(last)
        except UserError:
            refused += 1
        else:
            assert loaded["optimizer_states"][0]["param_groups"] == older["optimizer_states"][0]["param_groups"]
            assert all(torch.equal(loaded["state_dict"][name], tensor) for name, tensor in older["state_dict"].items())
    assert refused > 30


def test_save_checkpoint_is_an_archive_that_torch_reads(last, content):
    assert torch.load(last, weights_only=True)["state_dict"].keys() == content["state_dict"].keys()
    with zipfile.ZipFile(last) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"kd sha256 ")


def test_load_checkpoint_offers_the_one_before(plugin, last, content):
    plugin.save_checkpoint(content, last)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    last.write_bytes(last.read_bytes()[:-1])
    before = last.with_name("previous.ckpt")
    assert refusal(plugin, last).endswith(
        f"; to continue from the checkpoint before it, of epoch 1 of 2, type mv {before} {last} and then the same "
        "command again"
    )
    before.write_bytes(before.read_bytes()[:-1])
    assert refusal(plugin, last).endswith("; remove it to begin this training anew")


def test_save_checkpoint_keeps_the_one_before_without_links(plugin, last, content, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    whole = last.read_bytes()
    plugin.save_checkpoint(content, last)
    assert last.with_name("previous.ckpt").read_bytes() == whole


class Killed(BaseException):
    """The process is dead: nothing of it has any effect."""


def test_save_checkpoint_survives_a_kill_at_every_file_operation(plugin, last, content, tmp_path):
    first, operations = last.read_bytes(), ("open", "replace", "rename", "link", "unlink", "chmod", "fsync", "utime")
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        folder.mkdir()
        (folder / "last.ckpt").write_bytes(first)
        (folder / "previous.ckpt").write_bytes(first)
        left = kills

        def counted(operation):
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return operation(*arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in operations:
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                plugin.save_checkpoint(content, folder / "last.ckpt")
            except Killed:
                pass
            else:
                break
        for name in ("last.ckpt", "previous.ckpt"):
            assert plugin.load_checkpoint(folder / name)["epoch"] in (0, 1)
        plugin.save_checkpoint(content, folder / "last.ckpt")
        assert plugin.load_checkpoint(folder / "last.ckpt")["epoch"] == 1
        kills += 1
    assert kills >= 6
    assert [plugin.load_checkpoint(folder / name)["epoch"] for name in ("last.ckpt", "previous.ckpt")] == [1, 0]


def without(*keys):
    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[keys[-1]]

    return change


def with_value(value, *keys):
    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return change


def with_weight(value):
    def change(checkpoint):
        next(iter(checkpoint["state_dict"].values()))[0, 0, 0, 0] = value

    return change


PROCESSED = ("loops", "fit_loop", "epoch_progress", "current", "processed")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("state_dict"), "is not laid out as a checkpoint (KeyError: 'state_dict')"),
        (without("loops"), "(KeyError: 'loops')"),
        (without("callbacks"), "(KeyError: 'callbacks')"),
        (without("callbacks", "History"), "(KeyError: 'History')"),
        (without("callbacks", "History", "images"), "(KeyError: 'images')"),
        (without("optimizer_states"), "(KeyError: 'optimizer_states')"),
        (without("lr_schedulers"), "(KeyError: 'lr_schedulers')"),
        (with_value([], "optimizer_states"), "is not laid out as a checkpoint (ValueError"),
        (with_value({}, "optimizer_states", 0, "state"), "(KeyError: 'state of the optimiser')"),
        (with_value({}, "state_dict"), "(ValueError: no weights)"),
        (with_value([1, 2], "state_dict"), "is not laid out as a checkpoint (AttributeError"),
        (with_value(torch.zeros(1).expand(10**13), "state_dict", "x"), "(ValueError: x is larger than the file)"),
        (with_value([], "callbacks", "History", "rows"), "its history lists 0, and the training has 2"),
        (with_value([1, 2], "callbacks", "History", "rows"), "is not laid out as a checkpoint (TypeError"),
        (with_value(1, *PROCESSED), "does not fit: it has done 1 epochs, its history lists 2"),
        (with_value(7, *PROCESSED), "does not fit: it has done 7 epochs"),
        (with_value(-1, *PROCESSED), "does not fit: it has done -1 epochs"),
        (with_value(0, "epoch"), "does not fit"),
        (with_value(9, "global_step"), "steps, and its learning rate schedule another number"),
        (with_value(9, "lr_schedulers", 0, "last_epoch"), "steps, and its learning rate schedule another number"),
        (with_value("other", "training"), "belongs to another training (other settings, images or teacher)"),
        (with_weight(math.nan), "0.weight holds NaN or infinity"),
        (with_weight(math.inf), "0.weight holds NaN or infinity"),
    ],
)
def test_load_checkpoint_refuses_what_does_not_fit(plugin, last, content, change, reason):
    """Each has a right checksum."""
    changed = copy.deepcopy(content)
    change(changed)
    AtomicCheckpoints(changed["training"], epochs=2).save_checkpoint(changed, last)
    assert reason in refusal(plugin, last)


@pytest.mark.parametrize("value", [{}, [], [1, 2], None, 5, "text", torch.zeros(3)], ids=str)
def test_load_checkpoint_refuses_what_is_no_mapping(plugin, last, value):
    torch.save(value, last)
    assert "is not laid out as a checkpoint" in refusal(plugin, last)


def test_load_checkpoint_refuses_an_empty_file(plugin, last):
    last.write_bytes(b"")
    assert "is damaged (its end is missing or changed)" in refusal(plugin, last)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_load_checkpoint_unpickles_no_code(plugin, last, content, tmp_path):
    plugin.save_checkpoint({**content, "state_dict": Payload(tmp_path / "executed")}, last)
    assert "is damaged (it cannot be read as tensors and plain values)" in refusal(plugin, last)
    assert not (tmp_path / "executed").exists()


def test_load_checkpoint_unpacks_nothing(plugin, last):
    """A megabyte of zeros in a file of a kilobyte."""
    with zipfile.ZipFile(last, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    assert "is damaged (it is packed)" in refusal(plugin, last)


def test_load_checkpoint_restores_no_file_names(plugin, last, content):
    """Lightning removes the file that its own callback remembers as the best one."""
    (name,) = (name for name in content["callbacks"] if name.startswith("ModelCheckpoint"))
    plugin.save_checkpoint(content, last)
    assert content["callbacks"][name]["best_model_path"]
    assert list(plugin.load_checkpoint(last)["callbacks"]) == ["History"]


def with_average(change):
    """Add the average of all weights, changed."""

    def add(checkpoint):
        weights = [weight for weight in checkpoint["state_dict"].values() if weight.is_floating_point()]
        average = {"steps": checkpoint["global_step"], "average": [weight.clone() for weight in weights]}
        change(average)
        checkpoint["callbacks"]["WeightAverage"] = average

    return add


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda average: average.update(steps=1), "does not fit: its average is of other weights, or not of"),
        (lambda average: average["average"].append(torch.zeros(7, 7, 7)), "its average is of other weights"),
        (lambda average: average["average"][0].fill_(math.nan), "its average 0 holds NaN or infinity"),
        (lambda average: average["average"].append(3), "is not laid out as a checkpoint (AttributeError"),
        (lambda average: average.pop("average"), "(KeyError: 'average')"),
    ],
)
def test_load_checkpoint_refuses_an_average_that_does_not_fit(plugin, last, content, change, reason):
    changed = copy.deepcopy(content)
    with_average(change)(changed)
    plugin.save_checkpoint(changed, last)
    assert reason in refusal(plugin, last)
    with_average(lambda average: None)(changed)
    plugin.save_checkpoint(changed, last)
    assert list(plugin.load_checkpoint(last)["callbacks"]) == ["History", "WeightAverage"]


def test_load_checkpoint_does_not_open_a_pipe(plugin, last):
    last.unlink()
    os.mkfifo(last)
    assert "is not a file" in refusal(plugin, last)
