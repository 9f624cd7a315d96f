"""Weights that other programs wrote: state dicts and checkpoints by torch.save, other names of the same weights."""

import argparse
import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd.errors import UserError
from kd.runs.given import weights_file
from kd.runs.weights import begin_from, fill, read_weights, renamed, save_weights


class Owner:
    """What a pickle of a whole object would have to import."""


def prefixed(net, prefix):
    return {prefix + name: tensor for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "net"])
def test_read_weights_finds_a_state_dict(tmp_path, tiny_net, key, legacy):
    net = tiny_net(seed=3)
    content = net.state_dict() if key is None else {"epoch": 3, "acc": 0.5, key: net.state_dict()}
    torch.save(content, tmp_path / "w", _use_new_zipfile_serialization=not legacy)  # whatever the name's suffix
    tensors, metadata = read_weights(tmp_path / "w")
    assert metadata == {}
    assert all(torch.equal(tensors[name], value) for name, value in net.state_dict().items())


def test_read_weights_reads_a_checkpoint_with_the_options_of_a_command_line(tmp_path, tiny_net):
    net = tiny_net(seed=3)
    options = argparse.Namespace(lr=0.1, milestones=[100, 150], device=torch.device("cpu"), nested=argparse.Namespace())
    torch.save({"model": net.state_dict(), "best_value": 76.3, "args": options}, tmp_path / "w.pth")
    tensors, _ = read_weights(tmp_path / "w.pth")
    assert all(torch.equal(tensors[name], value) for name, value in net.state_dict().items())
    torch.save({"model": net.state_dict(), "args": argparse.Namespace(owner=Owner())}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"it holds .*Owner, which would have to be executed"):
        read_weights(tmp_path / "w.pth")


def test_read_weights_reads_safetensors_with_their_metadata(tmp_path, tiny_net):
    save_weights(tiny_net(), tmp_path / "w.pt.safetensors", {"seed": 3})
    assert read_weights(tmp_path / "w.pt.safetensors")[1] == {"seed": 3}


def test_read_weights_executes_nothing(tmp_path):
    marker = tmp_path / "executed"

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    for legacy in (False, True):
        torch.save({"w": torch.ones(1), "x": Command()}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"w\.pth cannot be read as tensors and plain values: it holds \w+\.mkdir,"):
            read_weights(tmp_path / "w.pth")
    torch.save(Owner(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"it holds .*Owner, which would have to be executed; write it by torch\.save"):
        read_weights(tmp_path / "w.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "is no state dict: it holds 'epoch', 'lr', and no names with tensors"),
        (torch.ones(3), "is no state dict: it holds a Tensor, and no"),
        ([torch.ones(3)], "is no state dict: it holds a list, and no"),
        ({}, "is no state dict: it holds nothing, and no"),
        ({"state_dict": {"a": 1}}, "is no state dict: it holds 'state_dict', and no"),
        ({"a": torch.ones(1).expand(10**9)}, "a is no plain tensor, or larger than the file"),
        ({"a": torch.ones(3, device="meta")}, "a is no plain tensor, or larger"),
    ],
)
def test_read_weights_names_an_archive_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"{tmp_path / 'w.pth'}:? {message}"):
        read_weights(tmp_path / "w.pth")


def test_read_weights_unpacks_no_archive_that_is_larger_than_its_file(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "w.pth", "w") as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"is a packed archive, which torch.save does not write"):
        read_weights(tmp_path / "w.pth")


def test_read_weights_names_what_is_no_archive_of_torch(tmp_path):
    (tmp_path / "text.pth").write_text("weights")
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    torch.save({"a": torch.zeros(100)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:600])
    for name in ("text.pth", "w.npz", "cut.pth"):
        with pytest.raises(UserError, match=f"{name} cannot be read as tensors .*: it is damaged, or no archive of t"):
            read_weights(tmp_path / name)
    (tmp_path / "text").write_text("weights")
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        read_weights(tmp_path / "text")
    os.mkfifo(tmp_path / "fifo.pth")
    with pytest.raises(UserError, match="not a regular file"):
        read_weights(tmp_path / "fifo.pth")
    with pytest.raises(UserError, match=f"^no weights at {tmp_path / 'none.pth'}$"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "model.", "model._orig_mod.module."])
@pytest.mark.parametrize("inside", ["", "net.module."])
def test_renamed_strips_prefixes_and_says_so(tiny_net, prefix, inside):
    source = tiny_net(seed=3)
    target = tiny_net(seed=4)
    for name in reversed(inside.split(".")[:-1]):
        target = nn.ModuleDict({name: target})
    tensors, notes = renamed(target, prefixed(source, prefix))
    fill(target, tensors, "file")
    assert all(torch.equal(target.state_dict()[inside + name], t) for name, t in source.state_dict().items())
    assert notes == ([] if prefix == inside else [f"the prefix '{prefix}' was stripped from its names"])


def test_renamed_leaves_matching_names_alone(tiny_net):
    given = tiny_net().state_dict()
    assert renamed(tiny_net(), given) == (given, [])
    model = nn.ModuleDict({"model": tiny_net()})  # whose own names begin so
    tensors, notes = renamed(model, tiny_net(seed=3).state_dict())
    assert tensors.keys() == model.state_dict().keys()
    assert notes == []


def test_renamed_leaves_out_what_a_lightning_module_has_besides(tiny_net):
    given = {**prefixed(tiny_net(), "model."), "loss.weight": torch.ones(10), "ema.x": torch.ones(1)}
    tensors, notes = renamed(tiny_net(), given)
    assert tensors.keys() == tiny_net().state_dict().keys()
    assert notes == [
        "the prefix 'model.' was stripped from its names",
        "2 further tensors were left out, such as loss.weight",
    ]


def test_renamed_hides_no_difference(tiny_net):
    given = prefixed(tiny_net(), "module.")
    lost = given.pop("module.classifier.bias")
    tensors, _ = renamed(tiny_net(), {**given, "module.head.bias": lost, "extra": lost})
    with pytest.raises(UserError, match=r"missing there: classifier\.bias; unexpected there: extra, head\.bias$"):
        fill(tiny_net(), tensors, "file")
    plain = {**tiny_net().state_dict(), "extra": lost}  # nothing was wrapped, so nothing is left out
    with pytest.raises(UserError, match=r"unexpected there: extra$"):
        fill(tiny_net(), renamed(tiny_net(), plain)[0], "file")


def named_otherwise(net, counters=True):
    """The state dict of the same network in another program."""
    named = {f"layer{9 - i}.{name.rpartition('.')[2]}": t for i, (name, t) in enumerate(net.state_dict().items())}
    return {name: t for name, t in named.items() if counters or not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("counters", [True, False])
def test_renamed_takes_tensors_of_other_names_in_their_order(tiny_net, tmp_path, counters):
    source, net = tiny_net(seed=3), tiny_net()
    torch.save({"model": named_otherwise(source, counters)}, tmp_path / "w.pth")
    tensors, notes = renamed(net, read_weights(tmp_path / "w.pth")[0])
    assert notes == ["its names are of another program; its tensors are taken in their order, as all shapes agree"]
    fill(net, tensors, tmp_path)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


def test_renamed_takes_no_order_for_names_that_do_not_fit(tiny_net, tmp_path):
    """Another kind of tensor at one place, one too many, or a file that keeps no order."""
    net, foreign = tiny_net(), named_otherwise(tiny_net(seed=3))
    swapped = {name.replace("bias", "weight") if name == list(foreign)[1] else name: t for name, t in foreign.items()}
    longer = {**foreign, "loss.weight": torch.ones(3)}
    save_file(foreign, tmp_path / "w.safetensors")
    for given in (swapped, longer, read_weights(tmp_path / "w.safetensors")[0]):
        with pytest.raises(UserError, match="another architecture or number of classes"):
            fill(net, renamed(net, given)[0], "file")


def test_renamed_takes_files_without_numbers_of_batches(tiny_net):
    """As those that torch wrote before version 0.4.1."""
    given = {name: t for name, t in tiny_net(seed=3).state_dict().items() if "num_batches" not in name}
    net = tiny_net(seed=4)
    fill(net, renamed(net, given)[0], "file")
    assert torch.equal(net.classifier.weight, given["classifier.weight"])


@pytest.mark.parametrize("classes", [10, 3])
def test_begin_from_keeps_the_classifier_only_of_as_many_classes(tiny_net, tmp_path, classes):
    source, net = tiny_net(num_classes=classes, seed=3), tiny_net(seed=4)
    before = net.classifier.weight.clone()
    save_file(prefixed(source, "module."), tmp_path / "w")
    notes = begin_from(net, tmp_path / "w", "classifier.")
    assert torch.equal(net.stage[0].weight, source.stage[0].weight)
    assert torch.equal(net.classifier.weight, source.classifier.weight if classes == 10 else before)
    assert len(notes) == (1 if classes == 10 else 2)


def test_begin_from_refuses_another_network(tiny_net, tmp_path):
    save_file(tiny_net(width=5, num_classes=3).state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match=r"stage.0.bias is \(5,\) there and \(4,\) here"):
        begin_from(tiny_net(), tmp_path / "w", "classifier.")
    save_file(tiny_net(num_classes=3).state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match=r"classifier\.bias is"):
        begin_from(tiny_net(), tmp_path / "w", None)


def test_weights_file_is_that_of_a_run_directory(tmp_path):
    assert weights_file(tmp_path / "none") == tmp_path / "none"
    with pytest.raises(UserError, match=f"no weights in {tmp_path}: it has neither"):
        weights_file(tmp_path)
    for name in ("teacher.safetensors", "student.safetensors"):
        (tmp_path / name).touch()
        assert weights_file(str(tmp_path)) == tmp_path / name
