import os

import pytest
import torch

from kd.data.folder import folder
from kd.errors import UserError


@pytest.fixture
def root(tmp_path, pixels, encode, write_tree):
    """Two classes of three images in each split."""
    png = [encode(x) for x in pixels]
    write_tree(tmp_path / "set" / "train", {"dog": png[3:6], "cat": png[:3]})
    write_tree(tmp_path / "set" / "test", {"cat": png[6:9], "dog": png[9:]})
    return tmp_path / "set"


def test_round_trip(root, pixels):
    images = folder(str(root))
    assert images.name == "set"
    assert images.classes == ("cat", "dog")
    assert torch.equal(images.train_x, pixels[:6])
    assert torch.equal(images.test_x, pixels[6:])
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert y.tolist() == [0, 0, 0, 1, 1, 1]
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        assert x.is_contiguous()


def test_other_files_are_passed_over(root, pixels):
    before = folder(root).id
    (root / "train" / "notes.txt").write_text("not a class")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "cat" / "._0.png").write_text("not an image")
    assert folder(root).id == before


def test_capital_suffix_counts(root):
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "0.PNG")
    assert len(folder(root).train_x) == 6


@pytest.mark.parametrize("name", ["new.jpg", "new.JPEG", "new.png"])
def test_reencoded_training_images_show_in_the_name(root, pixels, encode, name):
    """By their content: a JPEG is one under any name."""
    (root / "test" / "dog" / name).write_bytes(encode(pixels[0], "JPEG"))
    assert folder(root, name="pets").name == "pets"
    (root / "train" / "dog" / name).write_bytes(encode(pixels[0], "JPEG"))
    images = folder(root, name="pets")
    assert images.name == "pets (JPEG)"
    assert len(images.train_x) == len(images.test_x) == 7


def test_image_size(root):
    assert folder(root, image_size=20).train_x.shape == (6, 3, 20, 20)


def test_home_is_expanded(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert folder("~/set").name == "set"


def test_relative_root_has_a_name(root, monkeypatch):
    monkeypatch.chdir(root)
    assert folder(".").name == "set"


def fails(root, *needles):
    with pytest.raises(UserError) as caught:
        folder(root)
    for needle in needles:
        assert str(needle) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 10, 2000, -30])
def test_truncated_image(root, left):
    file = root / "test" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:left])
    fails(root, file, "download it again")


def test_damaged_image(root):
    file = root / "train" / "cat" / "2.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    fails(root, file, "download it again")


def test_missing_root(tmp_path):
    fails(tmp_path / "nowhere", tmp_path / "nowhere", "No such file", "data.root")


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split(root, split):
    (root / split).rename(root / "val")
    fails(root, root / split, "No such file", "data.root")


def test_no_classes(root):
    for label in ("cat", "dog"):
        (root / "train" / label).rename(root / label)
    fails(root, root / "train", "no class folders")


def test_class_without_images(root):
    (root / "test" / "eel").mkdir()
    (root / "test" / "eel" / "notes.txt").write_text("no image")
    fails(root, root / "test", "eel", "delete")


def test_classes_of_one_split_only(root):
    (root / "train" / "dog").rename(root / "train" / "wolf")
    fails(root, root, "train/wolf", "test/dog")


def test_unreadable_image(root):
    file = root / "train" / "cat" / "9.png"
    os.symlink(file, file)
    fails(root, file, "symbolic links")


def test_without_permission(public_path, as_nobody, pixels, encode, write_tree):
    root = public_path / "set"
    for split in ("train", "test"):
        write_tree(root / split, {"cat": [encode(pixels[0])]})
    folder(root)
    for path in (root / "test" / "cat" / "0.png", root / "train" / "cat", root):
        path.chmod(0)
        with as_nobody():
            fails(root, path, "Permission denied")
        path.chmod(0o755)
