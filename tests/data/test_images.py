from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from kd.data.images import Images, require_labelled
from kd.errors import UserError


def sample(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "train_x": torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "train_y": torch.arange(50) % 2,
        "test_x": torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "test_y": torch.arange(20) % 2,
    }


def images(tensors: dict[str, torch.Tensor], name: str = "a", classes: tuple[str, ...] = ("0", "1")) -> Images:
    return Images(name, classes, **tensors)


def test_images_id_depends_on_pixels_and_labels_alone():
    tensors = sample()
    strided = {key: value.clone().transpose(0, -1).contiguous().transpose(0, -1) for key, value in tensors.items()}
    assert len(images(tensors).id) == 16
    assert int(images(tensors).id, 16) >= 0
    assert images(tensors).id == images(sample(), name="b", classes=("cat", "dog")).id == images(strided).id


def test_images_id_changes_with_every_pixel_and_label():
    ids = {images(sample()).id}
    for key in sample():
        for place in (0, -1):
            tensors = sample()
            tensors[key].view(-1)[place] += 1
            ids.add(images(tensors).id)
    assert len(ids) == 9


def test_images_id_distinguishes_splits_and_shapes():
    whole = sample()
    moved = {
        "train_x": whole["train_x"][:-1],
        "train_y": whole["train_y"][:-1],
        "test_x": torch.cat([whole["train_x"][-1:], whole["test_x"]]),
        "test_y": torch.cat([whole["train_y"][-1:], whole["test_y"]]),
    }
    reshaped = {**whole, "train_x": whole["train_x"].view(50, 3, 4, 16)}
    assert len({images(tensors).id for tensors in (whole, moved, reshaped)}) == 3


def test_images_mean_std_are_those_of_the_training_pixels():
    tensors = sample()
    tensors["train_x"][:, 1] //= 3
    tensors["train_x"][:, 2] = 255
    mean, std = images(tensors).mean_std
    x = tensors["train_x"].double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), x.mean(dim=(0, 2, 3)))
    least = torch.tensor([0.0, 0.0, 1 / 255])  # of the last channel, which has no contrast
    wanted = torch.maximum(x.std(dim=(0, 2, 3), correction=0), least.double())
    torch.testing.assert_close(torch.tensor(std).double(), wanted, atol=1e-7, rtol=1e-6)


def test_images_mean_std_is_exact_beyond_float32_counts():
    x = torch.zeros(1, 1, 4200, 4200, dtype=torch.uint8)
    x[..., :42, :] = 255
    (mean,), _ = images({**sample(), "train_x": x}).mean_std
    assert abs(mean - 0.01) < 1e-9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        (
            {"train_y": torch.tensor([1, 2])},
            "training labels go from 1 to 2, and there are 2 classes; number them from 0",
        ),
        ({"test_y": torch.tensor([-1, 0])}, "test labels go from -1 to 0"),
        (
            {"train_y": torch.tensor([0, 1], dtype=torch.int32)},
            r"training labels must be int64 of shape \(2,\), got torch",
        ),
        ({"train_y": torch.tensor([0])}, r"training labels must be int64 of shape \(2,\), got torch.int64 of \(1,\)"),
        (
            {"train_x": torch.zeros(2, 3, 4, 4)},
            r"training images must be uint8 of shape \(N, C, H, W\), got torch.float32",
        ),
        (
            {"test_x": torch.zeros(2, 4, 4, dtype=torch.uint8)},
            r"test images must be .*, got torch.uint8 of \(2, 4, 4\)",
        ),
    ],
)
def test_data_of_ones_own_are_checked(changes, message):
    x, y = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    images = Images(
        **{"name": "mine", "classes": ("a", "b"), "train_x": x, "train_y": y, "test_x": x, "test_y": y, **changes}
    )
    with pytest.raises(UserError, match=f"^{message}") if message else nullcontext():
        require_labelled(images)
    with pytest.raises(UserError, match=r"has to return kd.data.images.Images, not tuple"):
        require_labelled((x, y))


def test_images_summary_counts_images_and_classes():
    assert images(sample()).summary == "a: 50 training and 20 test images, 2 classes"
    many = {name: x[:1].expand(4000, *x.shape[1:]) for name, x in sample().items()}
    notes = replace(Images("b", ("0",) * 1000, **many), notes=("this", "that"))
    assert notes.summary == "b: 4,000 training and 4,000 test images, 1,000 classes, this, that"


@pytest.mark.parametrize(
    ("sizes", "resized"),
    [
        ({(28, 28)}, "resized from 28x28 to 8x8"),
        ({(300, 200), (28, 28)}, "resized from 28x28 and 300x200 to 8x8"),
        ({(30, 2), (28, 28), (4, 5)}, "resized from 3 sizes between 4x5 and 30x2 to 8x8"),
    ],
)
def test_images_summary_names_the_sizes_before_resizing(sizes, resized):
    found = replace(images(sample()), resized_from=frozenset(sizes))
    assert found.summary == f"a: 50 training and 20 test images, 2 classes, {resized}"
    assert found.id == images(sample()).id
