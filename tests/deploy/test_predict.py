"""The program that classifies images: what it finds, what it prints, and what it does about images that are none."""

import csv
import io
import json
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from kd.deploy import predict
from kd.errors import UserError
from kd.inference import load
from tests.common import put_no_file
from tests.deploy.common import CLASSES, weights


@pytest.fixture
def photos(tmp_path):
    """Ten images of noise, two of them in a folder below, of different sizes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for i in range(10):
        pixels = rng.integers(256, size=(8 + i, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / ("below" if i > 7 else "") / f"{i}.png")
    return folder


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Calls the program in this process; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "end_with_the_pipe", lambda: None)  # not for the process that runs the tests
    weights(tmp_path / "student.safetensors")

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict.py", "student.safetensors", *map(str, arguments)])
        return predict.main(), *capsys.readouterr()

    return program


def test_predict_prints_what_the_loaded_network_answers(program, photos, tmp_path):
    code, printed, errors = program(photos, "--json", "--top", "2", "--batch-size", "3")
    assert (code, errors) == (0, "")
    answers = [json.loads(line) for line in printed.splitlines()]
    files = sorted(photos.rglob("*.png"))
    assert [answer["image"] for answer in answers] == [str(file) for file in files]
    network = load(tmp_path / "student.safetensors")
    for answer, file in zip(answers, files, strict=True):
        probabilities = network(network.preprocess(file)).logits.softmax(1)[0]
        order = probabilities.argsort(descending=True)[:2].tolist()
        assert [one["label"] for one in answer["top"]] == [CLASSES[place] for place in order]
        for one, place in zip(answer["top"], order, strict=True):
            assert one["probability"] == pytest.approx(probabilities[place].item(), rel=1e-4)
    assert len({answer["top"][0]["label"] for answer in answers}) > 1


@pytest.mark.parametrize("count", [2, 5])
def test_predict_writes_a_table_with_a_network_of_other_classes(program, photos, tmp_path, count):
    """Fewer or more: a cell for each name of a column."""
    teacher = weights(tmp_path / "teacher.safetensors", seed=1, classes=[f"c{i}" for i in range(count)])
    code, printed, _ = program(photos, "--teacher", teacher, "--csv", "--top", "9")
    header, *rows = csv.reader(io.StringIO(printed))
    assert code == 0
    assert {len(row) for row in rows} == {len(header)} == {1 + 2 * 2 * min(3, count)}


def test_predict_shows_another_network_beside_with_its_own_size(program, photos, tmp_path):
    teacher = weights(tmp_path / "teacher.safetensors", seed=1, size=16)
    code, printed, _ = program(photos / "0.png", "--teacher", teacher, "--csv", "--top", "9")
    (row,) = csv.DictReader(io.StringIO(printed))
    network = load(teacher)
    expected = network(network.preprocess(photos / "0.png")).logits.softmax(1)[0].sort(descending=True)
    assert code == 0
    assert [float(row[f"teacher_probability{end}"]) for end in ("", "_2", "_3")] == pytest.approx(
        expected.values.tolist(), abs=1e-5
    )
    assert {row["class"], row["class_2"], row["class_3"]} == {"cat", "'=dog", "eel"}  # no formula of a spreadsheet
    assert row["teacher_class"].strip("'") == CLASSES[expected.indices[0]]
    _, lines, _ = program(photos / "0.png", "--teacher", teacher)
    assert f"| teacher:  {CLASSES[expected.indices[0]]}" in lines


def test_predict_classifies_the_others_if_an_image_fails(program, photos):
    (photos / "broken.png").write_bytes(b"%!PS-Adobe")
    (photos / "cut.png").write_bytes((photos / "7.png").read_bytes()[:60])
    (photos.parent / "empty").mkdir()
    code, printed, errors = program(photos, "nowhere.png", "empty", "x*.png")
    assert code == 1
    assert len(printed.splitlines()) == 10
    assert [line.partition(": ")[2].split(":")[0] for line in errors.splitlines()] == [
        "empty",
        "x*.png",
        f"{photos}/broken.png",
        f"{photos}/cut.png",
        "no image at nowhere.png",
    ]


def saved(image, path, **options):
    image.save(path, **options)
    return path.name


def claimed(path, width, height):
    """Write a PNG whose header has another size than its pixels."""
    data = io.BytesIO()
    Image.new("L", (9, 9)).save(data, "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data.getvalue()[24:29]
    path.write_bytes(data.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + data.getvalue()[33:])


def test_predict_reads_images_of_every_kind(program, tmp_path):
    grey = np.arange(600, dtype=np.uint8).reshape(20, 30)
    photo = Image.fromarray(np.dstack([grey, grey[::-1], grey[:, ::-1]]))
    turned = Image.Exif()
    turned[0x0112] = 6
    names = [
        saved(photo, tmp_path / "animated.gif", save_all=True, append_images=[photo.rotate(90)]),
        saved(photo, tmp_path / "animated.webp", save_all=True, append_images=[photo.rotate(90)]),
        saved(Image.fromarray(grey.astype(np.uint16) << 8), tmp_path / "16_bits.png"),
        saved(Image.fromarray(grey.astype(np.uint16) << 8), tmp_path / "16_bits.tiff"),
        saved(photo.convert("CMYK"), tmp_path / "cmyk.jpg"),
        saved(photo.convert("L"), tmp_path / "grey.png"),
        saved(photo.convert("1"), tmp_path / "black_and_white.png"),
        saved(photo.quantize(8), tmp_path / "palette.png"),
        saved(Image.merge("RGBA", [*photo.split(), photo.split()[0]]), tmp_path / "transparent.png"),
        saved(photo, tmp_path / "turned.jpg", exif=turned),
        saved(Image.new("RGB", (50_000, 1)), tmp_path / "wide.png"),
    ]
    code, printed, errors = program(*names)
    assert (code, errors) == (0, "")
    assert [line.split()[0] for line in printed.splitlines()] == names


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("text.png", "text.png: damaged, or not an image (PNG, JPEG, WebP, BMP, GIF, TIFF); copy or download it again"),
        ("empty.png", "empty.png: damaged, or not an image"),
        ("float.tiff", "float.tiff: pixels of 32 bits, mode F, have no known range"),
        ("wide.png", "wide.png: 50,000x2,000 pixels are more than 64 megapixels"),
        ("huge.png", "huge.png: its pixels are more than 64 megapixels"),
        ("fifo.png", "fifo.png: not a regular file"),
        ("device.png", "device.png: not a regular file"),
        ("gigabytes.png", "gigabytes.png: above 1 GB, which no image is read of"),
        ("loop.png", "loop.png: Too many levels of symbolic links"),
        ("dangling.png", "no image at dangling.png"),
        ("directory", "directory: no images in this folder"),
        ("a" * 300, "File name too long"),
        ("~no_such_user/a.png", "no image at ~no_such_user/a.png"),
    ],
)
def test_predict_answers_what_is_no_image_in_a_line(program, tmp_path, name, answer):
    (tmp_path / "text.png").write_text("a cat")
    (tmp_path / "empty.png").touch()
    Image.new("F", (9, 9)).save(tmp_path / "float.tiff")
    claimed(tmp_path / "wide.png", 50_000, 2_000)
    claimed(tmp_path / "huge.png", 50_000, 50_000)
    for kind in ("fifo", "directory", "gigabytes", "device", "loop", "dangling"):
        put_no_file(tmp_path / (kind if kind == "directory" else f"{kind}.png"), kind)
    with warnings.catch_warnings(record=True) as warned:  # they would be further lines
        code, printed, errors = program(name)
    assert (code, printed, errors.count("\n"), warned) == (1, "", 1, [])
    assert answer in errors


def test_predict_goes_through_a_folder_with_a_link_to_itself(program, photos):
    (photos / "below" / "again").symlink_to(photos)
    code, printed, errors = program(photos)
    assert (code, len(printed.splitlines()), errors) == (0, 10, "")


def test_predict_finds_files_folders_and_patterns(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert predict.found("*/[89].png") == ["below/8.png", "below/9.png"]
    assert predict.found("**/*.png") == sorted(predict.found("**/*.png"), key=str)
    assert len(predict.found("**/*.png")) == len(predict.found("**")) == len(predict.found(".")) == 10
    (photos / "a[1].png").write_bytes(b"")  # a name, not a pattern
    assert predict.found("a[1].png") == ["a[1].png"]
    with pytest.raises(UserError, match="nothing has a name of this pattern"):
        predict.found("b[1].png")


def test_predict_draws_a_sheet(program, photos, tmp_path):
    code, printed, errors = program(photos, "--sheet", "sheet.png", "--teacher", "student.safetensors")
    assert (code, errors, len(printed.splitlines())) == (0, "", 10)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 1000
    assert np.asarray(sheet.convert("L")).std() > 10
    code, printed, errors = program(photos, "--sheet", "sheet.nothing")
    assert (code, len(printed.splitlines()), len(errors.splitlines())) == (1, 10, 1)
    assert "sheet.nothing: the picture cannot be written" in errors


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ((), "the following arguments are required: IMAGE; see --help"),
        (("a.png", "--top", "0"), "argument --top: must be at least 1, got 0; see --help"),
        (("a.png", "--json", "--csv"), "argument --csv: not allowed with argument --json; see --help"),
        (("a.png", "--device", "tpu9"), "--device tpu9: torch"),
        (("a.png", "--teacher", "nowhere"), "no weights at nowhere"),
        (("a.png", "--sheet", "no/where.png"), "no folder no; see --help"),
    ],
)
def test_predict_refuses_wrong_arguments_in_a_line(program, arguments, answer):
    code, printed, errors = program(*arguments)
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert answer in errors


def test_predict_escapes_names_that_would_act_on_the_terminal(program, photos):
    evil = photos / "\x1b[2J\nx.png"
    (photos / "0.png").rename(evil)
    _, printed, _ = program(evil)
    assert "\\x1b[2J\\nx.png" in printed
    assert printed.count("\n") == 1


def test_predict_refuses_files_to_a_network_of_many_channels(program, photos, tmp_path):
    weights(tmp_path / "student.safetensors", channels=5)
    code, printed, errors = program(photos / "0.png", photos / "1.png")
    assert (code, printed, errors.count("\n")) == (1, "", 2)
    assert "images must be pixels of 5 channels" in errors


def test_predict_reads_standard_input(program, photos, monkeypatch):
    _, expected, _ = program(photos / "1.png", "--json")
    with open(photos / "1.png", "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        code, printed, _ = program("-", "--json")
    assert code == 0
    assert json.loads(printed)["top"] == json.loads(expected)["top"]
