import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.resize import grey, images_of_channels, images_of_size, resized
from kd.data.stored import chunks
from kd.errors import UserError


@pytest.mark.parametrize("size", [5, 13, 40, [12, 20]])
def test_resized_is_what_decoding_makes_of_files(pixels, size):
    """One policy for arrays and files, but for rounding."""
    width_height = size[::-1] if isinstance(size, list) else (size, size)
    expected = [
        np.asarray(
            Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()).resize(width_height, Image.Resampling.BILINEAR)
        )
        for x in pixels
    ]
    ours = resized(pixels, size).permute(0, 2, 3, 1).int()
    assert (ours - torch.from_numpy(np.stack(expected)).int()).abs().max() <= 1


def test_images_of_size_notes_the_former_size(noise):
    images = noise()
    assert images_of_size(images, 8) is images
    small = images_of_size(images, 4)
    assert small.train_x.shape == (40, 3, 4, 4)
    assert small.summary.endswith("resized from 8x8 to 4x4")
    with pytest.raises(ValueError, match=r"data.image_size must be a whole number in \[1, 4096\], got 0"):
        images_of_size(images, 0)


@pytest.mark.parametrize("source", [(), ("~data.source.image_size",)], ids=["by the source", "afterwards"])
def test_image_size_of_the_data_is_for_every_source(source):
    from kd.app.build import Builder
    from kd.app.compose import compose

    images = Builder(compose(["data=digits", "data.image_size=12", *source])).images
    assert images.train_x.shape == (1438, 3, 12, 12)
    assert images.summary.endswith("resized from 8x8 to 12x12")


def test_images_of_size_takes_height_and_width(noise):
    wide = images_of_size(noise(), [4, 12])
    assert (wide.train_x.shape, wide.test_x.shape) == ((40, 3, 4, 12), (20, 3, 4, 12))
    assert wide.summary.endswith("resized from 8x8 to 12x4")
    assert (wide.image_size, noise().image_size) == ([4, 12], 8)


def test_grey_is_what_pil_makes_of_rgb(pixels):
    expected = [np.asarray(Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()).convert("L")) for x in pixels]
    assert torch.equal(grey(pixels)[:, 0], torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("change", [grey, lambda x: resized(x, 5), lambda x: resized(x, 40)])
def test_images_are_changed_a_few_at_a_time(pixels, monkeypatch, change):
    expected = change(pixels)
    monkeypatch.setattr("kd.data.stored.AT_ONCE", 3 * pixels[0].numel())
    assert len(list(chunks(pixels))) > 1
    assert torch.equal(change(pixels), expected)


def test_images_of_channels_keeps_what_was_grey(noise):
    images = noise()
    one = images_of_channels(images, 1)
    assert (one.channels, images.channels) == (1, 3)
    assert one.summary.endswith("made grey")
    three = images_of_channels(one, 3)
    assert torch.equal(images_of_channels(three, 1).train_x, one.train_x)
    assert images_of_channels(three, 3) is three
    many = replace(images, train_x=images.train_x.repeat(1, 4, 1, 1))
    with pytest.raises(UserError, match=r"^data.channels=1 is for grey and RGB images, and those of noise have 12 c"):
        images_of_channels(many, 1)


@pytest.mark.parametrize("source", ["fashion_mnist", "folder"])
def test_channels_of_the_data_are_for_every_source(tmp_path, source):
    """Grey images are as they were stored, whether the source decodes to one channel or is changed afterwards."""
    from kd.app.build import Builder
    from kd.app.compose import compose

    x = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    y = np.arange(20) % 10
    if source == "folder":
        for i, (image, label) in enumerate(zip(x, y, strict=True)):
            place = tmp_path / ("train" if i < 10 else "test") / str(label)
            place.mkdir(parents=True)
            Image.fromarray(image).save(place / "0.png")
    else:
        for split, part in (("train", slice(0, 10)), ("t10k", slice(10, 20))):
            head = struct.pack(">4i", 0x803, 10, 28, 28)
            (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(head + x[part].tobytes())
            (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(
                struct.pack(">2i", 0x801, 10) + y[part].astype(np.uint8).tobytes()
            )
    given = [f"data={source}", f"data.root={tmp_path}", "data.channels=1", "data.image_size=28"]
    images = Builder(compose(given)).images
    assert torch.equal(images.train_x, torch.from_numpy(x[:10, None]))
    assert torch.equal(images.test_x, torch.from_numpy(x[10:, None]))
