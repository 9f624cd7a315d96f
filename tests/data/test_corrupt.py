import errno
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.also_test import also_test
from kd.data.corrupt import CONTRAST, KINDS, NOISE, QUALITY, corrupted, write
from kd.data.images import Images
from kd.errors import UserError

RNG = np.random.default_rng(0)
SMOOTH = np.clip(np.cumsum(np.cumsum(RNG.normal(0, 1.5, (6, 32, 32, 3)), axis=1), axis=2) + 128, 0, 255).astype(
    np.uint8
)
GREY = np.full((4, 32, 32, 3), 128, np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_corrupted_worsens_with_the_severity(kind, channels):
    images = SMOOTH[..., :channels]
    found = list(corrupted(images, kind))
    assert [(each.shape, each.dtype) for each in found] == [(images.shape, np.uint8)] * 5
    apart = [np.abs(each.astype(float) - images).mean() for each in found]
    assert apart[0] > 0
    assert apart == sorted(apart)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupted_is_the_same_with_the_same_seed(kind):
    first, again, other = (np.stack(list(corrupted(SMOOTH, kind, seed))) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == ("noise" not in kind)


def test_gaussian_noise_has_the_published_spread():
    for severity, found in enumerate(corrupted(GREY, "gaussian_noise")):
        assert found.std() / 255 == pytest.approx(NOISE[severity], rel=0.03)
        assert found.mean() == pytest.approx(127.5, abs=0.7)


def test_shot_noise_is_that_of_a_count():
    """The variance of a count is its mean: half of 50 photons vary by 5, a tenth of all."""
    *_, found = corrupted(GREY, "shot_noise")
    assert found.std() / 255 == pytest.approx((0.5 * 50) ** 0.5 / 50, rel=0.03)


def test_impulse_noise_makes_a_share_black_or_white():
    *_, found = corrupted(GREY, "impulse_noise")
    assert (found == 0).mean() == pytest.approx(0.035, abs=0.005)
    assert (found == 255).mean() == pytest.approx(0.035, abs=0.005)
    assert ((found == 128) | (found == 0) | (found == 255)).all()


def test_defocus_blur_spreads_a_point_and_keeps_the_light():
    point = np.zeros((1, 15, 15, 1), np.uint8)
    point[0, 7, 7] = 250
    for severity, found in enumerate(corrupted(point, "defocus_blur")):
        lit = np.argwhere(found[0, ..., 0])
        assert found.sum() == pytest.approx(250, abs=12)  # each pixel loses what is after the point
        assert np.abs(lit - 7).max() <= (1, 1, 1, 2, 2)[severity]
        assert np.array_equal(found[0], found[0].swapaxes(0, 1))
    assert len(lit) == 9  # within 1.5 pixels


def test_brightness_keeps_hue():
    orange = np.full((1, 8, 8, 3), (200, 100, 0), np.uint8)
    mild, *_ = corrupted(orange, "brightness")
    assert mild[0, 0, 0] == pytest.approx(np.array([212.75, 106.4, 0]), abs=1)
    *_, severe = corrupted(orange, "brightness")
    assert severe[0, 0, 0] == pytest.approx(np.array([255, 127.5, 0]), abs=1)


def test_contrast_moves_pixels_towards_the_mean_of_their_image_and_channel():
    for severity, found in enumerate(corrupted(SMOOTH, "contrast")):
        mean = SMOOTH.mean(axis=(1, 2), keepdims=True)
        assert found == pytest.approx((SMOOTH - mean) * CONTRAST[severity] + mean, abs=1.01)


def test_jpeg_compression_is_that_of_pillow():
    for severity, found in enumerate(corrupted(SMOOTH[:1], "jpeg_compression")):
        file = io.BytesIO()
        Image.fromarray(SMOOTH[0]).save(file, "JPEG", quality=QUALITY[severity])
        assert np.abs(found[0].astype(int) - np.asarray(Image.open(file))).max() <= 1


def test_pixelate_has_blocks():
    *_, found = corrupted(SMOOTH[:1], "pixelate")
    assert len(np.unique(found[0].reshape(32, -1), axis=0)) == int(32 * 0.65)


def test_write_makes_a_folder_that_also_test_reads(tmp_path):
    labels = np.array([0, 1, 1, 0, 1, 0])
    x = torch.from_numpy(SMOOTH).permute(0, 3, 1, 2)
    images = Images("made", ("a", "b"), x, torch.from_numpy(labels), x, torch.from_numpy(labels))
    write(SMOOTH, labels, tmp_path / "made-C", seed=3)
    tests = also_test([str(tmp_path / "made-C")], images)
    assert len(tests) == 5 * len(KINDS)
    assert {test.mean_of for test in tests} == {"made-C (8 of 15 corruptions)"}
    severe = next(test for test in tests if test.name == "made-C/contrast/5")
    *_, expected = corrupted(SMOOTH, "contrast", 3)
    assert np.array_equal(severe.x[:].permute(0, 2, 3, 1).numpy(), expected)
    assert severe.y.tolist() == labels.tolist()


def test_write_refuses_a_folder_that_holds_something(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        write(SMOOTH, np.zeros(6, np.int64), tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(errno.ENOSPC, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_write_that_ends_early_leaves_nothing(tmp_path, monkeypatch, error, told):
    """A mapped file without its space would end the process when it is written to."""
    left = [2]

    def full(*_):
        left[0] -= 1
        if left[0] < 0:
            raise error

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(told, match="cannot be written: No space left" if told is UserError else None):
        write(SMOOTH, np.zeros(6, np.int64), tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())
