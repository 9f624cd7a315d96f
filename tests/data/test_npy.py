import os

import numpy as np
import pytest
import torch

from kd.data.also_test import also_test
from kd.data.npy import npy
from kd.errors import UserError

RNG = np.random.default_rng(0)


def pixels(n, *shape):
    return RNG.integers(0, 256, (n, *shape), np.uint8)


def put(root, **arrays):
    root.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array, allow_pickle=True)
    return root


def whole(root, *shape):
    x, y = pixels(20, *shape), np.arange(20) % 5
    return put(root, train_images=x[:15], train_labels=y[:15, None], test_images=x[15:], test_labels=y[15:]), x


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (6, 8, 13)])
@pytest.mark.parametrize("in_memory", [True, False])
def test_npy_keeps_height_width_and_channels(tmp_path, shape, in_memory):
    root, x = whole(tmp_path / "bands", *shape)
    images = npy(root, in_memory=in_memory)
    assert np.array_equal(images.train_x.permute(0, 2, 3, 1).numpy(), x[:15].reshape(15, 6, 8, -1))
    assert np.array_equal(images.test_x.permute(0, 2, 3, 1).numpy(), x[15:].reshape(5, 6, 8, -1))
    assert (images.name, images.classes, images.image_size) == ("bands", tuple("01234"), [6, 8])
    assert images.train_y.tolist() == [i % 5 for i in range(15)]
    assert images.id == npy(root).id


def test_npy_draws_a_test_split_and_takes_names_of_classes(tmp_path):
    root, _ = whole(tmp_path / "bands", 6, 8, 4)
    for name in ("test_images", "test_labels"):
        (root / f"{name}.npy").unlink()
    (root / "classes.txt").write_text("sea\nsnow\nsoil\nswamp\nsteppe\n")
    images = npy(root)
    assert (len(images.train_y), images.test_y.bincount().tolist()) == (10, [1] * 5)
    assert images.classes[4] == "steppe"
    assert "no test split found: a fifth of each class" in images.summary
    assert npy(root, [3, 4]).train_x.shape == (10, 4, 3, 4)
    with pytest.raises(UserError, match=r"no test_images.npy there, and with data.in_memory=false none is drawn; add"):
        npy(root, in_memory=False)


def test_npy_is_also_tested_on_arrays_of_its_channels(tmp_path):
    root, x = whole(tmp_path / "bands", 6, 8, 13)
    put(tmp_path / "more", new_data=x[:4], new_labels=np.zeros(4, int))
    (found,) = also_test([str(tmp_path / "more")], npy(root))
    assert torch.equal(found.x, npy(root).train_x[:4])
    (tmp_path / "files" / "0").mkdir(parents=True)
    with pytest.raises(UserError, match="files are grey or RGB, and images of bands have 13 channels; give arrays"):
        also_test([str(tmp_path / "files")], npy(root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": pixels(15, 6, 8).astype(np.uint16)}, r"uint16 of shape \(15, 6, 8\), not images: uint8"),
        ({"train_images": pixels(15, 6)}, r"uint8 of shape \(15, 6\), not images"),
        ({"train_images": np.array([{}] * 15)}, "not a whole .npy array of numbers"),
        ({"test_images": pixels(5, 6, 9)}, r"training and test differ in channels, height or width: \(1, 6, 8\) and"),
        ({"train_labels": np.zeros(14, int)}, r"int64 of shape \(14,\), not labels of 15 images"),
        ({"train_labels": np.zeros(15)}, "float64 of shape .*, not labels"),
        ({"train_labels": np.full(15, -1)}, "not labels of 15 images: whole numbers from 0"),
        ({"train_labels": np.full(15, 2**63, np.uint64)}, "uint64 of shape .*, not labels of 15 images: whole numbers"),
        (
            {"train_images": pixels(15, 3, 8, 8)},
            r"of shape \(15, 3, 8, 8\), \(N, C, H, W\) by its looks; store \(N, H, W, C",
        ),
        ({"train_labels": np.full(15, 10**9)}, "a label of 1,000,000,000 and 20 images; number classes from 0"),
    ],
)
def test_npy_names_arrays_that_do_not_fit(tmp_path, changes, message):
    root, _ = whole(tmp_path / "bands", 6, 8)
    put(root, **changes)
    with pytest.raises(UserError, match=message):
        npy(root)


def test_npy_names_what_is_missing_or_cannot_be(tmp_path):
    root, _ = whole(tmp_path / "bands", 6, 8)
    (root / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"classes.txt: 2 different names, and labels up to 4$"):
        npy(root)
    (root / "classes.txt").write_text("a\n" * 2**20)
    with pytest.raises(UserError, match=r"classes.txt: larger than 1 MB$"):
        npy(root)
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"^data.in_memory=false reads the arrays as they are; leave out data.image"):
        npy(root, 8, in_memory=False)
    (root / "test_labels.npy").unlink()
    with pytest.raises(UserError, match=r"test_labels.npy: No such file or directory$"):
        npy(root)


@pytest.mark.parametrize("shape", [(20, 6, 6), (20, 6, 6, 1), (20, 6, 6, 3)], ids=str)
def test_images_in_memory_are_none_of_the_file(tmp_path, shape):
    """Which another program may write anew, while they are trained on."""
    x = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_images.npy", x)
        np.save(tmp_path / f"{split}_labels.npy", np.arange(20) % 2)
    images = npy(str(tmp_path), in_memory=True)
    before = images.train_x.clone()
    with (tmp_path / "train_images.npy").open("r+b") as file:
        file.seek(-x.size, os.SEEK_END)
        file.write(bytes(x.size))
    assert torch.equal(images.train_x, before)
