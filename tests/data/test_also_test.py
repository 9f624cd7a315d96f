import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from kd.data.also_test import also_test
from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def images(noise):
    return noise()


def put(folder, **arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


def pixels(n, size=8):
    return RNG.integers(0, 256, (n, size, size, 3), np.uint8)


def test_also_test_reads_cifar10_c_by_severity(tmp_path, images):
    fog, blur, labels = pixels(15), pixels(15), np.tile(np.arange(3), 5).astype(np.uint8)
    opened = also_test([put(tmp_path / "CIFAR-10-C", fog=fog, gaussian_blur=blur, labels=labels)], images)
    mean = "CIFAR-10-C (1 of 15 corruptions)"
    assert [(test.name, test.mean_of) for test in opened] == [
        *((f"CIFAR-10-C/fog/{severity}", mean) for severity in range(1, 6)),
        *((f"CIFAR-10-C/gaussian_blur/{severity}", None) for severity in range(1, 6)),
    ]
    assert torch.equal(opened[3].x, torch.from_numpy(fog[9:12]).permute(0, 3, 1, 2))
    assert opened[3].y.tolist() == [0, 1, 2]
    assert opened[3].y.dtype == torch.int64


def test_also_test_calls_all_of_cifar10_c_by_its_folders_name(tmp_path, images):
    files = {f"c{i}": pixels(5) for i in range(15)}
    opened = also_test([put(tmp_path / "C", labels=np.zeros(5, int), **files)], images)
    assert {test.mean_of for test in opened} == {"C"}


def test_also_test_reads_cifar10_1(tmp_path, images):
    arrays = {"cifar10.1_v6_data": pixels(4), "cifar10.1_v6_labels": np.array([3, 1, 9, 0], np.int32)}
    arrays |= {"cifar10.1_v4_data": pixels(2), "cifar10.1_v4_labels": np.array([3, 1], np.int32)}
    small, large = also_test([put(tmp_path / "any", **arrays)], images)
    assert (small.name, large.name) == ("cifar10.1_v4", "cifar10.1_v6")
    assert large.y.tolist() == [3, 1, 9, 0]
    assert large.x.shape == (4, 3, 8, 8)


def test_also_test_reads_a_name_that_says_data_twice(tmp_path, images):
    arrays = {"my_data_v1_data": pixels(2), "my_data_v1_labels": np.array([3, 1])}
    (test,) = also_test([put(tmp_path / "any", **arrays)], images)
    assert (test.name, test.y.tolist()) == ("my_data_v1", [3, 1])


def test_also_test_measures_corruptions_that_no_mean_counts(tmp_path, images):
    opened = also_test([put(tmp_path / "C", labels=np.zeros(5, int), saturate=pixels(5))], images)
    assert [(test.name, test.mean_of) for test in opened] == [(f"C/saturate/{part}", None) for part in range(1, 6)]


def test_also_test_reads_folders_of_some_classes(tmp_path, images, pixels, encode, write_tree):
    encoded = [encode(image) for image in pixels]
    write_tree(tmp_path / "sketches", {"c": encoded[:2], "a": encoded[2:3]})
    write_tree(tmp_path / "split" / "test", {"j": encoded[:1]})
    write_tree(tmp_path / "split" / "train", {"b": encoded[:1]})
    first, second = also_test([str(tmp_path / "sketches"), str(tmp_path / "split")], images)
    assert (first.name, first.y.tolist(), first.x.shape) == ("sketches", [0, 2, 2], (3, 3, 8, 8))
    assert (second.name, second.y.tolist()) == ("split", [9])


def test_also_test_dataloader_normalises_like_the_test_split_and_reads_no_more_than_a_batch(
    tmp_path, images, monkeypatch
):
    monkeypatch.setattr("kd.data.module.EVAL_BATCH", 4)
    x = images.test_x.permute(0, 2, 3, 1).contiguous().numpy()
    (test,) = also_test([put(tmp_path / "same", again_data=x, again_labels=images.test_y.numpy())], images)
    assert isinstance(np.load(tmp_path / "same" / "again_data.npy", mmap_mode="r"), np.memmap)
    data = DataModule(images, 0.0, 0, Augment(2, True, 0), 8, 0, also_test=(test,))
    ours, theirs = list(data.also_test_dataloader(test, torch.device("cpu"))), list(data.test_dataloader())
    assert [len(batch.y) for batch in ours] == [4] * 5
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a_data": pixels(4)}, "a_labels.npy: No such file"),
        ({"a_data": pixels(4), "a_labels": np.zeros(3, int)}, r"int64 of shape \(3,\), not labels of 4 images"),
        ({"a_data": pixels(4), "a_labels": np.zeros(4)}, "float64 of shape .*, not labels of 4 images"),
        ({"a_data": pixels(4), "a_labels": np.full(4, 10)}, "labels from 10 to 10, and noise has 10 classes"),
        ({"a_data": pixels(4), "a_labels": np.full(4, -1)}, "labels from -1 to -1"),
        ({"a_data": pixels(4, 6), "a_labels": np.zeros(4, int)}, "6x6 pixels, those of noise have 8x8"),
        ({"a_data": pixels(4) / 255, "a_labels": np.zeros(4, int)}, "float64 of shape .*, not images: uint8 of"),
        ({"a_data": pixels(4)[..., 0], "a_labels": np.zeros(4, int)}, "not images"),
        ({"fog": pixels(4), "labels": np.zeros(4, int)}, "4 images, which are not 5 severities of equal size"),
        ({"labels": np.zeros(5, int)}, "labels.npy and no arrays of images beside it"),
        ({}, "no class folders in it"),
    ],
)
def test_also_test_refuses_what_is_no_test_set(tmp_path, images, arrays, message):
    with pytest.raises(UserError, match=message):
        also_test([put(tmp_path / "set", **arrays)], images)


def test_also_test_unpickles_nothing_and_sees_damage(tmp_path, images):
    folder = tmp_path / "set"
    put(folder, labels=np.zeros(5, int), fog=pixels(5))
    whole = (folder / "fog.npy").read_bytes()
    for content in (pickle.dumps(Evil()), whole[:-1], whole[:20], b""):
        (folder / "fog.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"fog.npy: not a whole .npy array of numbers"):
            also_test([str(folder)], images)
    np.save(folder / "fog.npy", np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"fog.npy: not a whole .npy array of numbers"):
        also_test([str(folder)], images)


def test_also_test_refuses_two_means_of_one_name(tmp_path, images):
    labels, folders = np.zeros(5, int), []
    for folder, corruption in (("one", "fog"), ("two", "snow")):
        (tmp_path / folder).mkdir()
        folders.append(put(tmp_path / folder / "C", labels=labels, **{corruption: pixels(5)}))
    with pytest.raises(UserError, match=r"two test sets called C \(1 of 15 corruptions\)"):
        also_test(folders, images)


def test_also_test_refuses_unknown_classes_missing_folders_and_equal_names(
    tmp_path, images, pixels, encode, write_tree
):
    write_tree(tmp_path / "one" / "set", {"a": [encode(pixels[0])]})
    write_tree(tmp_path / "two" / "set", {"z": [encode(pixels[0])]})
    with pytest.raises(UserError, match="none of the data set's classes is called z"):
        also_test([str(tmp_path / "two" / "set")], images)
    with pytest.raises(UserError, match="two test sets called set"):
        also_test([str(tmp_path / "one" / "set")] * 2, images)
    with pytest.raises(UserError, match=r"no folder .*missing"):
        also_test([str(tmp_path / "missing")], replace(images, name="other"))
