import os

import pytest
import torch

from kd.data.decode import cache_path, decode
from kd.data.folder import folder
from kd.data.parquet import parquet
from kd.errors import UserError


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
    assert torch.equal(first.train_x, in_memory.train_x)
    assert torch.equal(first.test_x, in_memory.test_x)
    assert first.mean_std == in_memory.mean_std

    monkeypatch.setattr("kd.data.decode.Image.open", None)
    again = source(root, in_memory=False)
    assert (again.id, again.name) == (in_memory.id, in_memory.name)


@pytest.mark.parametrize("source", [folder, parquet])
def test_source_on_disk_decodes_a_changed_file_again(roots, source, pixels, encode, write_parquet):
    root = roots[source]
    source(root, in_memory=False)
    if source is folder:
        (root / "train" / "dog" / "2.png").write_bytes(encode(pixels[0]))
    else:
        png = [encode(pixels[i]) for i in (0, 1, 2, 3, 4, 0)]
        write_parquet(root / "train.parquet", png, [0, 0, 0, 1, 1, 1], ("cat", "dog"))
    assert torch.equal(source(root, in_memory=False).train_x[5], pixels[0])


def test_source_on_disk_keeps_the_jpeg_mark(roots, pixels, encode):
    root = roots[folder]
    (root / "train" / "cat" / "3.png").write_bytes(encode(pixels[0], "JPEG"))
    assert [folder(root, in_memory=False).name for _ in range(2)] == ["tree (JPEG)"] * 2


def test_decode_leaves_no_file_when_it_fails(tmp_path, pixels, encode):
    cache = tmp_path / ".decoded" / "some"
    with pytest.raises(UserError, match="third: damaged"):
        decode([("first", encode(pixels[0])), ("second", encode(pixels[1])), ("third", b"?")], 3, 32, cache)
    assert not list(cache.parent.iterdir())


def test_kept_path_depends_on_files_and_size(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"12")
    before = cache_path(tmp_path, [file], 32)
    assert cache_path(tmp_path, [file], 32) == before
    assert cache_path(tmp_path, [file], 16) != before
    file.write_bytes(b"1")
    assert cache_path(tmp_path, [file], 32) != before


def test_decode_names_the_file_it_cannot_write(tmp_path, pixels, encode):
    (tmp_path / ".decoded").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"\.decoded/some.npy.*data.in_memory=false"):
        decode([("first", encode(pixels[0]))], 1, 32, tmp_path / ".decoded" / "some")


def test_decode_names_an_image_that_cannot_be_read(tmp_path):
    images = ((str(path), path.read_bytes()) for path in [tmp_path / "gone.png"])
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        decode(images, 1, 32, tmp_path / ".decoded" / "some")


def test_decode_replaces_truncated_pixels(tmp_path, pixels, encode):
    encoded = [(str(i), encode(x)) for i, x in enumerate(pixels)]
    cache = tmp_path / "some"
    decode(encoded, 12, 32, cache)
    os.truncate(tmp_path / "some.npy", 9000)
    assert torch.equal(decode(encoded, 12, 32, cache).x, pixels)
