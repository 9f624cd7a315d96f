from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import RandAugment, TrivialAugmentWide

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.data.policy import _LARGEST as LARGEST
from kd.data.policy import OPERATIONS, SIGNED, Policy, draw
from kd.hashing import derive

PLAIN = Augment(1, True, 0)


def applied(x, name, *amounts, kind="trivialaugment"):
    operation = torch.full((len(amounts), 1), OPERATIONS.index(name))
    return Policy(kind, operation, torch.tensor(amounts)[:, None]).apply(x)


@pytest.fixture
def x(pixels):
    """Four images, one with little contrast, one flat."""
    x = pixels[:4].clone()
    x[1] = x[1] // 4 + 60
    x[2] = 77
    return x


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("identity", lambda x, m: x),
        ("brightness", lambda x, m: tv.adjust_brightness(x, 1 + 0.99 * m)),
        ("colour", lambda x, m: tv.adjust_saturation(x, 1 + 0.99 * m)),
        ("contrast", lambda x, m: tv.adjust_contrast(x, 1 + 0.99 * m)),
        ("sharpness", lambda x, m: tv.adjust_sharpness(x, 1 + 0.99 * m)),
        ("posterize", lambda x, m: tv.posterize(x, 8 - round(6 * abs(m)))),
        ("solarize", lambda x, m: tv.solarize(x, 255 * (1 - abs(m)))),
        ("autocontrast", lambda x, m: tv.autocontrast(x)),
        ("equalize", lambda x, m: tv.equalize(x)),
    ],
)
def test_operation_is_that_of_torchvision(x, name, reference):
    for amount in (1.0, 0.4, 0.0, -0.7):
        if amount < 0 and name not in SIGNED:
            continue
        ours = applied(x, name, *[amount] * 4).int()
        assert (ours - reference(x, amount).int()).abs().max() <= (name not in ("identity", "posterize", "equalize"))


def test_rotation_turns_about_the_centre(x):
    turned = applied(x, "rotate", *[90 / 135] * 4)
    assert torch.equal(turned, x.rot90(-1, dims=(2, 3)))
    assert torch.equal(applied(turned, "rotate", *[-90 / 135] * 4), x)


def test_translation_shifts_and_shows_black(x):
    shifted = applied(x, "translate_x", *[0.25] * 4)
    assert torch.equal(shifted[..., 8:], x[..., :-8])
    assert (shifted[..., :8] == 0).all()
    up = applied(x, "translate_y", *[-0.25] * 4)
    assert torch.equal(up[:, :, :-8], x[:, :, 8:])
    small = applied(x, "translate_x", *[0.5] * 4, kind="randaugment")
    assert torch.equal(small[..., 7:], x[..., :-7])  # 0.5 * 150 / 331 * 32


def test_shear_shifts_rows_by_their_distance_from_the_centre():
    x = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    x[..., 2] = 9
    sheared = applied(x, "shear_x", 1.0)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in sheared] == [[4], [3], [2], [1], [0]]
    assert torch.equal(applied(x.mT.contiguous(), "shear_y", 1.0)[0, 0], sheared.T)


def test_operations_of_a_batch_are_each_images_own(pixels):
    policy = draw(12, "randaugment", None, torch.Generator().manual_seed(0))
    together = policy.apply(pixels)
    alone = torch.cat([policy.part(slice(i, i + 1)).apply(pixels[i : i + 1]) for i in range(12)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, pixels)


def test_draw_is_uniform_over_operations_and_strengths():
    policy = draw(31_000, "trivialaugment", None, torch.Generator().manual_seed(0))
    counts = policy.operation.flatten().bincount(minlength=14)
    assert counts.tolist() == pytest.approx([31_000 / 14] * 14, rel=0.1)
    steps = (policy.strength.abs() * 30).round().long().flatten().bincount(minlength=31)
    assert steps.tolist() == pytest.approx([1000] * 31, rel=0.15)
    signed = (policy.operation >= 1) & (policy.operation <= len(SIGNED))
    assert (policy.strength[~signed] >= 0).all()
    assert (policy.strength[signed] < 0).float().mean().item() == pytest.approx(15 / 31, abs=0.02)
    pairs = draw(100, "randaugment", 0.5, torch.Generator().manual_seed(0))
    assert pairs.operation.shape == (100, 2)
    assert set(pairs.strength.abs().flatten().tolist()) == {0.5}
    assert (pairs.operation[:, 0] != pairs.operation[:, 1]).float().mean().item() == pytest.approx(13 / 14, abs=0.1)
    published = draw(5, "randaugment", None, torch.Generator().manual_seed(0))
    assert published.strength.abs().unique().tolist() == pytest.approx([9 / 30])


@pytest.mark.parametrize(
    ("kind", "theirs"), [("randaugment", RandAugment()), ("trivialaugment", TrivialAugmentWide())], ids=str
)
def test_largest_strengths_are_those_of_torchvision(kind, theirs):
    space = theirs._augmentation_space(31, (32, 32)) if kind == "randaugment" else theirs._augmentation_space(31)
    for name, ours in {"ShearX": "shear", "Rotate": "rotate", "Color": "colours", "TranslateX": "translate"}.items():
        side = 32 if kind == "randaugment" and ours == "translate" else 1
        assert space[name][0].max().item() == pytest.approx(side * LARGEST[kind][ours])
    assert 8 - space["Posterize"][0].min().item() == LARGEST[kind]["posterize"]
    assert len(space) == len(OPERATIONS)


def test_operations_come_one_after_the_other(pixels):
    """What is shifted and then made negative has negative black at its edge, the other way black."""
    shift, solarize = OPERATIONS.index("translate_x"), OPERATIONS.index("solarize")
    for order, edge in (((shift, solarize), 255), ((solarize, shift), 0)):
        operations = torch.tensor([order] * 12)
        policy = Policy("trivialaugment", operations, torch.where(operations == shift, 0.25, 1.0))
        assert (policy.apply(pixels)[..., :8] == edge).all()


def test_policy_comes_after_crop_and_flip_and_is_drawn_anew(noise):
    """One step by hand, from what the sampler drew; operations of two epochs differ, and are not those of the crops."""
    images = noise()
    data = module(images, replace(PLAIN, policy="trivialaugment"))
    loader = data.train_dataloader()
    step, batch = next(loader.indices()), next(iter(loader))
    shown = step.policy.apply(data.augment.apply(images.train_x[step.index], step.view))
    torch.testing.assert_close(batch.x, shown * loader.scale + loader.shift)
    loader.sampler.set_epoch(1)
    later = next(loader.indices())
    assert not torch.equal(step.policy.operation, later.policy.operation)
    views = torch.Generator().manual_seed(derive("views", 3, 0))
    assert not torch.equal(step.policy.operation, draw(40, "trivialaugment", None, views).operation[:10])


def module(images, augment=PLAIN, **options):
    return DataModule(images, 0.25, 0, augment, batch_size=10, seed=3, **options)


@pytest.mark.parametrize("kind", ["trivialaugment", "randaugment"])
def test_batches_with_a_policy_depend_on_seed_and_epoch_alone(noise, kind):
    images, augment = noise(), replace(PLAIN, policy=kind, mixup=1.0, cutout=2)
    loader = module(images, augment).train_dataloader()
    first = torch.cat([batch.x for batch in loader])
    for again in (module(images, augment), module(images, augment, in_memory=False, workers=0)):
        assert torch.equal(first, torch.cat([batch.x for batch in again.train_dataloader()]))
    loader.sampler.set_epoch(1)
    assert not torch.equal(first, torch.cat([batch.x for batch in loader]))


def test_policy_leaves_order_labels_and_evaluation_alone(noise):
    images = noise()
    plain, changed = module(images), module(images, replace(PLAIN, policy="trivialaugment"))
    for before, after in zip(plain.train_dataloader(), changed.train_dataloader(), strict=True):
        assert torch.equal(before.index, after.index)
        assert torch.equal(before.y, after.y)
        assert (after.view == -1).all()
        assert not torch.equal(before.x, after.x)
    for one, other in ((plain.test_dataloader(), changed.test_dataloader()),):
        assert torch.equal(next(iter(one)).x, next(iter(other)).x)
    assert changed.augment.views is None


def test_ranks_share_a_step_with_a_policy(noise):
    data = module(noise(), replace(PLAIN, policy="randaugment"))
    whole = next(iter(data.train_dataloader()))
    for rank in range(2):
        loader = data.train_dataloader()
        loader.rank, loader.ranks = rank, 2
        assert torch.equal(next(iter(loader)).x, whole.x[rank::2])


def test_augment_refuses_another_policy_and_a_strength_without_one():
    with pytest.raises(ValueError, match=r"policy must be one of trivialaugment, randaugment, got auto"):
        replace(PLAIN, policy="auto")
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 2"):
        replace(PLAIN, policy="randaugment", strength=2)
    with pytest.raises(ValueError, match=r"strength is for data.augment.policy=randaugment"):
        replace(PLAIN, policy="trivialaugment", strength=0.5)


@pytest.mark.parametrize("kind", ["trivialaugment", "randaugment"])
def test_policy_makes_of_grey_images_what_it_makes_of_them_in_three_channels(pixels, kind):
    one = pixels[:, :1]
    policy = draw(12, kind, None, torch.Generator().manual_seed(2))
    in_three = policy.apply(one.repeat(1, 3, 1, 1))
    assert (policy.apply(one).int() - in_three[:, :1].int()).abs().max() <= 1  # their weights sum to 0.9999
    assert policy.apply(pixels.repeat(1, 4, 1, 1)).shape == (12, 12, 32, 32)
