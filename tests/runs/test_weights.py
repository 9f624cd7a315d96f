import errno
import hashlib
import json
import math
import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kd.runs.weights
from kd.errors import UserError
from kd.files import checksum
from kd.runs.weights import content_id, fill, load_weights, not_finite, save_weights

METADATA = {
    "model": {"_target_": "kd.models.cnn.CNN", "scale": 16, "conv_dropout": 0.25},
    "classes": ["Katze", "Hündin"],
    "test_acc": 0.8344,
    "method": None,
    "seed": 3,
    "mean": [0.1, 1 / 3],
}


@pytest.fixture
def used_net(tiny_net):
    """A channels-last network with BatchNorm statistics that are not the initial ones."""
    net = tiny_net().to(memory_format=torch.channels_last)
    for _ in range(3):
        net(torch.randn(4, 3, 8, 8) + 2)
    return net


@pytest.fixture
def file(used_net, tmp_path):
    save_weights(used_net, tmp_path / "net.safetensors", METADATA)
    return tmp_path / "net.safetensors"


def test_load_weights_restores_every_bit(used_net, tiny_net, file):
    tensors, metadata = load_weights(file)
    assert metadata == METADATA
    expected = used_net.state_dict()
    assert tensors.keys() == expected.keys()
    assert tensors["stage.1.num_batches_tracked"] == 3
    assert tensors["stage.1.running_mean"].abs().max() > 0.1
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert all(tensors[name].dtype == value.dtype for name, value in expected.items())
    other = tiny_net(seed=1)
    fill(other, tensors, file)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(other.eval()(x).logits, used_net.eval()(x).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_save_weights_leaves_a_file_for_those_that_umask_allows(used_net, tmp_path, umask):
    """safetensors by itself writes files for nobody but their owner, and a store is shared."""
    before = os.umask(umask)
    try:
        save_weights(used_net, tmp_path / "net.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_save_weights_writes_a_shared_layer_under_both_names(tmp_path):
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 3, bias=False))
    net[3].weight = layer.weight
    save_weights(net, tmp_path / "net", {})
    tensors, _ = load_weights(tmp_path / "net")
    assert tensors.keys() == net.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())


def test_load_weights_tells_a_forbidden_file_from_a_damaged_one(file, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(kd.runs.weights, "safe_open", refuse)
    with pytest.raises(UserError, match=r"net\.safetensors: permission denied; have it made readable for you"):
        load_weights(file)


def test_load_weights_keeps_foreign_metadata_as_text(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other", {"format": "pt", "epochs": "12", "note": "made by [me"})
    assert load_weights(tmp_path / "other")[1] == {"format": "pt", "epochs": 12, "note": "made by [me"}
    save_file({"a": torch.zeros(1)}, tmp_path / "none")
    assert load_weights(tmp_path / "none")[1] == {}


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_load_weights_names_a_truncated_file(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=f"{file} is not a whole safetensors file"):
        load_weights(file)


@pytest.mark.parametrize("legacy", [False, True])
def test_load_weights_names_a_file_of_another_format(tmp_path, legacy):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        UserError, match=r"w was written by torch\.save; only safetensors, as runs leave them, are read here"
    ):
        load_weights(tmp_path / "w")


def safetensors_bytes(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ((2**63).to_bytes(8, "little") + b"{}", "not a whole safetensors file"),
        (safetensors_bytes({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "not a whole"),
        (safetensors_bytes({"a": tensor([2], 0, 8), "b": tensor([2], 16, 24)}, bytes(24)), "not a whole"),
        (safetensors_bytes({"a": tensor([2], 0, 8)}, bytes(3)), "not a whole"),
        (safetensors_bytes({"a": tensor([2**62, 4], 0, 0)}), "not a whole"),
        (safetensors_bytes({"__metadata__": {"model": 3}}), "not a whole"),
        (safetensors_bytes({"__metadata__": {"model": "x" * 5_000_000}}), "a header of 5,000,0"),
    ],
    ids=["length", "overlap", "hole", "short", "overflow", "metadata", "long"],
)
def test_load_weights_names_a_file_made_to_mislead(tmp_path, content, why):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'w'} .*{why}"):
        load_weights(tmp_path / "w")


def test_load_weights_keeps_metadata_that_is_too_deep_as_text(tmp_path):
    (tmp_path / "w").write_bytes(safetensors_bytes({"__metadata__": {"model": "[" * 100_000}}))
    assert load_weights(tmp_path / "w")[1] == {"model": "[" * 100_000}


def test_load_weights_refuses_what_is_no_regular_file(tmp_path):
    """Each in no time: opening a FIFO waits for a writer, and reading a device may never end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "fifo", tmp_path / "folder", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path} .*not a regular file"):
            load_weights(path)


def test_load_weights_takes_no_memory_for_a_sparse_file(tmp_path, tiny_net):
    size = 60 * 10**9
    with open(tmp_path / "w", "wb") as file:
        file.write(safetensors_bytes({"a": tensor([size // 4], 0, size)}))
        file.truncate(file.tell() + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"there is no memory for {tmp_path / 'w'}|{tmp_path / 'w'} holds another"):
        fill(tiny_net(), load_weights(tmp_path / "w")[0], tmp_path / "w")
    (tmp_path / "w").unlink()
    (tmp_path / "w").touch()
    os.truncate(tmp_path / "w", size)
    with pytest.raises(UserError, match="not a whole"):
        load_weights(tmp_path / "w")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_load_weights_names_what_is_no_file_of_its_format(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 something else altogether, and long enough")
    with pytest.raises(UserError, match=f"{tmp_path}/model.pt was written by torch.save; only safetensors"):
        load_weights(tmp_path / "model.pt")
    with pytest.raises(UserError, match=f"{tmp_path} is not a whole safetensors file"):
        load_weights(tmp_path)
    with pytest.raises(UserError, match=f"^no weights at {tmp_path / 'none'}$"):
        load_weights(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            {"num_classes": 7},
            r"classifier.bias is \(10,\) there and \(7,\) here, classifier.weight is \(10, 4\) there and \(7, 4\) here",
        ),
        (
            {"width": 5},
            r"classifier.weight is \(10, 4\) there and \(10, 5\) here, stage.0.bias is .*, stage.0.weight is .*, "
            r"stage.1.bias is \(4,\) there and \(5,\) here and 3 more",
        ),
    ],
)
def test_fill_refuses_another_architecture_and_changes_nothing(tiny_net, file, changes, difference):
    net = tiny_net(**changes, seed=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=f"{file} holds another architecture or number of classes .*: {difference}$"):
        fill(net, load_weights(file)[0], file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fill_converts_floating_point_weights(tiny_net, file, dtype):
    tensors, _ = load_weights(file)
    given = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    net = tiny_net(seed=1)
    fill(net, given, file)
    assert net.classifier.weight.dtype == torch.float32
    assert torch.equal(net.classifier.weight, given["classifier.weight"].float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_fill_refuses_weights_that_are_no_plain_numbers(tiny_net, file, dtype):
    """Casting them would drop the scale of quantised weights, or the imaginary part."""
    tensors, _ = load_weights(file)
    net, kind = tiny_net(seed=1), str(dtype).removeprefix("torch.")
    before = net.classifier.bias.detach().clone()
    tensors["classifier.bias"] = tensors["classifier.bias"].to(dtype)
    with pytest.raises(
        UserError, match=f"^{file}: classifier.bias is {kind}, and the network has float32; give"
    ) as error:
        fill(net, tensors, file)
    assert "\n" not in str(error.value)
    assert torch.equal(net.classifier.bias, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classifier.weight", math.nan),
        ("classifier.weight", math.inf),
        ("classifier.weight", -math.inf),
        ("stage.1.running_var", math.nan),
        ("stage.1.running_var", math.inf),
    ],
)
def test_fill_refuses_weights_that_are_not_finite(tiny_net, file, name, value):
    tensors, _ = load_weights(file)
    tensors[name].flatten()[1] = value
    with pytest.raises(UserError, match=f"^{file} is useless: its {name} holds NaN or infinity"):
        fill(tiny_net(), tensors, file)


def test_not_finite_allows_a_mask():
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    net.register_buffer("steps", torch.tensor(3))
    assert not_finite(net) is None
    net.register_buffer("mean", torch.tensor(math.nan))
    assert not_finite(net) == "mean"


def test_fill_names_missing_and_unknown_tensors(tiny_net, file):
    tensors, _ = load_weights(file)
    bias = tensors.pop("classifier.bias")
    with pytest.raises(UserError, match=r"to be filled: missing there: classifier.bias$"):
        fill(tiny_net(), tensors, file)
    with pytest.raises(UserError, match=r"to be filled: unexpected there: a$"):
        fill(tiny_net(), {**tensors, "classifier.bias": bias, "a": bias}, file)
    many = {f"layer{i}": bias for i in range(6)}
    with pytest.raises(
        UserError,
        match=r"classifier.weight is \(10,\) there and \(10, 4\) here; missing there: classifier.bias; "
        "unexpected there: layer0, layer1, layer2, layer3 and 2 more$",
    ):
        fill(tiny_net(), {**tensors, **many, "classifier.weight": bias}, file)


@contextmanager
def full_disk():
    """No file may grow beyond 100 bytes: around the call alone, as pytest's own output may go to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_save_weights_on_a_full_disk_leaves_no_file(used_net, tmp_path):
    with pytest.raises(OSError, match="File too large") as error, full_disk():
        save_weights(used_net, tmp_path / "net", METADATA)
    assert error.value.filename == str(tmp_path / "net")
    assert error.value.errno == errno.EFBIG  # so that a run tells how to continue, and a search repeats it
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_save_weights_interrupted_keeps_the_old_file(tiny_net, file, monkeypatch, interruption):
    def write_half(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise interruption

    before = file.read_bytes()
    monkeypatch.setattr(kd.runs.weights, "save_file", write_half)
    with pytest.raises(interruption):
        save_weights(tiny_net(seed=1), file, {})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_save_weights_replaces_the_old_file(tiny_net, file):
    save_weights(tiny_net(seed=1), file, {"seed": 1})
    assert load_weights(file)[1] == {"seed": 1}
    assert os.listdir(file.parent) == [file.name]


def test_content_id_depends_on_the_tensors_alone(used_net, tmp_path):
    tensors = used_net.state_dict()
    ids = {content_id(tensors)}
    for seed in (0, 1):
        save_weights(used_net, tmp_path / "net", {"seed": seed})
        assert content_id(load_weights(tmp_path / "net")[0]) in ids
    assert content_id(dict(reversed(tensors.items()))) in ids
    assert re.fullmatch("[0-9a-f]{16}", *ids)

    weight = tensors["classifier.weight"]
    ids.add(content_id({name: t for name, t in tensors.items() if name != "classifier.weight"}))
    for other in (-weight, weight.T.contiguous(), weight.flatten(), weight.view(torch.int32)):
        ids.add(content_id({**tensors, "classifier.weight": other}))
    ids.add(content_id({f"net.{name}": t for name, t in tensors.items()}))
    for tensor in tensors.values():  # one value of each, in place
        tensor[(-1,) * tensor.ndim] += 1
        ids.add(content_id(tensors))
    assert len(ids) == 7 + len(tensors)


def test_checksum_is_sha256_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 5000  # more than is read at once
    (tmp_path / "file").write_bytes(content)
    assert checksum(tmp_path / "file") == hashlib.sha256(content).hexdigest()
