import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy.stats import chisquare
from torch import Generator, tensor

from kd.data.augment import Augment

VIEWS = 162


def noise(n, size=8, channels=3):
    return torch.randint(1, 256, (n, channels, size, size), dtype=torch.uint8, generator=Generator().manual_seed(0))


def torchvision_view(image, view, crop):
    dy, dx, flip = view // 2 // (2 * crop + 1), view // 2 % (2 * crop + 1), view % 2
    image = tv.crop(tv.pad(image, crop), dy, dx, *image.shape[-2:])
    return tv.horizontal_flip(image) if flip else image


def test_augment_apply_matches_torchvision_for_every_view():
    x = noise(VIEWS, size=32)
    augmented = Augment(4, True, 0).apply(x, torch.arange(VIEWS))
    assert (augmented.dtype, augmented.shape) == (torch.uint8, x.shape)
    for view in range(VIEWS):
        assert torch.equal(augmented[view], torchvision_view(x[view], view, 4)), view


@pytest.mark.parametrize("crop", [0, 1, 2, 7])
def test_augment_apply_matches_torchvision_at_other_paddings(crop):
    views = torch.arange((2 * crop + 1) ** 2 * 2)
    x = noise(len(views))
    augmented = Augment(crop, True, 0).apply(x, views)
    assert all(torch.equal(augmented[view], torchvision_view(x[view], view, crop)) for view in range(len(views)))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("crop", [0, 1, 4])
def test_augment_plain_view_is_the_image_itself(crop, flip):
    augment = Augment(crop, flip, 0)
    x = noise(3)
    assert torch.equal(augment.apply(x, torch.full((3,), augment.plain_view)), x)


def test_augment_apply_moves_floats_as_bytes():
    augment, views, x = Augment(4, True, 0), torch.arange(VIEWS), noise(VIEWS)
    assert torch.equal(augment.apply(x.float(), views), augment.apply(x, views).float())


def test_augment_draw_is_uniform_over_views():
    views = Augment(4, True, 0).draw(200 * VIEWS, Generator().manual_seed(0))
    assert views.dtype == torch.int64
    assert chisquare(views.bincount(minlength=VIEWS)).pvalue > 0.01


def test_augment_draw_is_independent_per_image_and_uses_the_generator_alone():
    augment = Augment(4, True, 0)
    views = augment.draw(64, Generator().manual_seed(1))
    assert len(views.unique()) > 32
    torch.manual_seed(5)
    assert torch.equal(augment.draw(64, Generator().manual_seed(1)), views)
    assert not torch.equal(augment.draw(64, Generator().manual_seed(2)), views)


def test_augment_without_flip_never_mirrors():
    augment = Augment(1, False, 0)
    views = augment.draw(2000, Generator().manual_seed(0))
    assert views.unique().tolist() == list(range(0, 18, 2))
    x = noise(18)
    augmented = augment.apply(x, torch.arange(18))
    assert all(torch.equal(augmented[view], torchvision_view(x[view], view // 2 * 2, 1)) for view in range(18))


@pytest.mark.parametrize(
    ("side", "centre", "rows", "columns"),
    [
        (1, (2, 1), [2], [1]),
        (3, (0, 5), [0, 1], [4, 5]),  # rows -1..1 and columns 4..6, as far as they are inside
        (3, (2, 3), [1, 2, 3], [2, 3, 4]),
        (2, (0, 0), [0], [0]),  # an even square reaches one further up and left
        (2, (2, 3), [1, 2], [2, 3]),
        (4, (5, 3), [3, 4, 5], [1, 2, 3, 4]),
        (20, (3, 3), range(6), range(6)),
    ],
)
def test_augment_cut_zeroes_the_square_by_hand(side, centre, rows, columns):
    x = noise(2, size=6).float()
    expected = x.clone()
    for row in rows:
        for column in columns:
            expected[0, :, row, column] = 0
    original = x.clone()
    uncut = (100, 100)  # outside: each image has its own square
    assert torch.equal(Augment(0, False, side).cut(original, tensor([centre, uncut])), expected)
    assert torch.equal(original, x)


@pytest.mark.parametrize("name", ["crop", "cutout"])
def test_augment_refuses_negative_pixels(name):
    with pytest.raises(ValueError, match=rf"data.augment.{name} must be a whole number in \[0, inf\), got -1"):
        Augment(**{"crop": 4, "flip": True, "cutout": 0, name: -1})


@pytest.mark.parametrize("flip", ["no", "false", 0, 1, None])
def test_augment_refuses_a_flip_that_is_no_switch(flip):
    with pytest.raises(
        ValueError, match=f"^data.augment.flip must be true or false, got {'null' if flip is None else flip}$"
    ):
        Augment(4, flip, 0)


def test_augment_of_a_wide_image_matches_torchvision():
    x = torch.randint(1, 256, (18, 1, 5, 9), dtype=torch.uint8, generator=Generator().manual_seed(0))
    augmented = Augment(1, True, 0).apply(x, torch.arange(18))
    assert all(torch.equal(augmented[view], torchvision_view(x[view], view, 1)) for view in range(18))
    cut = Augment(0, False, 3).cut(x.float(), tensor([[1, 7]] * 18))
    assert torch.equal((cut == 0).nonzero()[:9, 2:], torch.cartesian_prod(torch.arange(0, 3), torch.arange(6, 9)))


def test_augment_check_size_is_about_the_shorter_side():
    Augment(4, True, 3).check_size([4, 9])
    with pytest.raises(ValueError, match=r"^data.augment.crop must be at most 3 for images of 9x3 pixels, got 4$"):
        Augment(4, True, 0).check_size([3, 9])
