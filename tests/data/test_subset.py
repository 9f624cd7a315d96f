import pytest
import torch

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.data.subset import noisy_labels, stratified_part
from kd.errors import UserError

Y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
EVERY = torch.arange(100)


def data_module(images, fraction=1.0, noise=0.0, split_seed=0, seed=0, **options):
    augment = Augment(0, False, 0)
    return DataModule(images, 0.25, split_seed, augment, 5, seed, fraction=fraction, noise=noise, **options)


def test_stratified_part_takes_its_share_of_each_class():
    part = stratified_part(Y, EVERY, 0.2, 0, "abc")
    assert Y[part].bincount().tolist() == [12, 6, 2]
    assert torch.equal(part, part.sort().values)
    assert not torch.equal(part, stratified_part(Y, EVERY, 0.2, 1, "abc"))
    assert torch.equal(stratified_part(Y, EVERY[10:], 1.0, 0, "abc"), EVERY[10:])


def test_stratified_part_of_a_larger_fraction_holds_the_smaller_one():
    small, large = (set(stratified_part(Y, EVERY, fraction, 0, "abc").tolist()) for fraction in (0.2, 0.3))
    assert small < large


def test_stratified_part_names_the_smallest_fraction_that_leaves_every_class():
    message = "^data.fraction=0.01 leaves no training image of b and 1 more classes; give at least 0.051$"
    with pytest.raises(UserError, match=message):
        stratified_part(Y, EVERY, 0.01, 0, "abc")
    assert Y[stratified_part(Y, EVERY, 0.051, 0, "abc")].bincount().tolist() == [3, 2, 1]
    with pytest.raises(UserError, match="leaves no training image of c; give at least"):
        stratified_part(Y, EVERY, 0.05, 0, "abc")


def test_noisy_labels_are_wrong_in_that_share_and_symmetrically():
    y = torch.arange(5000) % 5
    index = torch.arange(1000, 5000)
    noisy = noisy_labels(y, index, 0.3, 0, 5)
    wrong = noisy != y
    assert wrong.sum() == 1200
    assert not wrong[:1000].any()
    shift = (noisy - y)[wrong] % 5
    assert shift.bincount(minlength=5)[1:].tolist() == pytest.approx([300] * 4, abs=60)  # four standard deviations
    assert (y == torch.arange(5000) % 5).all()
    assert torch.equal(noisy, noisy_labels(y, index, 0.3, 0, 5))
    more = noisy_labels(y, index, 0.5, 0, 5)
    assert torch.equal(more[wrong], noisy[wrong])


def test_data_module_validates_on_the_same_images_whatever_the_fraction(noise):
    images = noise(train=80)
    whole, part = data_module(images), data_module(images, fraction=0.5)
    assert torch.equal(whole.val_index, part.val_index)
    assert len(part.train_index) == 30
    assert set(part.train_index.tolist()) < set(whole.train_index.tolist())
    seen = torch.cat([batch.index for batch in part.train_dataloader()])
    assert torch.equal(seen.sort().values, part.train_index)
    assert (part.labels >= 0).nonzero()[:, 0].tolist() == part.train_index.tolist()


def test_data_module_makes_training_labels_wrong_and_no_others(noise):
    images = noise(train=80)
    plain, noisy = data_module(images), data_module(images, fraction=0.5, noise=0.4)
    assert noisy.noisy_labels == 12
    assert plain.noisy_labels == 0
    for batch in noisy.train_dataloader():
        assert torch.equal(batch.y, noisy.labels[batch.index])
    for loader in (noisy.val_dataloader(), noisy.test_dataloader()):
        for batch in loader:
            assert torch.equal(batch.y, torch.cat([images.train_y, images.test_y])[batch.index])
    other = data_module(images, fraction=0.5, noise=0.4, seed=9)
    assert torch.equal(noisy.labels, other.labels)  # of teacher and student, whatever their seeds
    assert not torch.equal(noisy.labels, data_module(images, fraction=0.5, noise=0.4, split_seed=1).labels)


def test_data_module_refuses_one_class(noise):
    with pytest.raises(UserError, match=r"^noise has one class only, a: there is nothing to tell apart$"):
        data_module(noise(num_classes=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1}, r"data.noise must be in \[0, 1\), got 1"),
        ({"noise": -0.1}, r"data.noise must be in \[0, 1\), got -0.1"),
        ({"fraction": 0}, r"data.fraction must be in \(0, 1\], got 0"),
        ({"fraction": 1.5}, r"data.fraction must be in \(0, 1\], got 1.5"),
    ],
)
def test_data_module_refuses_fraction_and_noise_out_of_range(noise, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        data_module(noise(), **options)
