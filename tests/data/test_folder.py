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


SAVED_AS = {
    "jpg": "JPEG",
    "tif": "TIFF",
    **{name: name.upper() for name in ("png", "jpeg", "webp", "bmp", "gif", "tiff")},
}


@pytest.mark.parametrize("suffix", [*SAVED_AS, *map(str.upper, SAVED_AS), "Png"])
def test_folder_reads_what_is_promised(root, pixels, encode, suffix):
    (root / "train" / "dog" / f"9.{suffix}").write_bytes(encode(pixels[9], SAVED_AS[suffix.lower()]))
    images = folder(root)
    assert len(images.train_x) == 7
    assert "passed over" not in images.summary
    difference = (images.train_x[6].float() - pixels[9].float()).abs().mean()
    lossy = {"jpg": 60, "jpeg": 60, "webp": 60, "gif": 60}  # noise compresses badly; other noise differs by 85
    assert difference <= lossy.get(suffix.lower(), 0)


def test_folder_reads_folders_below_a_class(root, pixels, encode):
    below = root / "train" / "cat" / "a" / "b"
    below.mkdir(parents=True)
    (below / "x.png").write_bytes(encode(pixels[9]))
    images = folder(root)
    assert images.classes == ("cat", "dog")
    assert torch.equal(images.train_x, torch.cat([pixels[:3], pixels[9:10], pixels[3:6]]))


def test_folder_summary_counts_what_was_passed_over(root):
    assert folder(root).summary == "set: 6 training and 6 test images, 2 classes"
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "notes.txt", "x.PSD", "no suffix", "a.b c"):
        (root / "train" / "cat" / name).write_text("no image")
    (root / "stray.png").write_text("no image")
    (root / "test" / "stray.png").write_text("no image")
    passed_over = (
        "10 files passed over (2 hidden, 2 outside of a class folder, 2 system, 2 without a suffix, 1 .psd, 1 .txt)"
    )
    assert folder(root).summary == f"set: 6 training and 6 test images, 2 classes, {passed_over}"


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN"])
@pytest.mark.parametrize("place", [".", "train", "train/cat"])
def test_folder_passes_over_folders_of_other_programs(root, pixels, encode, place, name):
    before = folder(root).id
    (root / place / name).mkdir()
    (root / place / name / "0.png").write_bytes(encode(pixels[9]))
    images = folder(root)
    assert images.id == before
    assert images.summary.endswith(f"2 classes, folders passed over: {name}")


def test_folder_says_nothing_of_its_own_cache(root):
    assert (
        folder(root, in_memory=False).summary == folder(root).summary == "set: 6 training and 6 test images, 2 classes"
    )


def test_folder_names_folders_beside_the_splits(root):
    for name in ("d", "c", "b", "a"):
        (root / name).mkdir()
    assert folder(root).summary.endswith("folders passed over: a, b, c and 1 more")


def test_folder_passes_over_what_is_no_regular_file(root):
    os.mkfifo(root / "train" / "cat" / "fifo.png")
    os.symlink("/dev/zero", root / "train" / "cat" / "zero.png")
    assert folder(root).summary.endswith("2 classes, 2 files passed over (2 FIFO or device)")


def test_folder_passes_over_links_that_leave_the_root(root, pixels, encode):
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(encode(pixels[9]))
    os.symlink(outside / "x.png", root / "train" / "cat" / "x.png")
    os.symlink(outside, root / "train" / "cat" / "below")
    os.symlink(outside, root / "train" / "eel")
    images = folder(root)
    assert len(images.train_x) == 6
    passed_over = (
        "1 file passed over (1 link out of data.root), folders passed over: eel (a link out of data.root), below"
    )
    assert images.summary.endswith(f"2 classes, {passed_over} (a link out of data.root)")


def test_folder_follows_links_within_the_root(root, pixels):
    (root / "train" / "cat").rename(root / "cats")
    os.symlink("../cats", root / "train" / "cat")
    os.symlink("0.png", root / "cats" / "9.png")
    images = folder(root)
    assert torch.equal(images.train_x[:4], torch.cat([pixels[:3], pixels[:1]]))
    assert images.summary.endswith("2 classes, folders passed over: cats")


def test_folder_ends_at_a_link_that_leads_back_up(root):
    os.symlink("..", root / "train" / "cat" / "up")
    assert folder(root).summary.endswith("2 classes, folders passed over: up (a link)")


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_folder_takes_val_for_testing_without_a_test_split(root, pixels, name):
    (root / "test").rename(root / name)
    images = folder(root)
    assert torch.equal(images.test_x, pixels[6:])
    assert images.summary == f"set: 6 training and 6 test images, 2 classes, {name}/ taken as the test split"


def test_folder_leaves_val_out_beside_a_test_split(root, pixels, encode, write_tree):
    before = folder(root).id
    write_tree(root / "val", {"cat": [encode(pixels[0])] * 3, "eel": [encode(pixels[0])] * 2})
    images = folder(root)
    assert images.id == before
    assert images.summary == "set: 6 training and 6 test images, 2 classes, val/ not used (5 images)"


@pytest.fixture
def unsplit(tmp_path, encode, write_tree):
    """Two classes without a split: 20 images of one grey level each, and 3."""
    grey = [encode(torch.full((3, 32, 32), level, dtype=torch.uint8)) for level in range(23)]
    write_tree(tmp_path / "set", {"cat": grey[:20], "dog": grey[20:]})
    return tmp_path / "set"


def test_folder_splits_what_has_no_split(unsplit):
    images = folder(unsplit)
    assert images.train_y.bincount().tolist() == [16, 2]
    assert images.test_y.bincount().tolist() == [4, 1]  # a fifth of 3 is 0.6
    levels = torch.cat([images.train_x, images.test_x])[:, 0, 0, 0].tolist()
    assert sorted(levels) == list(range(23))
    assert images.test_x[:4, 0, 0, 0].tolist() != [16, 17, 18, 19]
    note = "no split found: a fifth of each class, drawn with a fixed seed, is the test split"
    assert images.summary == f"set: 18 training and 5 test images, 2 classes, {note}"
    torch.rand(1)
    assert folder(unsplit).id == folder(unsplit, in_memory=False).id == images.id


@pytest.mark.parametrize("train", ["train", "Training"])
def test_folder_splits_train_alone_like_what_has_no_split(unsplit, train):
    expected = folder(unsplit).id
    classes = [unsplit / "cat", unsplit / "dog"]
    (unsplit / train).mkdir()
    for one in classes:
        one.rename(unsplit / train / one.name)
    images = folder(unsplit)
    assert images.id == folder(unsplit, in_memory=False).id == expected  # the same images are drawn
    note = f"no test split found: a fifth of each class of {train}/, drawn with a fixed seed, is it"
    assert images.summary == f"set: 18 training and 5 test images, 2 classes, {note}"
    for name in ("1.png", "2.png"):
        (unsplit / train / "dog" / name).unlink()
    assert_refused(unsplit, unsplit / train, "a single image in dog", "add one, or delete the class")


def test_folder_takes_no_misspelt_splits_for_classes(tmp_path, encode, write_tree):
    grey = [encode(torch.full((3, 32, 32), level, dtype=torch.uint8)) for level in range(4)]
    for split in ("trian", "tset"):
        write_tree(tmp_path / "set" / split, {"cat": grey[:2], "dog": grey[2:]})
    with pytest.raises(UserError, match=r"trian/, tset/ hold folders and no images; is one of them train/ or test/\?"):
        folder(tmp_path / "set")


def test_folder_refuses_to_split_a_single_image(unsplit):
    for name in ("1.png", "2.png"):
        (unsplit / "dog" / name).unlink()
    assert_refused(unsplit, unsplit, "a single image in dog", "add one, or delete the class")


def test_folder_refuses_a_root_without_classes(tmp_path):
    (tmp_path / "0.png").touch()
    assert_refused(tmp_path, tmp_path, "neither train/ and test/ nor class folders", "1 outside of a class folder")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["0", "1", "2", "9", "10", "11"], ["0", "1", "2", "9", "10", "11"]),
        (["10", "9", "-1"], ["-1", "10", "9"]),  # not whole numbers: as text
        (["1", "01", "2"], ["01", "1", "2"]),
        (["cat10", "cat2"], ["cat10", "cat2"]),
        (["b", "A", "a"], ["A", "a", "b"]),
    ],
)
def test_folder_orders_numbered_classes_by_value(tmp_path, pixels, encode, write_tree, names, order):
    for split in ("train", "test"):
        write_tree(tmp_path / split, {name: [encode(pixels[names.index(name)])] for name in names})
    images = folder(tmp_path)
    assert images.classes == tuple(order)
    assert torch.equal(images.train_x, pixels[[names.index(name) for name in order]])


@pytest.mark.parametrize(
    "name", ["$5_$10", "$_$ face", "ärger", "猫", "a'b\"c", "[v2]", "<b>", "a=b,c", "{x}", "👩\u200d🔬"]
)
def test_folder_takes_any_printable_class_name(tmp_path, pixels, encode, write_tree, name):
    for split in ("train", "test"):
        write_tree(tmp_path / split, {name: [encode(pixels[0])]})
    assert folder(tmp_path).classes == (name,)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (b"caf\xe9", r"is not UTF-8: 'caf\udce9'"),
        (b"a\nb", r"has control characters or line breaks: 'a\nb'"),
        (b"\x1b[31mred", r"has control characters or line breaks: '\x1b[31mred'"),
        ("a\u2028b".encode(), r"has control characters or line breaks: 'a\u2028b'"),
        ("\x9b2J".encode(), r"has control characters or line breaks: '\x9b2J'"),
    ],
)
def test_folder_refuses_class_names_that_are_no_line_of_text(tmp_path, pixels, encode, name, wrong):
    for split in ("train", "test"):
        below = os.fsencode(tmp_path / split) + b"/" + name
        os.makedirs(below)
        with open(below + b"/0.png", "wb") as file:
            file.write(encode(pixels[0]))
    assert_refused(tmp_path, f"{tmp_path / 'train'}: a class name {wrong}; rename the class")


def test_folder_reads_files_of_any_name(root, pixels, encode):
    for name in (b"caf\xe9.png", b"a\nb.png"):
        with open(os.fsencode(root / "train" / "cat") + b"/" + name, "wb") as file:
            file.write(encode(pixels[0]))
    assert len(folder(root, in_memory=False).train_x) == 8


def test_folder_names_the_suffixes_of_a_class_without_images(root):
    for file in (root / "test" / "dog").iterdir():
        file.rename(file.with_suffix(".tga"))
    assert_refused(root, root / "test", "dog", "3 files passed over (3 .tga)")


def test_folder_refuses_a_file_too_large_for_an_image(root):
    with open(root / "train" / "cat" / "0.png", "wb") as file:
        file.truncate(2**30 + 1)  # takes no room on disk
    assert_refused(root, root / "train" / "cat" / "0.png", "over 1 GiB")


@pytest.mark.parametrize("kind", ["file", "missing"])
def test_folder_refuses_a_root_that_is_no_folder(tmp_path, kind):
    if kind == "file":
        (tmp_path / "set").touch()
    assert_refused(tmp_path / "set", tmp_path / "set", "data.root must be a readable folder")


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


@pytest.mark.parametrize(("split", "left"), [("train", "other/, test/"), ("test", "other/, train/")])
def test_folder_names_a_missing_split(root, split, left):
    (root / split).rename(root / "other")
    assert_refused(root, f"{root}: no {split}/ there, but {left}; add it, or move the class folders into data.root")


def test_folder_refuses_val_and_test_without_train(root):
    (root / "train").rename(root / "val")
    assert_refused(root, f"{root}: no train/ there, but test/, val/")


def test_folder_refuses_two_folders_of_one_split(root):
    (root / "Train").mkdir()
    assert_refused(root, root, "both Train/ and train/")


def test_folder_names_the_folder_that_the_splits_are_in(root):
    assert_refused(root.parent, f"{root.parent}: train/ is in set/; set data.root to that")


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
