"""Columns, labels and bytes of parquet files, sound, damaged and lying."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kd.data.parquet import _read, _values, parquet
from kd.errors import UserError
from tests.data.parquets import LABELS, NAMES, assert_refused
from tests.fuzz.lies import Parquet, changed


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("image", "label")])
def test_parquet_reads_what_was_written(tmp_path, pixels, encode, write_parquet, image, label):
    encoded = [encode(x) for x in pixels]

    def write(name, rows, labels):
        write_parquet(tmp_path / "set" / name, encoded[rows], labels, NAMES, image, label)

    write("train-00001-of-00002.parquet", slice(4, 6), LABELS[4:])
    write("train-00000-of-00002.parquet", slice(0, 4), LABELS[:4])
    write("test-00000-of-00001.parquet", slice(6, 12), LABELS)
    (tmp_path / "set" / "validation-00000-of-00001.parquet").write_text("must not be read")

    images = parquet(str(tmp_path / "set"))
    assert images.name == "set"
    not_used = "1 file passed over (1 .parquet of a validation split)"
    assert images.summary == f"set: 6 training and 6 test images, 3 classes, {not_used}"
    assert images.classes == NAMES
    assert torch.equal(images.train_x, pixels[:6])
    assert torch.equal(images.test_x, pixels[6:])
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert y.tolist() == LABELS
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        assert x.is_contiguous()


def test_parquet_numbers_classes_without_names(root, pixels, encode, write_parquet):
    for split in ("train", "test"):
        write_parquet(root / f"{split}.parquet", [encode(pixels[0])] * 6, LABELS)
    assert parquet(root).classes == ("0", "1", "2")


def test_parquet_name_marks_reencoded_training_images(root, pixels, encode, write_parquet):
    jpeg = [encode(x, "JPEG") for x in pixels[:6]]
    write_parquet(root / "test.parquet", jpeg, LABELS, NAMES)
    assert parquet(root, name="pets").name == "pets"
    write_parquet(root / "train.parquet", jpeg, LABELS, NAMES)
    assert parquet(root, name="pets").name == "pets (JPEG)"
    assert parquet(root).name == "set (JPEG)"


def test_parquet_resizes_only_images_of_another_size(root, pixels, encode, write_parquet):
    large = pixels[0].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    plain = torch.full((3, 5, 7), 200, dtype=torch.uint8)
    checked = torch.arange(128)[None, :, None].add(torch.arange(128)).remainder(2).mul(255).byte().expand(3, -1, -1)
    encoded = [encode(x) for x in (pixels[0], large, plain, checked)]
    write_parquet(root / "train.parquet", encoded, LABELS[:4], NAMES)
    same, shrunk, grown, grey = parquet(root).train_x
    assert torch.equal(same, pixels[0])
    assert (shrunk.float() - pixels[0].float()).abs().mean() < 40  # unrelated noise would differ by 85
    assert (grown == 200).all()
    assert (grey.float() - 127.5).abs().max() < 2  # all 0 or all 255 without antialiasing
    assert parquet(root, image_size=16).test_x.shape == (6, 3, 16, 16)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_parquet_converts_other_colour_modes_to_rgb(root, encode, write_parquet, mode):
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    white[:, 0, 0] = 0
    write_parquet(root / "train.parquet", [encode(white, mode=mode)] * 6, LABELS, NAMES)
    assert torch.equal(parquet(root).train_x[3], white)


@pytest.mark.parametrize("left", [0, 3, 500, -1])
def test_parquet_names_a_truncated_file(root, left):
    file = root / "test.parquet"
    file.write_bytes(file.read_bytes()[:left])
    assert_refused(root, file, "parquet", "download it again")


def test_parquet_names_a_file_with_a_damaged_page(root):
    """A byte of the first column's first page header, which gives the page's encoding."""
    file = root / "train.parquet"
    data = bytearray(file.read_bytes())
    data[5:9] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    assert_refused(root, file, "download it again")


def test_parquet_names_the_row_of_a_damaged_image(root, pixels, encode):
    file, image = root / "train.parquet", encode(pixels[3])
    damaged = bytearray(image)
    damaged[len(image) // 2] ^= 0xFF
    assert file.read_bytes().count(image) == 1
    file.write_bytes(file.read_bytes().replace(image, damaged))
    assert_refused(root, file, "row 3:", "download it again")


@pytest.mark.parametrize("data", [b"", b"no image", None])
def test_parquet_names_the_row_without_an_image(root, pixels, encode, write_parquet, data):
    write_parquet(root / "test.parquet", [encode(pixels[0]), data], LABELS[:2], NAMES)
    assert_refused(root, root / "test.parquet", "row 1:")


@pytest.mark.parametrize("label", [None, -1, 3, 10**12])
@pytest.mark.parametrize("names", [NAMES, None])
def test_parquet_names_the_row_of_a_bad_label(root, pixels, encode, write_parquet, label, names):
    for split in ("train", "test"):
        write_parquet(root / f"{split}.parquet", [encode(pixels[0])] * 6, LABELS, names)
    write_parquet(root / "test.parquet", [encode(pixels[0])] * 3, [0, 1, label], names)
    assert_refused(root, root / "test.parquet", "row 2:", "label")


def test_parquet_names_a_stray_label_without_class_names(root, pixels, encode, write_parquet):
    write_parquet(root / "test.parquet", [encode(pixels[0])] * 6, LABELS)
    write_parquet(root / "train.parquet", [encode(pixels[0])] * 4, [0, 10**12, 1, 2])
    assert_refused(root, root / "train.parquet", "row 1:", "label")


def test_parquet_refuses_a_file_without_rows(root, write_parquet):
    write_parquet(root / "test.parquet", [], [], NAMES)
    assert_refused(root, root / "test.parquet", "no rows")


def test_parquet_refuses_files_with_other_class_names(root, pixels, encode, write_parquet):
    write_parquet(root / "test.parquet", [encode(pixels[0])], [0], ["apple", "pear", "plum"])
    assert_refused(root, root / "test.parquet", "other classes")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"picture": [{"bytes": b""}], "label": [0]}, "no column img or image or bytes of encoded images"),
        ({"img": ["text"], "label": [0]}, "no column img or image or bytes of encoded images"),
        ({"img": [{"bytes": "text"}], "label": [0]}, "no column img or image or bytes of encoded images"),
        ({"img": [{"path": "a"}], "label": [0]}, "no column img or image or bytes of encoded images"),
        ({"img": [b""], "class": [0]}, "no column label or labels or fine_label or fine_labels of integers or names"),
        ({"img": [b""], "label": [0.5]}, "no column label or labels or fine_label"),
        ({"img": [b""], "label": [True]}, "no column label or labels or fine_label"),
        ({"img": [b""], "image": [b""], "label": [0]}, "several columns img and image of encoded images"),
        ({"img": [b""], "label": [0], "labels": [0]}, "several columns label and labels of integers or names"),
    ],
)
def test_parquet_names_a_missing_column(root, columns, expected):
    pq.write_table(pa.table(columns), root / "train.parquet")
    assert_refused(root, root / "train.parquet", expected, *columns)


@pytest.mark.parametrize("split", ["train", "test"])
def test_parquet_names_a_missing_split(root, split):
    (root / f"{split}.parquet").rename(root / "latest-constraints.parquet")  # the splits' names within words
    assert_refused(root, root, f"*{split}*.parquet", "latest-constraints.parquet", "data.root")


# --- what is in them


def write_columns(root, image, label, metadata=None):
    """Write both splits with these columns."""
    for split in ("train", "test"):
        table = pa.table({"image": image, "label": label}).replace_schema_metadata(metadata)
        pq.write_table(table, root / f"{split}.parquet")


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.list_(pa.uint8()),
        pa.large_list(pa.uint8()),
        pa.struct([("bytes", pa.large_binary())]),
        pa.struct([("bytes", pa.list_(pa.uint8())), ("path", pa.string())]),
    ],
)
def test_parquet_reads_bytes_of_every_type(root, pixels, encode, kind):
    encoded = [encode(x) for x in pixels[:3]]
    wrapped = [{"bytes": data} for data in encoded] if pa.types.is_struct(kind) else encoded
    if "list" in str(kind):
        wrapped = [{"bytes": list(data)} if pa.types.is_struct(kind) else list(data) for data in encoded]
    write_columns(root, pa.array(wrapped, kind), [0, 1, 2])
    assert torch.equal(parquet(root).train_x, pixels[:3])
    write_columns(root, pa.array([*wrapped[:2], None], kind), [0, 1, 2])
    assert_refused(root, f"{root / 'train.parquet'}, row 2: image is missing")


def test_parquet_reads_more_rows_than_are_in_memory_at_a_time(root, pixels, encode, monkeypatch):
    monkeypatch.setattr("kd.data.parquet.ROWS", 2)
    assert torch.equal(parquet(root).train_x, pixels[:6])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_sorts_labels_that_are_names(root, pixels, encode, kind):
    encoded = [encode(x) for x in pixels[:4]]
    write_columns(root, encoded, pa.array(["dog", "cat", "eel", "cat"], kind))
    images = parquet(root)
    assert images.classes == ("cat", "dog", "eel")
    assert images.train_y.tolist() == images.test_y.tolist() == [1, 0, 2, 0]
    write_columns(root, encoded, pa.array(["10", "9", "0", "9"], kind))
    assert parquet(root).classes == ("0", "9", "10")


def test_parquet_names_the_row_of_a_name_that_training_lacks(root, pixels, encode):
    write_columns(root, [encode(x) for x in pixels[:2]], ["cat", "dog"])
    pq.write_table(pa.table({"img": [encode(pixels[0])], "label": ["e\nel"]}), root / "test.parquet")
    assert_refused(root, f"{root / 'test.parquet'}, row 0: label e\\nel is none of the 2 classes cat to dog; correct")


def test_parquet_refuses_names_in_one_split_and_numbers_in_the_other(root, pixels, encode):
    pq.write_table(pa.table({"img": [encode(pixels[0])], "label": ["cat"]}), root / "test.parquet")
    assert_refused(root, f"{root / 'test.parquet'}: its labels are names, unlike those of {root / 'train.parquet'}")


@pytest.mark.parametrize("label", [2**63, 2**64 - 1])
def test_parquet_names_the_row_of_a_label_beyond_64_bits(root, pixels, encode, label):
    write_columns(root, [encode(pixels[0])] * 2, pa.array([0, label], pa.uint64()), None)
    assert_refused(root, f"{root / 'train.parquet'}, row 1: label {label} is none of the 2 classes 0 to 1")


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]",
        b"null",
        b"3",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"info": []}',
        b'{"info": {"features": null}}',
        b'{"info": {"features": {"label": {"names": "cat"}}}}',
        b'{"info": {"features": {"label": {"names": [0, 1, 2]}}}}',
        b'{"info": {"features": {"label": {"names": ["cat", "dog", "cat"]}}}}',
    ],
)
def test_parquet_names_the_file_with_damaged_metadata(root, pixels, encode, metadata):
    write_columns(root, [encode(x) for x in pixels[:3]], [0, 1, 2], {"huggingface": metadata})
    assert_refused(root, f"{root / 'train.parquet'}: damaged metadata (huggingface); download the file again")


@pytest.mark.parametrize("metadata", [{}, {"huggingface": "{}"}, {"huggingface": '{"info": {"features": {}}}'}])
def test_parquet_numbers_classes_of_metadata_without_names(root, pixels, encode, metadata):
    write_columns(root, [encode(x) for x in pixels[:3]], [0, 1, 2], metadata)
    assert parquet(root).classes == ("0", "1", "2")


def test_parquet_refuses_a_column_that_unpacks_to_far_more(root, pixels, encode, monkeypatch):
    monkeypatch.setattr("kd.data.parquet.AT_A_TIME", 10_000)
    table = pa.table({"img": [encode(pixels[0]), bytes(1_000_000)], "label": [0, 1]})
    pq.write_table(table, root / "train.parquet", compression="zstd")
    assert_refused(root, f"{root / 'train.parquet'}: img unpacks from ", "; if you trust it, write it anew without")


def test_parquet_refuses_more_rows_than_bytes(root):
    """Equal values are stored once, and so many rows in a few bytes."""
    rows = 300_000
    table = pa.table({"img": pa.nulls(rows, pa.binary()), "label": pa.array(bytes(rows), pa.int8())})
    pq.write_table(table, root / "train.parquet")
    assert_refused(root, f"{root / 'train.parquet'}: 300,000 rows in ", " bytes, which no images are")


def test_parquet_unpacks_few_of_many_equal_values_at_a_time(root, pixels, encode, monkeypatch):
    monkeypatch.setattr("kd.data.parquet.AT_A_TIME", 2**16)
    images, labels = [encode(pixels[0])] * 300, [0, 1] * 150
    pq.write_table(pa.table({"img": images, "label": labels}), root / "train.parquet")  # 300 of 3 kB, stored as one
    with pq.ParquetFile(root / "train.parquet") as source:
        sizes = [column.nbytes for column in _values(source, "img", _read(root / "train.parquet").at_a_time)]
    assert max(sizes) <= 2**16 < sum(sizes)
    assert torch.equal(parquet(root).train_x, pixels[0].expand(300, 3, 32, 32))


def test_parquet_refuses_or_reads_a_file_that_lies_about_itself(root):
    """Each number of footer and page headers in turn; pyarrow ended the process (SIGABRT) for some of the footer's."""
    file, expected = root / "train.parquet", parquet(root).id
    whole = file.read_bytes()
    assert Parquet(whole).data() == whole
    refused = []
    for place in Parquet(whole).places():
        for value in (-1, 2**31 - 1):
            file.write_bytes(changed(whole, place.path, value))
            try:
                assert parquet(root).id == expected  # such as with another version of its writer
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 50
    assert [line for line in refused if str(file) not in line or "\n" in line] == []


@pytest.mark.parametrize("rows", [0, 5, 7, 2**40])
def test_parquet_names_a_file_that_lies_about_its_rows(root, rows):
    """Of the file and of the row group alike, as somebody would who knows of both."""
    file = root / "train.parquet"
    data = file.read_bytes()
    file.write_bytes(changed(changed(data, (0, 4, 0, 3), rows), (0, 3), rows))
    assert_refused(root, file, "rows")


def test_parquet_believes_the_pages_about_their_sizes(root, pixels, encode, monkeypatch):
    """A footer that claims less, so that 300 equal images of 3 kB would be unpacked at a time."""
    monkeypatch.setattr("kd.data.parquet.AT_A_TIME", 2**16)
    images, labels = [encode(pixels[0])] * 300, [0, 1] * 150
    pq.write_table(pa.table({"img": images, "label": labels}), root / "train.parquet")
    honest = (root / "train.parquet").read_bytes()
    claim = next(p for p in Parquet(honest).places() if p.path[-2:] == (3, 6) and p.value > 3000)
    (root / "train.parquet").write_bytes(changed(honest, claim.path, 9))
    assert _read(root / "train.parquet").at_a_time < 300
    assert torch.equal(parquet(root).train_x, pixels[0].expand(300, 3, 32, 32))


def test_parquet_refuses_a_list_of_millions_of_equal_values(root, monkeypatch):
    """A run of equal bytes is stored as its length: few bytes in the file and in its pages alike."""
    monkeypatch.setattr("kd.data.parquet.AT_A_TIME", 2**20)
    row = pa.ListArray.from_arrays([0, 2_000_000], pa.array(bytes(2_000_000), pa.uint8()))
    pq.write_table(pa.table({"img": row, "label": [0]}), root / "train.parquet")
    assert (root / "train.parquet").stat().st_size < 10_000
    assert_refused(root, f"{root / 'train.parquet'}: img unpacks from ", " bytes to 16,0")


@pytest.mark.parametrize("names", [("img", "img", "label"), ("img", "label", "label"), ("0", "img", "1"), ("", "", "")])
def test_parquet_refuses_columns_that_are_not_told_apart(root, pixels, encode, names):
    values = {"img": [encode(pixels[0])] * 2, "label": [0, 1]}
    table = pa.table([pa.array(values.get(name, [0, 1])) for name in names], names=list(names))
    pq.write_table(table, root / "train.parquet")
    assert_refused(root, root / "train.parquet", "column")


def test_parquet_takes_other_columns_of_any_name(root, pixels, encode):
    columns = {"img": [encode(pixels[0])] * 2, "0": [0, 1], "": [0, 1], "img.bytes": [0, 1], "label": [1, 0]}
    table = pa.table([*map(pa.array, columns.values()), pa.array([0, 1])], names=[*columns, "0"])
    pq.write_table(table, root / "train.parquet")
    pq.write_table(table, root / "test.parquet")
    assert parquet(root).train_y.tolist() == [1, 0]


def test_parquet_refuses_a_class_name_of_thousands_of_characters(root, pixels, encode):
    pq.write_table(pa.table({"img": [encode(pixels[0])], "label": ["x" * 2000]}), root / "train.parquet")
    assert_refused(root, f"{root / 'train.parquet'}: a class name of 2,000 characters, 'xxx", "...'; shorten it")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", ""])
def test_parquet_refuses_class_names_that_are_no_line_of_text(root, pixels, encode, write_parquet, name):
    for split in ("train", "test"):
        write_parquet(root / f"{split}.parquet", [encode(pixels[0])], [0], ["cat", name])
    assert_refused(root, f"{root / 'train.parquet'}: a class name ", "rename the class")


def test_parquet_names_a_missing_root(tmp_path):
    assert_refused(tmp_path / "nowhere", tmp_path / "nowhere", "No such file", "data.root")


def test_parquet_refuses_a_root_that_is_a_file(root):
    assert_refused(root / "train.parquet", "train.parquet", "Not a directory", "data.root")


def test_parquet_refuses_a_size_below_one(root):
    with pytest.raises(ValueError, match="image_size"):
        parquet(root, image_size=0)


def test_parquet_names_a_path_without_permission(public_path, as_nobody, pixels, encode, write_parquet):
    root = public_path / "set"
    for split in ("train", "test"):
        write_parquet(root / f"{split}.parquet", [encode(x) for x in pixels[:6]], LABELS, NAMES)
    parquet(root)
    (root / "test.parquet").chmod(0)
    with as_nobody():
        assert_refused(root, root / "test.parquet", "permission denied")
    root.chmod(0)
    with as_nobody():
        assert_refused(root, root, "Permission denied")
    root.chmod(0o700)
