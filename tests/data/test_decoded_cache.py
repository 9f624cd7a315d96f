import errno
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.decode import Cache, cache_of, decode
from kd.data.folder import folder
from kd.data.parquet import parquet
from kd.errors import UserError
from tests.processes import run


@pytest.fixture
def roots(tmp_path, pixels, encode, write_tree, write_parquet):
    """The same images as a tree and as parquet files: read by either source."""
    png = [encode(x) for x in pixels]
    write_tree(tmp_path / "tree" / "train", {"cat": png[:3], "dog": png[3:6]})
    write_tree(tmp_path / "tree" / "test", {"cat": png[6:9], "dog": png[9:]})
    write_parquet(tmp_path / "table" / "train.parquet", png[:6], [0, 0, 0, 1, 1, 1], ("cat", "dog"))
    write_parquet(tmp_path / "table" / "test.parquet", png[6:], [0, 0, 0, 1, 1, 1], ("cat", "dog"))
    return {folder: tmp_path / "tree", parquet: tmp_path / "table"}


@pytest.mark.parametrize("source", [folder, parquet])
def test_source_on_disk_equals_memory_and_decodes_once(roots, source, monkeypatch):
    root = roots[source]
    in_memory = source(root)
    first = source(root, in_memory=False)
    assert torch.equal(first.train_x[:], in_memory.train_x)
    assert torch.equal(first.test_x[:], in_memory.test_x)
    assert first.mean_std == in_memory.mean_std

    monkeypatch.setattr("kd.data.decode.Image.open", None)
    again = source(root, in_memory=False)
    assert (again.id, again.summary) == (in_memory.id, in_memory.summary)


@pytest.mark.parametrize("source", [folder, parquet])
def test_source_in_memory_keeps_what_it_decoded(roots, source, monkeypatch):
    root = roots[source]
    first = source(root, keep=True)
    monkeypatch.setattr("kd.data.decode.Image.open", None)
    again = source(root, keep=True)
    assert isinstance(again.train_x, torch.Tensor)
    assert torch.equal(again.train_x, first.train_x)
    assert torch.equal(again.test_x, first.test_x)
    assert (again.id, again.summary) == (first.id, first.summary)
    assert torch.equal(source(root, in_memory=False).train_x[:], first.train_x)  # it is the same file


@pytest.mark.parametrize("damage", ["cut", "other pixels", "other facts", "a folder"])
def test_source_in_memory_decodes_again_what_was_kept_but_is_damaged(roots, damage):
    root = roots[folder]
    right = folder(root, keep=True).train_x
    pixels, facts = (root / ".decoded" / f"folder-train-32.{suffix}" for suffix in ("npy", "json"))
    if damage == "cut":
        os.truncate(pixels, 5000)
    elif damage == "other pixels":
        pixels.write_bytes(pixels.read_bytes()[:-1] + b"x")
    elif damage == "other facts":
        facts.write_text("[]")
    else:
        pixels.unlink()
        pixels.mkdir()
    assert torch.equal(folder(root, keep=True).train_x, right)


def test_source_in_memory_does_without_a_place_to_keep_it(roots):
    root = roots[folder]
    (root / ".decoded").touch()
    assert torch.equal(folder(root, keep=True).train_x, folder(root).train_x)
    assert (root / ".decoded").read_bytes() == b""


def test_source_in_memory_does_without_permission_to_keep_it(public_path, pixels, encode, write_tree, as_nobody):
    write_tree(public_path, {f"{split}/{name}": [encode(pixels[0])] for split in ("train", "test") for name in "ab"})
    for path in (public_path, *public_path.rglob("*")):
        path.chmod(0o755)
    with as_nobody():
        assert torch.equal(folder(public_path, keep=True).train_x[0], pixels[0])
    folder(public_path, keep=True)
    for path in (public_path / ".decoded").iterdir():
        path.chmod(0)
    with as_nobody():
        assert torch.equal(folder(public_path, keep=True).train_x[0], pixels[0])


@pytest.mark.parametrize("source", [folder, parquet])
def test_source_on_disk_decodes_a_changed_file_again(roots, source, pixels, encode, write_parquet):
    root = roots[source]
    source(root, in_memory=False)
    if source is folder:
        (root / "train" / "dog" / "2.png").write_bytes(encode(pixels[0]))
    else:
        png = [encode(pixels[i]) for i in (0, 1, 2, 3, 4, 0)]
        write_parquet(root / "train.parquet", png, [0, 0, 0, 1, 1, 1], ("cat", "dog"))
    assert torch.equal(source(root, in_memory=False).train_x[:][5], pixels[0])


def test_source_on_disk_keeps_the_jpeg_mark(roots, pixels, encode):
    root = roots[folder]
    (root / "train" / "cat" / "3.png").write_bytes(encode(pixels[0], "JPEG"))
    assert [folder(root, in_memory=False).name for _ in range(2)] == ["tree (JPEG)"] * 2


def test_source_on_disk_keeps_the_summary(roots, pixels, encode):
    root = roots[folder]
    (root / "train" / "cat" / "3.png").write_bytes(encode(pixels[0, :, :28, :28], mode="RGBA"))
    Image.new("LA", (8, 9)).save(root / "train" / "cat" / "4.png")
    first, again = (folder(root, in_memory=False).summary for _ in range(2))
    assert first == again == folder(root).summary
    changes = "1 image with transparency composited on white, resized from 8x9 and 28x28 to 32x32"
    assert first == f"tree: 8 training and 6 test images, 2 classes, {changes}"


@pytest.mark.parametrize("source", [folder, parquet])
def test_source_on_disk_notices_a_file_of_the_same_size_and_time(roots, source, pixels, encode, write_parquet):
    root = roots[source]
    source(root, in_memory=False)
    if source is folder:
        file = root / "train" / "dog" / "2.png"
        other = encode(pixels[0], "BMP"), encode(pixels[5], "BMP")
        file.write_bytes(other[1])
    else:
        file = root / "train.parquet"
        other = [file.read_bytes()] * 2
    source(root, in_memory=False)
    before = file.stat()
    changed = bytearray(other[0])
    if source is parquet:
        place = changed.index(b"\x89PNG", changed.index(b"\x89PNG") + 4)
        changed[place : place + 4] = b"NoNo"
    file.write_bytes(changed)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if source is folder:
        assert torch.equal(source(root, in_memory=False).train_x[:][5], pixels[0])
    else:
        with pytest.raises(UserError, match="row 1: damaged"):
            source(root, in_memory=False)


def test_folder_on_disk_notices_files_that_changed_places(roots):
    """Neither file was written to; a rename of their folders leaves even their times as they are."""
    root = roots[folder]
    before = folder(root, in_memory=False).train_x[:]
    for path in root.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (root / "train" / old).rename(root / "train" / new)
    assert torch.equal(folder(root, in_memory=False).train_x[:], before[[3, 4, 5, 0, 1, 2]])


def test_source_on_disk_keeps_one_version_of_each_size(roots, pixels, encode):
    root, kept = roots[folder], roots[folder] / ".decoded"
    kept.mkdir()
    for name in ("0123456789abcdef.npy", "0123456789abcdef.json", "mine.npy"):
        (kept / name).touch()
    (kept / f".folder-test-8.npy.{'0' * 32}").touch()
    os.utime(kept / f".folder-test-8.npy.{'0' * 32}", (0, 0))  # from a killed process
    for image in (pixels[0], pixels[1]):
        (root / "train" / "dog" / "2.png").write_bytes(encode(image))
        folder(root, in_memory=False)
    folder(root, 16, in_memory=False)
    stems = [f"folder-{split}-{size}" for split in ("test", "train") for size in (16, 32)]
    assert sorted(path.name for path in kept.iterdir()) == [
        *(stem + suffix for stem in stems for suffix in (".json", ".npy")),
        "mine.npy",
    ]


def cut(file, facts):
    os.truncate(file, 1000)


def flip(file, facts):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def other_type(file, facts):
    np.save(file, np.load(file).astype(np.int8))


def as_archive(file, facts):
    pixels = np.load(file)
    with open(file, "wb") as opened:
        np.savez(opened, pixels)


def known(text):
    return lambda file, facts: facts.write_text(text)


def no_facts(file, facts):
    facts.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, flip, other_type, as_archive, no_facts),
        *map(known, ("", "[]", "[true, 3, {}]", "[" * 100_000, '{"key": "k", "known": 3}', "{}")),
    ],
)
def test_decode_decodes_again_what_is_damaged(tmp_path, pixels, encode, damage):
    encoded, cache = [("first", encode(pixels[0], "JPEG"))], Cache(tmp_path / "some", "k")
    first = decode(encoded, 1, 16, cache)
    wanted = first.x[:]
    damage(tmp_path / "some.npy", tmp_path / "some.json")
    again = decode(encoded, 1, 16, cache)
    assert torch.equal(again.x[:], wanted)
    assert again[1:] == first[1:] == (True, {(32, 32)}, {})


def test_decode_leaves_no_file_when_it_fails(tmp_path, pixels, encode):
    cache = Cache(tmp_path / ".decoded" / "some", "k")
    with pytest.raises(UserError, match="third: damaged"):
        decode([("first", encode(pixels[0])), ("second", encode(pixels[1])), ("third", b"?")], 3, 32, cache)
    assert not list(cache.path.parent.iterdir())


def test_cache_of_depends_on_files_and_size(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"12")
    before = cache_of(tmp_path, "a", [file], 32)
    assert cache_of(tmp_path, "a", [file], 32) == before
    assert cache_of(tmp_path, "a", [file], 16).path != before.path
    assert cache_of(tmp_path, "b", [file], 32).path != before.path
    file.write_bytes(b"1")
    assert cache_of(tmp_path, "a", [file], 32).key != before.key


def test_decode_names_the_file_it_cannot_write(tmp_path, pixels, encode):
    (tmp_path / ".decoded").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"\.decoded/some\..*data.in_memory=false"):
        decode([("first", encode(pixels[0]))], 1, 32, Cache(tmp_path / ".decoded" / "some", "k"))


def test_decode_on_a_full_disk_is_an_error_and_no_crash(tmp_path, pixels, encode, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"some\.npy: No space left on device; data.in_memory=false"):
        decode([("first", encode(pixels[0]))], 1, 32, Cache(tmp_path / "some", "k"))
    assert not list(tmp_path.iterdir())


def test_decode_names_an_image_that_cannot_be_read(tmp_path):
    images = ((str(path), path.read_bytes()) for path in [tmp_path / "gone.png"])
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        decode(images, 1, 32, Cache(tmp_path / ".decoded" / "some", "k"))


# --- pixels


def test_cache_has_a_place_for_each_size_and_number_of_channels(tmp_path):
    file = tmp_path / "a"
    file.touch()
    forms = [(32, None), (32, 1), ([32, 48], 3), ([48, 32], 3), ([48, 32], 1)]
    assert len({cache_of(tmp_path, "a", [file], *form).path for form in forms}) == len(forms)
    assert cache_of(tmp_path, "a", [file], 32, 3) == cache_of(tmp_path, "a", [file], 32)


LIMITED = rf"""
import re, resource
from pathlib import Path
from kd.data.augment import Augment
from kd.data.folder import folder
from kd.data.module import DataModule
from kd.errors import UserError

def module(images):
    return DataModule(images, 0, 0, Augment(4, True, 0), 16, 0, in_memory=False)

# What the process takes once, for threads and modules, is not what the limit is about.
folder("few", 224)
next(iter(module(folder("few", 224, in_memory=False)).train_dataloader()))
taken = 1024 * int(re.search("VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (taken + {112 << 20},) * 2)
try:
    folder("set", 224)
except UserError as error:
    print(error)
images = folder("set", 224, in_memory=False)
data = module(images)
train, test = next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))
print(len(images.id), tuple(train.x.shape), len(test.y))
"""


def test_images_larger_than_the_limit_of_memory_are_read_from_disk(tmp_path):
    """196 MB of pixels, and 117 MB that a process of its own, where nothing else is freed, may still take."""
    Image.new("RGB", (224, 224), (10, 20, 30)).save(tmp_path / "image.png")
    file = (tmp_path / "image.png").read_bytes()
    for folder_name, counts in (("set", (600, 50)), ("few", (40, 40))):
        for split, count in zip(("train", "test"), counts, strict=True):
            for name in ("cat", "dog"):
                place = tmp_path / folder_name / split / name
                place.mkdir(parents=True)
                for i in range(count):
                    (place / f"{i}.png").write_bytes(file)
    program = tmp_path / "program.py"
    program.write_text(LIMITED)
    done = run(program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused, read = done.stdout.splitlines()
    assert re.fullmatch(r"1,200 images of 224x224 pixels do not fit .* data.in_memory=false", refused)
    # Test batches are at most twice a step's 16 images; the 50 are in two of them.
    assert read == "16 (16, 3, 224, 224) 25"
