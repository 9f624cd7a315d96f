"""A function of the user's own as part of the augmentation."""

import random

import pytest
import torch
from torchvision.transforms import v2

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.errors import UserError
from kd.runs.results import read
from tests.common import QUICK


def data_module(images, transform, **settings):
    augment = Augment(2, True, 0, transform=transform, **settings)
    return DataModule(images, 0.25, 0, augment, batch_size=10, seed=3)


def epoch(data, number=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def noisy(image):
    """Add noise, so that every draw differs."""
    return (image.int() + torch.randint(-40, 41, image.shape)).clamp(0, 255).to(torch.uint8)


def test_transform_is_applied_to_training_images_after_crop_and_flip(noise):
    plain, inverted = (data_module(noise(), transform) for transform in (None, lambda image: 255 - image))
    mean, std = (torch.tensor(values)[:, None, None] for values in plain.images.mean_std)
    for ours, theirs in zip(epoch(plain), epoch(inverted), strict=True):
        torch.testing.assert_close(1 - (ours.x * std + mean), theirs.x * std + mean)
        assert torch.equal(ours.index, theirs.index)
        assert set(theirs.view.tolist()) == {-1}  # no number stands for what it makes
    for name in ("val_dataloader", "test_dataloader"):
        ours, theirs = (torch.cat([batch.x for batch in getattr(d, name)()]) for d in (plain, inverted))
        assert torch.equal(ours, theirs)


def test_random_transform_depends_on_seed_and_epoch_alone(noise):
    first, again = (data_module(noise(), noisy) for _ in range(2))
    state = torch.random.get_rng_state()
    batches = [batch.x for batch in epoch(first)]
    assert torch.equal(torch.random.get_rng_state(), state)  # those of dropout
    torch.manual_seed(99)
    assert all(map(torch.equal, batches, [batch.x for batch in epoch(again)]))
    assert not torch.equal(batches[0], epoch(first, 1)[0].x)
    distorted = epoch(first)[0].x - epoch(data_module(noise(), None))[0].x
    assert len(distorted.flatten(1).unique(dim=0)) == 10  # each image by itself


def test_random_transform_is_the_same_for_any_number_of_ranks(noise):
    loader = data_module(noise(), noisy).train_dataloader()
    whole = next(iter(loader)).x
    loader.ranks = 2
    for loader.rank in range(2):
        assert torch.equal(next(iter(loader)).x, whole[loader.rank :: 2])


def test_transform_comes_with_policy_cutout_and_mixing(noise):
    data = data_module(noise(), v2.RandomErasing(p=1.0), policy="trivialaugment", mixup=1.0)
    assert all(batch.x.isfinite().all() for batch in epoch(data))
    assert data.augment.views is None


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: image / 255, r"returns torch.float32 of \(3, 8, 8\), and images are torch.uint8 of \(3, 8, 8\)"),
        (lambda image: image[:, 1:], r"returns torch.uint8 of \(3, 7, 8\)"),
        (lambda image: random.random(), "returns float, and"),
    ],
)
def test_transform_that_returns_something_else_is_refused(noise, transform, message):
    with pytest.raises(UserError, match=message):
        epoch(data_module(noise(), transform))


def test_command_trains_with_a_transform_and_answers_a_wrong_one(run, tmp_path):
    # Whose "scale" is none of a network's.
    erasing = "data.augment.transform={_target_: torchvision.transforms.v2.RandomErasing, p: 0.5, scale: [0.02, 0.2]}"
    code, printed = run(*QUICK, "method=logits", erasing, "hydra.run.dir=run")
    assert code == 0, printed
    record = read(tmp_path / "run" / "result.json")
    assert erasing.replace(" ", "") in record.command.replace(" ", "")
    assert record.trial is None
    code, printed = run(*QUICK, "method=logits", "data.augment.transform=my_pkg.Jitter")
    assert code == 1
    assert "error: data.augment.transform must be what Hydra makes a function of an image from" in printed
    code, printed = run(*QUICK, "method=logits", "data.augment.transform={_target_: my_pkg.Jitter}")
    assert code == 1
    assert "my_pkg" in printed
