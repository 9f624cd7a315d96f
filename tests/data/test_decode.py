import io
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.decode import change_notes, decode, read_rgb
from kd.errors import UserError


def saved(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def decoded(data, size=32):
    return decode([("the image", data)], 1, size)


GREY16 = (np.arange(1024) * 64 + 17).astype(np.uint16).reshape(32, 32)


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_decode_scales_16_bits_to_8(kind, dtype):
    found = decoded(saved(Image.fromarray(GREY16.astype(dtype)), kind))
    expected = torch.from_numpy(np.rint(GREY16 / 257)).to(torch.uint8)
    assert torch.equal(found.x[0], expected.expand(3, -1, -1))
    assert change_notes(found) == ("1 image of 16 bits scaled to 8",)
    mean = found.x.float().mean()
    assert 126 < mean < 129  # 254.8 if clipped


def test_decode_keeps_the_ends_of_16_bits():
    ends = np.array([[0, 128, 129, 257, 32639, 65406, 65407, 65535]] * 8, np.uint16)
    assert decoded(saved(Image.fromarray(ends)), 8).x[0, 0, 0].tolist() == [0, 0, 1, 1, 127, 254, 255, 255]


def test_decode_makes_a_transparent_grey_of_16_bits_white():
    grey = np.array([[1000, 2000], [1000, 2000]], np.uint16)
    found = decoded(saved(Image.fromarray(grey), transparency=1000), 2)
    assert found.x[0, :, 0].tolist() == [[255, 8]] * 3
    assert sum(found.changes.values()) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_decode_refuses_pixels_of_32_bits(dtype):
    with pytest.raises(UserError, match=r"^the image: pixels of 32 bits, .*; convert the image to 8 or 16 bits"):
        decoded(saved(Image.fromarray(GREY16.astype(dtype)), "TIFF"))


def half_red(mode):
    """An image whose left column is opaque and whose right column is not: red of alpha 51, a fifth."""
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 255))
    image.paste((255, 0, 0, 51), (1, 0, 2, 2))
    return image.quantize(4) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind", "left", "right"),
    [
        ("RGBA", "PNG", (255, 0, 0), (255, 204, 204)),
        ("RGBA", "TIFF", (255, 0, 0), (255, 204, 204)),
        ("RGBA", "WEBP", (255, 0, 0), (255, 204, 204)),
        ("P", "PNG", (255, 0, 0), (255, 204, 204)),
        ("LA", "PNG", (76, 76, 76), (219, 219, 219)),  # 76 * 0.2 + 255 * 0.8
    ],
)
def test_decode_composites_transparency_on_white(mode, kind, left, right):
    found = decoded(saved(half_red(mode), kind, **({"lossless": True} if kind == "WEBP" else {})), 2)
    assert tuple(found.x[0, :, 0, 0].tolist()) == left
    assert tuple(found.x[0, :, 0, 1].tolist()) == right
    assert change_notes(found) == ("1 image with transparency composited on white",)


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (9, 8, 7)), ("L", 9), ("P", 0), ("1", 0)])
def test_decode_makes_a_transparent_colour_white(mode, colour):
    image = Image.new(mode, (4, 4), colour)
    assert decoded(saved(image, transparency=colour), 4).x.min() == 255


def test_decode_counts_no_opaque_image_as_transparent():
    found = decoded(saved(Image.new("RGBA", (4, 4), (10, 20, 30, 255))), 4)
    assert found.x[0, :, 0, 0].tolist() == [10, 20, 30]
    assert not found.changes


CORNER = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
"""By EXIF orientation, where a viewer shows the pixel that is stored first."""

BESIDE = {1: (0, 1), 2: (0, -2), 3: (-1, -2), 4: (-1, 1), 5: (1, 0), 6: (1, -1), 7: (-2, -1), 8: (-2, 0)}
"""And the one that is stored to the right of it."""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", CORNER)
def test_decode_turns_images_upright(kind, orientation):
    image, exif = Image.new("RGB", (4 * 16, 3 * 16), "black"), Image.Exif()  # in blocks, which JPEG keeps apart
    image.paste((255, 255, 255), (0, 0, 16, 16))
    image.paste((128, 128, 128), (16, 0, 32, 16))
    exif[0x0112] = orientation
    stored = saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    found = decoded(stored, 12)
    turned = orientation > 4
    assert found.resized_from == {(48, 64) if turned else (64, 48)}
    blocks = found.x[0, 0].view(3, 4, 4, 3) if turned is False else found.x[0, 0].view(4, 3, 3, 4)
    blocks = blocks.float().mean(dim=(1, 3))
    assert blocks[CORNER[orientation]] > 200
    assert 100 < blocks[BESIDE[orientation]] < 156
    assert change_notes(found) == (("1 image turned upright as EXIF has it",) if orientation > 1 else ())


def test_decode_reads_a_png_whose_orientation_lies_behind_its_pixels():
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.new("RGB", (2, 1), "white")
    image.putpixel((0, 0), (0, 0, 0))
    data = saved(image, exif=exif)
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    end = data.index(b"IEND") - 4
    moved = data[:start] + data[start + len(chunk) : end] + chunk + data[end:]
    assert decode([("a", moved)], 1, 2).x[0, 0, 0].tolist() == [255, 0]


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0MM\0*" + b"\xff" * 40])
def test_decode_ignores_damaged_exif(exif):
    found = decoded(saved(Image.new("RGB", (4, 4), (10, 20, 30)), exif=exif), 4)
    assert found.x[0, :, 0, 0].tolist() == [10, 20, 30]
    assert not found.changes


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_decode_takes_the_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((0, 0, 255), (255, 0, 0))]
    settings = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(saved(frames[0], kind, save_all=True, append_images=frames[1:], **settings), 4)
    assert found.x[0, :, 0, 0].tolist() == [0, 0, 255]
    assert change_notes(found) == ("1 image of several frames, the first taken",)


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "BMP"), ("P", "GIF")])
def test_decode_converts_other_colour_spaces(mode, kind):
    image = Image.new("RGB", (16, 16), (200, 200, 200))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    assert (decoded(saved(image, kind), 16).x.int() - 200).abs().max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n",
        b"P6 1 1 255\nabc",
        b"\0\0\1\0\1\0\1\1\0\0\1\0\x20\0",
        b"SIMPLE  =                    T",
    ],
)
def test_decode_reads_no_other_format(data, monkeypatch):
    """A .png that begins with %!PS would go to Ghostscript, a program that reads and writes files."""
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(UserError, match=r"^the image: damaged, or not an image \(PNG, JPEG, WebP, BMP, GIF, TIFF\)"):
        decoded(data)


@pytest.mark.parametrize("side", [8001, 10_000, 20_000])  # from the second on PIL warns, at the third it refuses
def test_decode_refuses_an_image_of_too_many_pixels_by_its_header(side, monkeypatch):
    data = bytearray(saved(Image.new("1", (8, 8))))
    data[16:24] = side.to_bytes(4, "big") * 2
    crc = zlib.crc32(data[12:29])
    data[29:33] = crc.to_bytes(4, "big")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(UserError, match=r"^the image: .*pixels are more than 64 megapixels; make the image smaller$"):
        decoded(bytes(data))


def test_decode_refuses_a_size_that_memory_does_not_hold():
    with pytest.raises(UserError, match=r"images of 4096x4096 pixels do not fit into memory; .*data.source.image_size"):
        decode([], 10**9, 4096)


def test_decode_names_a_file_in_one_line_of_printable_text():
    with pytest.raises(UserError, match=r"^a\\n\\x1b\[31m\\udce9: damaged"):
        decode([("a\n\x1b[31m\udce9", b"")], 1, 8)


def test_read_rgb_refuses_damaged_pixels_of_a_png_with_transparency():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8), "RGBA").save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[60] ^= 255  # in the compressed pixels
    with pytest.raises(UserError, match="damaged"):
        read_rgb("a.png", bytes(data), Counter())


@pytest.mark.parametrize("channels", [1, 3])
def test_decode_resizes_to_height_and_width_as_pil_does(pixels, channels):
    image = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    expected = image.convert("L" if channels == 1 else "RGB").resize((24, 10), Image.Resampling.BILINEAR)
    found = decode([("a", saved(image))], 1, [10, 24], channels=channels)
    assert torch.equal(found.x[0], torch.from_numpy(np.array(expected).reshape(10, 24, channels)).permute(2, 0, 1))
    assert found.resized_from == {(32, 32)}
