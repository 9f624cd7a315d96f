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


def test_folder_reads_what_was_written(root, pixels):
    images = folder(str(root))
    assert images.name == "set"
    assert images.classes == ("cat", "dog")
    assert torch.equal(images.train_x, pixels[:6])
    assert torch.equal(images.test_x, pixels[6:])
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert y.tolist() == [0, 0, 0, 1, 1, 1]
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        assert x.is_contiguous()


def test_folder_skips_other_files(root, pixels):
    before = folder(root).id
    (root / "train" / "notes.txt").write_text("not a class")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "cat" / "._0.png").write_text("not an image")
    assert folder(root).id == before


def test_folder_takes_capital_suffixes(root):
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "0.PNG")
    assert len(folder(root).train_x) == 6


@pytest.mark.parametrize("name", ["new.jpg", "new.JPEG", "new.png"])
def test_folder_name_marks_reencoded_training_images(root, pixels, encode, name):
    """The content decides, not the suffix."""
    (root / "test" / "dog" / name).write_bytes(encode(pixels[0], "JPEG"))
    assert folder(root, name="pets").name == "pets"
    (root / "train" / "dog" / name).write_bytes(encode(pixels[0], "JPEG"))
    images = folder(root, name="pets")
    assert images.name == "pets (JPEG)"
    assert len(images.train_x) == len(images.test_x) == 7


def test_folder_resizes_to_image_size(root):
    assert folder(root, image_size=20).train_x.shape == (6, 3, 20, 20)


def test_folder_expands_home(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert folder("~/set").name == "set"


def test_folder_names_a_relative_root(root, monkeypatch):
    monkeypatch.chdir(root)
    assert folder(".").name == "set"


def assert_refused(root, *needles):
    with pytest.raises(UserError) as caught:
        folder(root)
    for needle in needles:
        assert str(needle) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 10, 2000, -30])
def test_folder_names_a_truncated_image(root, left):
    file = root / "test" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:left])
    assert_refused(root, file, "download it again")


def test_folder_names_a_damaged_image(root):
    file = root / "train" / "cat" / "2.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    assert_refused(root, file, "download it again")


def test_folder_names_a_missing_root(tmp_path):
    assert_refused(tmp_path / "nowhere", tmp_path / "nowhere", "No such file", "data.root")


@pytest.mark.parametrize("split", ["train", "test"])
def test_folder_names_a_missing_split(root, split):
    (root / split).rename(root / "val")
    assert_refused(root, root / split, "No such file", "data.root")


def test_folder_refuses_a_split_without_classes(root):
    for label in ("cat", "dog"):
        (root / "train" / label).rename(root / label)
    assert_refused(root, root / "train", "no class folders")


def test_folder_refuses_a_class_without_images(root):
    (root / "test" / "eel").mkdir()
    (root / "test" / "eel" / "notes.txt").write_text("no image")
    assert_refused(root, root / "test", "eel", "delete")


def test_folder_refuses_classes_of_one_split_only(root):
    (root / "train" / "dog").rename(root / "train" / "wolf")
    assert_refused(root, root, "train/wolf", "test/dog")


def test_folder_names_an_unreadable_image(root):
    file = root / "train" / "cat" / "9.png"
    os.symlink(file, file)
    assert_refused(root, file, "symbolic links")


def test_folder_names_a_path_without_permission(public_path, as_nobody, pixels, encode, write_tree):
    root = public_path / "set"
    for split in ("train", "test"):
        write_tree(root / split, {"cat": [encode(pixels[0])]})
    folder(root)
    for path in (root / "test" / "cat" / "0.png", root / "train" / "cat", root):
        path.chmod(0)
        with as_nobody():
            assert_refused(root, path, "Permission denied")
        path.chmod(0o755)
