import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn, tensor

from kd.data.batch import Batch
from kd.errors import UserError
from kd.models.output import Output
from kd.runs.weights import content_id, save_weights
from kd.teachers.frozen import FrozenTeacher, check_origin, freeze, joined, load, verify


class PixelLogits(nn.Module):
    """A network whose logits are the pixels of its images (B, 1, 1, C)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(tensor(1.0))

    def forward(self, x):
        return Output(self.scale * x.flatten(1), (), x)


def batches(*predicted_and_true):
    """Yield a batch for each list of (prediction, label)."""
    for pairs in predicted_and_true:
        predicted, y = (tensor(column) for column in zip(*pairs, strict=True))
        x = nn.functional.one_hot(predicted, 3).float()[:, None, None]
        yield Batch(x, y, torch.arange(len(y)), torch.zeros_like(y))


def test_accuracy_counts_images_not_batches():
    # three of four, then none of one: 3 / 5, where the mean over batches would be 3 / 8
    some = batches([(0, 0), (1, 1), (2, 2), (2, 1)], [(0, 2)])
    assert FrozenTeacher(PixelLogits(), "id").accuracy(some) == 0.6


def test_call_changes_nothing_and_makes_no_gradients(tiny_net):
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


def test_frozen_teacher_is_no_part_of_the_module_that_holds_it(tiny_net):
    student = nn.Module()
    student.teacher = FrozenTeacher(tiny_net(), "id")
    student.train().double()
    assert not list(student.parameters())
    assert not student.state_dict()
    assert not student.teacher.net.training
    assert student.teacher.net.classifier.weight.dtype == torch.float32


def test_call_moves_the_network_to_the_device_of_the_batch(tiny_net):
    teacher = FrozenTeacher(tiny_net(), "id")
    x = torch.empty(2, 3, 8, 8, device="meta")
    assert teacher(Batch(x, x, x, x)).logits.device.type == "meta"


def test_load_returns_the_saved_network(tiny_net, tmp_path):
    net = tiny_net(seed=4)
    path = tmp_path / "teacher.safetensors"
    save_weights(net, path, {})
    teacher = load(tiny_net(seed=5), path)
    assert teacher.id == content_id(net.state_dict())
    assert all(torch.equal(t, teacher.net.state_dict()[name]) for name, t in net.state_dict().items())
    with pytest.raises(UserError, match=r"classifier.bias is \(10,\) there and \(3,\) here"):
        load(tiny_net(num_classes=3), path)


@pytest.mark.parametrize("claimed", [None, 0.75, 0.754, 0.746])
def test_verify_returns_the_accuracy_that_is_on_record(tmp_path, claimed, caplog):
    caplog.set_level(logging.INFO, "kd.teachers.frozen")
    some = list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))
    assert verify(FrozenTeacher(PixelLogits(), "id"), some, claimed, tmp_path / "t") == 0.75
    assert "75.00 % on the test split" in caplog.text


@pytest.mark.parametrize("claimed", [0.76, 0.74, 0.0])
def test_verify_refuses_an_accuracy_off_the_record(tmp_path, claimed):
    message = f"{tmp_path / 't'} is on record with {100 * claimed:.2f} % .* but reaches 75.00 %; remove {tmp_path} to"
    many = 50 * list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))
    with pytest.raises(UserError, match=message):
        verify(FrozenTeacher(PixelLogits(), "id"), many, claimed, tmp_path / "t")


@pytest.mark.parametrize(("claimed", "fine"), [(0.5, True), (1.0, True), (0.25, False), (0.0, False)])
def test_verify_allows_one_image_of_few_to_be_rounded_the_other_way(tmp_path, claimed, fine):
    some = list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))
    with nullcontext() if fine else pytest.raises(UserError, match="but reaches 75"):
        verify(FrozenTeacher(PixelLogits(), "id"), some, claimed, tmp_path / "t")


def test_verify_measures_the_network_itself_where_its_copy_is_off(tmp_path):
    """Rounding in half precision changes the class of some images."""
    many = 50 * list(batches([(0, 0), (1, 1), (2, 2), (2, 1)]))

    def inaccurate(net):
        copy = PixelLogits().bfloat16()
        copy.scale.requires_grad_(False).neg_()  # another class for every image
        return copy

    teacher = FrozenTeacher(PixelLogits(), "id", inaccurate)
    assert teacher.accuracy(many) != 0.75
    assert verify(teacher, many, 0.75, tmp_path / "t") == 0.75
    with pytest.raises(UserError, match=r"but reaches 75\.00 %"):
        verify(teacher, many, 0.5, tmp_path / "t")


def test_forward_as_trained_is_the_network_itself_beside_a_copy(tiny_net):
    net = tiny_net().eval()
    x = torch.randn(4, 3, 8, 8)
    batch = Batch.of(x, tensor([0, 1, 2, 3]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = net(x).logits
    plain, other = FrozenTeacher(net, "id"), FrozenTeacher(net, "id", lambda _: tiny_net(seed=1))
    assert torch.equal(plain.forward_as_trained(batch).logits, plain(batch).logits)
    assert torch.equal(other.forward_as_trained(batch).logits, plain(batch).logits)
    assert not torch.equal(other(batch).logits, plain(batch).logits)
    half = FrozenTeacher(net, "id", lambda _: tiny_net().eval().bfloat16())
    assert half(batch).logits.dtype == torch.bfloat16
    assert torch.equal(half.forward_as_trained(batch).logits, mixed)


def test_freeze_makes_a_teacher_of_the_network_itself(tiny_net):
    net = tiny_net(dropout=0.5)
    teacher = freeze(net, "weights of 1999")
    batch = Batch.of(torch.randn(4, 3, 8, 8), tensor([0, 1, 2, 3]))
    assert (teacher.net is net, teacher.id, freeze(tiny_net()).id) == (True, "weights of 1999", "")
    assert torch.equal(teacher(batch).logits, net(batch.x).logits)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_call_names_a_network_that_returns_no_output():
    batch = Batch.of(torch.randn(2, 3), tensor([0, 1]))
    teacher = freeze(nn.Linear(3, 2))
    message = r"^Linear returned a Tensor, not a kd\.Output; wrap it with kd\.wrap\(net\)$"
    for forward in (teacher, teacher.forward_as_trained):
        with pytest.raises(TypeError, match=message):
            forward(batch)


def test_joined_is_an_ensemble_named_by_all_its_weights(tiny_net):
    one, two = (freeze(tiny_net(seed=seed)) for seed in (1, 2))
    batch = Batch.of(torch.randn(4, 3, 8, 8), tensor([0, 1, 2, 3]))
    assert joined([one]) is one
    both = joined([one, two])
    torch.testing.assert_close(both(batch).logits, (one(batch).logits + two(batch).logits) / 2)
    assert both.id == content_id(both.net.state_dict()) != joined([two, one]).id


OWN = {
    "classes": ("cat", "dog", "eel"),
    "image_size": 32,
    "mean": (0.5, 0.25, 0.125),
    "std": (0.2, 0.2, 0.2),
    "dataset": "animals",
    "data_id": "a1",
}
ELSEWHERE = {**OWN, "classes": list(OWN["classes"]), "mean": [0.5, 0.26, 0.125], "std": [0.2] * 3, "data_id": "b2"}


def test_check_origin_takes_a_teacher_of_the_same_data(tmp_path):
    renamed = {**ELSEWHERE, "classes": ["0", "1", "2"], "data_id": "a1"}
    assert check_origin(renamed, OWN, tmp_path) == []  # the same pixels and labels, whatever the classes are called


@pytest.mark.parametrize(
    ("metadata", "warning"),
    [
        (ELSEWHERE, "was trained on other images of the same classes (animals)"),
        ({}, "does not say what it was trained on"),
        ({"format": "pt", "classes": "three"}, "does not say what it was trained on"),
        ({**ELSEWHERE, "mean": "grey"}, "does not say what it was trained on"),
        ({**ELSEWHERE, "mean": [10**400, 0.5, 0.5]}, "does not say what it was trained on"),
        ({**ELSEWHERE, "std": [float("nan")] * 3}, "does not say what it was trained on"),
    ],
)
def test_check_origin_warns_of_a_teacher_of_other_or_unknown_images(tmp_path, metadata, warning):
    (said,) = check_origin(metadata, OWN, tmp_path / "t")
    assert said.startswith(f"{tmp_path / 't'} {warning}")


def test_check_origin_compares_how_the_networks_themselves_are_shown_images(tmp_path):
    """A network that normalises and resizes its images is to be shown those that it was used to, whatever the data."""
    view = {"mean": [0.9, 0.9, 0.9], "std": [0.3, 0.3, 0.3], "size": 224, "classes": ["eel", "x", "cat", "dog"]}
    seen = {**view, "image_size": view["size"]}
    file = {**ELSEWHERE, "model": view, "image_size": 28}
    for size in (224, [224, 224], (224, 224)):
        own = {**OWN, **seen, "image_size": size}
        assert "other images of the same classes" in check_origin(file, own, tmp_path)[0]
    with pytest.raises(UserError, match=r"of 224 pixels, and here they have \[224, 112\]"):
        check_origin(file, {**OWN, **seen, "image_size": [224, 112]}, tmp_path)
    for name, difference in (("mean", "normalised"), ("image_size", "of 224 pixels"), ("classes", "with 4 classes")):
        with pytest.raises(UserError, match=difference):
            check_origin(file, {**OWN, **seen, name: OWN[name]}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"classes": ["cat", "dog"]}, "with 2 classes instead of 3"),
        ({"classes": ["cat", "eel", "dog"]}, "whose class 1 is 'eel', and here it is 'dog'"),
        ({"classes": ["Cat", "dog", "eel"]}, "whose class 0 is 'Cat', and here it is 'cat'"),
        ({"image_size": 28}, "with images of 28 pixels, and here they have 32"),
        (
            {"mean": [0.5, 0.5, 0.125]},
            "normalised otherwise: the mean of its pixels is (0.500, 0.500, 0.125) and here (0.500, 0.250, 0.125)",
        ),
        ({"std": [0.2, 0.2, 0.23]}, "normalised otherwise: the std of its pixels is"),
        ({"mean": [0.5]}, "normalised otherwise: the mean of its pixels is (0.500) and here"),
    ],
)
def test_check_origin_refuses_other_classes_and_normalisation(tmp_path, changes, difference):
    with pytest.raises(UserError) as error:
        check_origin({**ELSEWHERE, **changes}, OWN, tmp_path / "t")
    message = str(error.value)
    assert message.startswith(f"teacher_weights={tmp_path / 't'} comes from animals, {difference}")
    assert message.endswith("; give weights of this data, or leave teacher_weights out to have a teacher trained")
    assert "\n" not in message
