import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.resize import images_of_size, resized


@pytest.mark.parametrize("size", [5, 13, 40])
def test_resized_is_what_decoding_makes_of_files(pixels, size):
    """One policy for arrays and files, but for rounding."""
    expected = [
        np.asarray(
            Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()).resize((size, size), Image.Resampling.BILINEAR)
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

    images = Builder(compose(["data=digits", "data.image_size=12", *source])[0]).images
    assert images.train_x.shape == (1438, 3, 12, 12)
    assert images.summary.endswith("resized from 8x8 to 12x12")
