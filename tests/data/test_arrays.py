"""SVHN, FashionMNIST and STL-10, from small files of the published forms."""

import gzip
import struct

import numpy as np
import pytest
import torch
from scipy.io import savemat

from kd.data.arrays import fashion_mnist, stl10, svhn
from kd.errors import UserError

RNG = np.random.default_rng(0)


def put_svhn(root, n=(12, 6)):
    made = []
    for split, count in zip(("train", "test"), n, strict=True):
        x = RNG.integers(0, 256, (32, 32, 3, count), np.uint8)
        y = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": x, "y": y})
        made.append((x, y))
    return made


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def put_fashion(folder, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for split, n in (("train", 20), ("t10k", 10)):
        x, y = RNG.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for name, array in ((f"{split}-images-idx3-ubyte", x), (f"{split}-labels-idx1-ubyte", y)):
            content = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
        made.append(x)
    return made


def put_stl10(folder):
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for split, n in (("train", 3), ("test", 2)):
        x = RNG.integers(0, 256, (n, 3, 96, 96), np.uint8)
        x.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        np.arange(1, n + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
        made.append(x)
    return made


def test_svhn_reads_its_matlab_files(tmp_path):
    (x, _), _ = put_svhn(tmp_path)
    images = svhn(tmp_path)
    assert (images.name, images.classes) == ("SVHN", tuple("0123456789"))
    assert images.train_x.shape == (12, 3, 32, 32)
    assert torch.equal(images.train_x[5].permute(1, 2, 0), torch.from_numpy(x[..., 5]))
    assert images.train_y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]  # the files call a zero 10
    assert images.test_y.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("folder", "packed"), [("", True), ("FashionMNIST/raw", False)])
def test_fashion_mnist_repeats_its_grey_over_three_channels(tmp_path, folder, packed):
    train, test = put_fashion(tmp_path / folder, packed)
    images = fashion_mnist(tmp_path)
    assert images.summary == "FashionMNIST: 20 training and 10 test images, 10 classes"
    for channel in range(3):
        assert np.array_equal(images.train_x[:, channel].numpy(), train)
        assert np.array_equal(images.test_x[:, channel].numpy(), test)
    assert images.classes[images.test_y[9]] == "Ankle boot"


@pytest.mark.parametrize("folder", ["", "stl10_binary"])
def test_stl10_reads_columns_first(tmp_path, folder):
    train, test = put_stl10(tmp_path / folder)
    images = stl10(tmp_path)
    assert np.array_equal(images.train_x.numpy(), train)
    assert np.array_equal(images.test_x.numpy(), test)
    assert images.train_y.tolist() == [0, 1, 2]


def test_arrays_are_resized_to_the_size_that_is_wanted(tmp_path):
    put_fashion(tmp_path)
    images = fashion_mnist(tmp_path, image_size=14)
    assert images.test_x.shape == (10, 3, 14, 14)
    assert images.summary.endswith(", resized from 28x28 to 14x14")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "no train_32x32.mat there; get it from http"),
        (lambda file: file.write_bytes(file.read_bytes()[:500]), "damaged or another kind of file"),
        (lambda file: file.write_bytes(b""), "damaged or another kind of file"),
        (lambda file: savemat(file, {"y": np.ones((1, 1))}), "damaged or another kind of file"),
        (lambda file: savemat(file, {"X": np.ones((2, 2)), "y": np.ones((1, 1))}), "X is float64 of shape"),
        (lambda file: savemat(file, {"X": np.zeros((8, 8, 3, 2), np.uint8), "y": [[1]]}), "2 images and labels of"),
        (lambda file: savemat(file, {"X": np.zeros((8, 8, 3, 2), np.uint8), "y": [[1, 11]]}), "from 1 to 11"),
    ],
)
def test_svhn_refuses_missing_and_damaged_files(tmp_path, damage, message):
    put_svhn(tmp_path)
    damage(tmp_path / "train_32x32.mat")
    with pytest.raises(UserError, match=message):
        svhn(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2, 28, 28)), "in 0 bytes"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", *[2**31] * 3)), "an array of shape"),
        (gzip.compress(b"\0\0\x0d\x03" + bytes(12)), "no idx file of bytes in 3 dimensions"),
        (gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)))[:-9], "damaged or another kind of file"),
        (b"text", "damaged or another kind of file"),
        (gzip.compress(idx(np.zeros((21, 28, 28), np.uint8))), "21 images and labels of shape"),
    ],
    ids=["cut", "huge", "floats", "half packed", "text", "too many"],
)
def test_fashion_mnist_refuses_damaged_files(tmp_path, content, message):
    put_fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        fashion_mnist(tmp_path)


def test_stl10_refuses_damaged_files(tmp_path):
    put_stl10(tmp_path)
    file = tmp_path / "test_X.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="55,295 bytes, which are no images of 96x96 pixels"):
        stl10(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"test_X.bin: 0 images and labels of shape"):
        stl10(tmp_path)
