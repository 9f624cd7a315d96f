"""Which parquet files are read: splits, shards, layouts, caches."""

import os
import shutil

import pytest
import torch

from kd.data.parquet import parquet
from tests.data.parquets import LABELS, NAMES, assert_refused


def test_parquet_takes_validation_for_testing_without_a_test_split(root, pixels):
    (root / "test.parquet").rename(root / "validation-latest.parquet")
    images = parquet(root)
    assert torch.equal(images.test_x, pixels[6:])
    assert images.summary == "set: 6 training and 6 test images, 3 classes, validation taken as the test split"


@pytest.mark.parametrize(
    "layout",
    [
        "{}-00000-of-00001.parquet",
        "data/{}-00000-of-00001-a09b74b3ef9c3b56.parquet",
        "cifar10-{}.parquet",
        "plain_text/{}/0000.parquet",
        "plain_text/partial-{}/0000.parquet",
        "{}/part-00000-1f4c.snappy.parquet",
        "{}ING.parquet",
        "TEST-set.v2/{}.parquet",
    ],
)
def test_parquet_recognises_the_split_in_many_layouts(tmp_path, pixels, encode, write_parquet, layout):
    for split, rows in (("train", pixels[:6]), ("test", pixels[6:])):
        write_parquet(tmp_path / "train" / layout.format(split), [encode(x) for x in rows], LABELS, NAMES)
    images = parquet(tmp_path / "train")
    assert torch.equal(images.train_x, pixels[:6])
    assert torch.equal(images.test_x, pixels[6:])
    assert images.summary == "train: 6 training and 6 test images, 3 classes"


@pytest.mark.parametrize(
    "names",
    [
        [f"train-{i:05}-of-00003.parquet" for i in range(3)],
        ["train/0000.parquet", "train/0001.parquet", "train/0002.parquet"],
        ["train-9.parquet", "train-10.parquet", "train-11.parquet"],
        ["train9.parquet", "train10.parquet", "train11.parquet"],
        [f"train/part-0000{i}-3f2b-c000.snappy.parquet" for i in range(3)],
    ],
)
def test_parquet_reads_shards_in_the_order_of_their_numbers(root, pixels, encode, write_parquet, names):
    (root / "train.parquet").unlink()
    for i in (1, 2, 0):
        write_parquet(root / names[i], [encode(x) for x in pixels[2 * i : 2 * i + 2]], LABELS[2 * i : 2 * i + 2], NAMES)
    images = parquet(root)
    assert torch.equal(images.train_x, pixels[:6])
    assert images.train_y.tolist() == LABELS


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (
            ["train-00000-of-00003", "train-00002-of-00003"],
            "one of 3 shards, of which 00000, 00002 are there;",
        ),
        (["train-0-of-99999999999999"], "one of 99,999,999,999,999 shards, of which 00000 are there;"),
        (["train-00001-of-00002"], "one of 2 shards, of which 00001 are there;"),
        (
            ["train-00000-of-00001-a09b74b3ef9c3b56", "train-00000-of-00001-b09b74b3ef9c3b56"],
            "one of 1 shards, of which 00000, 00000 are there;",
        ),
    ],
)
def test_parquet_refuses_shards_that_are_missing_or_there_twice(root, names, there):
    for name in names:
        shutil.copy(root / "train.parquet", root / f"{name}.parquet")
    (root / "train.parquet").unlink()
    assert_refused(root, root / names[0], there)


def other_train(file, encode, pixels, write_parquet):
    write_parquet(file, [encode(x) for x in pixels[6:]], LABELS, NAMES)


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["a/train.parquet", "b/train.parquet"], "a/train.parquet, b/train.parquet; set data.root to one of them"),
        (["train-0-of-1.parquet"], "train.parquet, train-0-of-1.parquet; move all but one of them away"),
        (["train (1).parquet"], "train.parquet, train (1).parquet; move all but one of them away"),
        (["cifar10-train.parquet", "cifar100-train.parquet"], "cifar10-train.parquet, cifar100-train.parquet"),
    ],
)
def test_parquet_refuses_several_sets_of_a_split(root, pixels, encode, write_parquet, names, places):
    if len(names) == 2:
        (root / "train.parquet").rename(root / "moved")
        (root / names[0]).parent.mkdir(exist_ok=True)
        (root / "moved").rename(root / names[0])
    other_train(root / names[-1], encode, pixels, write_parquet)
    assert_refused(root, f"{root}: 2 sets of train files that differ: {places}")


@pytest.fixture
def hub_cache(root):
    """A hub cache with one revision: links to files that are called as their checksums, with a copy in /refs."""
    blobs, snapshot = root.parent / "hub" / "blobs", root.parent / "hub" / "snapshots" / "aaa" / "plain_text"
    blobs.mkdir(parents=True)
    for split in ("train", "test"):
        (snapshot / split).mkdir(parents=True)
        (root / f"{split}.parquet").rename(blobs / split)
        os.symlink(blobs / split, snapshot / split / "0000.parquet")
    return root.parent / "hub"


def test_parquet_reads_a_hub_cache(hub_cache, pixels):
    for root in (hub_cache, hub_cache / "snapshots" / "aaa", hub_cache / "snapshots" / "aaa" / "plain_text"):
        images = parquet(root)
        assert torch.equal(images.train_x, pixels[:6])
        assert torch.equal(images.test_x, pixels[6:])


def test_parquet_takes_the_first_of_equal_revisions(hub_cache, pixels):
    shutil.copytree(hub_cache / "snapshots" / "aaa", hub_cache / "snapshots" / "bbb", symlinks=True)
    shutil.copytree(hub_cache / "snapshots" / "aaa", hub_cache / "snapshots" / "ccc")  # files, not links
    images = parquet(hub_cache / "snapshots")
    assert torch.equal(images.train_x, pixels[:6])
    copies = [
        f"3 copies of the {split} split, aaa/plain_text/{split}/0000.parquet taken" for split in ("train", "test")
    ]
    assert images.summary == f"snapshots: 6 training and 6 test images, 3 classes, {', '.join(copies)}"


def test_parquet_refuses_revisions_that_differ(hub_cache, pixels, encode, write_parquet):
    other = hub_cache / "snapshots" / "bbb" / "plain_text"
    shutil.copytree(hub_cache / "snapshots" / "aaa", other.parent)
    other_train(other / "train" / "0000.parquet", encode, pixels, write_parquet)
    both = "aaa/plain_text/train/0000.parquet, snapshots/bbb/plain_text/train/0000.parquet"
    assert_refused(hub_cache, f"2 sets of train files that differ: snapshots/{both}", f"such as data.root={other}")
    assert torch.equal(parquet(other).train_x, pixels[6:])


def test_parquet_passes_over_what_other_programs_left(root, pixels, encode, write_parquet):
    for name in (".ipynb_checkpoints/train-checkpoint.parquet", "__MACOSX/train.parquet", "._train.parquet"):
        other_train(root / name, encode, pixels, write_parquet)
    os.mkfifo(root / "train-fifo.parquet")
    (root / "README.md").write_text("a set")
    images = parquet(root)
    assert torch.equal(images.train_x, pixels[:6])
    files = "3 files passed over (1 .md, 1 FIFO or device, 1 hidden)"
    assert images.summary.endswith(f"3 classes, {files}, folders passed over: .ipynb_checkpoints, __MACOSX")


def test_parquet_names_files_without_a_split_or_with_two(root, pixels, encode, write_parquet):
    for name in ("more.parquet", "train-test.parquet"):
        other_train(root / name, encode, pixels, write_parquet)
    assert parquet(root).summary.endswith("3 classes, 2 files passed over (2 .parquet of no split)")


def test_parquet_says_if_the_splits_are_in_different_folders(root):
    (root / "more").mkdir()
    (root / "test.parquet").rename(root / "more" / "test.parquet")
    assert parquet(root).summary.endswith("3 classes, training images from ./, test images from more/")
