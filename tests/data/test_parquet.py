import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kd.data.parquet import parquet
from kd.errors import UserError

NAMES = ("cat", "dog", "eel")
LABELS = [0, 1, 2, 2, 1, 0]


@pytest.fixture
def root(tmp_path, pixels, encode, write_parquet):
    """Six training images in train.parquet, six test images in test.parquet."""
    write_parquet(tmp_path / "set" / "train.parquet", [encode(x) for x in pixels[:6]], LABELS, NAMES)
    write_parquet(tmp_path / "set" / "test.parquet", [encode(x) for x in pixels[6:]], LABELS, NAMES)
    return tmp_path / "set"


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("image", "label")])
def test_parquet_reads_what_was_written(tmp_path, pixels, encode, write_parquet, image, label):
    encoded = [encode(x) for x in pixels]

    def write(name, rows, labels):
        write_parquet(tmp_path / "set" / name, encoded[rows], labels, NAMES, image, label)

    write("train-00001-of-00002.parquet", slice(4, 6), LABELS[4:])
    write("train-00000-of-00002.parquet", slice(0, 4), LABELS[:4])
    write("deeper/test-00000-of-00001.parquet", slice(6, 12), LABELS)
    (tmp_path / "set" / "validation-00000-of-00001.parquet").write_text("must not be read")

    images = parquet(str(tmp_path / "set"))
    assert images.name == "set"
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


def assert_refused(root, *needles):
    with pytest.raises(UserError) as caught:
        parquet(root)
    for needle in needles:
        assert str(needle) in str(caught.value)
    assert "\n" not in str(caught.value)


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
    write_parquet(root / "more" / "train.parquet", [encode(pixels[0])], [0], ["apple", "pear", "plum"])
    assert_refused(root, "train.parquet", "other classes")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"picture": [{"bytes": b""}], "label": [0]}, "img or image"),
        ({"img": [b""], "label": [0]}, "img or image"),
        ({"img": [{"path": "a"}], "label": [0]}, "img or image"),
        ({"img": [{"bytes": b""}], "class": [0]}, "label or fine_label"),
        ({"img": [{"bytes": b""}], "label": ["cat"]}, "label or fine_label"),
    ],
)
def test_parquet_names_a_missing_column(root, columns, expected):
    pq.write_table(pa.table(columns), root / "train.parquet")
    assert_refused(root, root / "train.parquet", expected, *columns)


@pytest.mark.parametrize("split", ["train", "test"])
def test_parquet_names_a_missing_split(root, split):
    (root / f"{split}.parquet").rename(root / "validation.parquet")
    assert_refused(root, root, f"*{split}*.parquet", "validation.parquet", "data.root")


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
