import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torchvision.transforms.v2.functional as tv

import kd.data.module
from kd.data.augment import Augment
from kd.data.module import DataModule, Loader, Sequential, stratified_split
from kd.errors import UserError
from kd.hashing import derive

CROP_AND_FLIP = Augment(2, True, 0)


def data_module(images, batch_size=8, seed=0, augment=CROP_AND_FLIP, val_fraction=0.0, split_seed=0):
    return DataModule(images, val_fraction, split_seed, augment, batch_size, seed)


def epoch_batches(data, number=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def joined(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


def equal(left, right):
    """Return whether two lists of batches agree in every field, bit for bit."""
    return all(torch.equal(joined(left, name), joined(right, name)) for name in ("x", "y", "index", "view"))


def expected_x(images, index, view, crop):
    """Return the images that a training batch should hold, from its index and view alone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in images.mean_std)
    rows = []
    for i, v in zip(index.tolist(), view.tolist(), strict=True):
        place = divmod(v // 2, 2 * crop + 1)
        image = tv.crop(tv.pad(images.train_x[i], crop), *place, 8, 8)
        rows.append((tv.horizontal_flip(image) if v % 2 else image) / 255)
    return (torch.stack(rows) - mean) / std


# --- the split


def test_stratified_split_takes_its_share_of_each_class():
    y = torch.tensor([0] * 30 + [1] * 10 + [2] * 5)[torch.randperm(45, generator=torch.Generator().manual_seed(0))]
    train, val = stratified_split(y, 0.3, 0)
    assert y[val].bincount().tolist() == [9, 3, 2]  # 0.3 * 5 = 1.5, to even
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(45))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)


def test_data_module_split_depends_on_split_seed_alone(noise):
    first, other, third = (
        data_module(noise(), val_fraction=0.5, split_seed=s, seed=t) for s, t in ((1, 0), (2, 0), (1, 9))
    )
    assert torch.equal(first.val_index, third.val_index)
    assert not torch.equal(first.val_index, other.val_index)
    members = {tuple((first.val_index[first.val_index % 10 == label] // 10).tolist()) for label in range(10)}
    assert len(members) > 1  # not the same positions in every class


def test_data_module_never_trains_on_validation_images(noise):
    data = data_module(noise(), val_fraction=0.25)
    val = set(data.val_index.tolist())
    assert len(val) == 10 * round(0.25 * 4)
    assert all(val.isdisjoint(joined(epoch_batches(data, e), "index").tolist()) for e in range(5))


def test_data_module_without_a_split_trains_on_everything(noise):
    data = data_module(noise())
    assert data.val_dataloader() == []
    assert torch.equal(joined(epoch_batches(data), "index").sort().values, torch.arange(40))


# --- training batches


def test_train_dataloader_takes_every_image_once_and_drops_the_rest(noise):
    data = data_module(noise(), batch_size=12)
    batches = epoch_batches(data)
    assert len(batches) == len(data.train_dataloader()) == data.steps_per_epoch == 3  # 40 = 3 * 12 + 4
    assert {len(batch.y) for batch in batches} == {12}
    assert len(joined(batches, "index").unique()) == 36


def test_train_dataloader_depends_on_seed_and_epoch_alone(noise):
    reference = epoch_batches(data_module(noise(), seed=1), 2)
    torch.manual_seed(99)
    torch.rand(7)
    assert equal(epoch_batches(data_module(noise(), seed=1), 2), reference)
    state = torch.get_rng_state()
    for seed, number in ((1, 3), (2, 2), (2, 1)):
        other = epoch_batches(data_module(noise(), seed=seed), number)
        assert not torch.equal(joined(other, "index"), joined(reference, "index"))
        assert not torch.equal(joined(other, "view"), joined(reference, "view"))
    assert torch.equal(torch.get_rng_state(), state)


def test_train_dataloader_has_separate_random_streams(noise, monkeypatch):
    seeds = []
    monkeypatch.setattr(kd.data.module, "derive", lambda *parts: seeds.append(derive(*parts)) or seeds[-1])
    epoch_batches(data_module(noise(), augment=Augment(2, True, 3)))
    assert len(seeds) == len(set(seeds)) == 5  # and the split's


def test_derive_gives_different_seeds_for_different_parts():
    seeds = [derive(purpose, a, b) for purpose in ("order", "views") for a in range(20) for b in range(20)]
    assert len(set(seeds)) == 800
    assert 0 <= min(seeds) <= max(seeds) < 2**32
    assert derive("order", 1, 12) != derive("order", 11, 2)


def test_train_dataloader_batches_match_their_index_and_view(noise):
    images = noise()
    for batch in epoch_batches(data_module(images)):
        torch.testing.assert_close(batch.x, expected_x(images, batch.index, batch.view, crop=2), rtol=1e-5, atol=1e-5)
        assert torch.equal(batch.y, images.train_y[batch.index])
        assert {field.dtype for field in batch[1:]} == {torch.int64}
        assert batch.x.is_contiguous(memory_format=torch.channels_last)


def test_train_dataloader_normalises_images(noise):
    images = noise()
    images.train_x[:, 1] //= 4
    x = joined(epoch_batches(data_module(images, augment=Augment(0, True, 0))), "x").double()
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cutout", [0, 3])
def test_train_dataloader_splits_the_batches_over_ranks(noise, cutout):
    images = noise()
    augment = Augment(2, True, cutout)
    alone = epoch_batches(data_module(images, augment=augment), 1)
    ranks = []
    for rank in range(2):
        data = data_module(images, augment=augment)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=strategy)
        ranks.append(epoch_batches(data, 1))
    assert len(ranks[0]) == len(ranks[1]) == len(alone)
    for whole, first, second in zip(alone, *ranks, strict=True):
        for field, rank0, rank1 in zip(whole, first, second, strict=True):
            assert torch.equal(torch.stack([rank0, rank1], dim=1).flatten(0, 1), field)


def test_cutout_changes_a_square_only(noise):
    images = noise()
    plain, cut = epoch_batches(data_module(images)), epoch_batches(data_module(images, augment=Augment(2, True, 3)))
    assert torch.equal(joined(cut, "index"), joined(plain, "index"))
    assert set(joined(cut, "view").tolist()) == {-1}
    before, after = joined(plain, "x"), joined(cut, "x")
    changed = (before != after).any(dim=1)
    assert (after.permute(0, 2, 3, 1)[changed] == 0).all()  # the mean colour
    area = changed.sum(dim=(1, 2))
    assert {9} < set(area.tolist()) <= {4, 6, 9}  # 3 x 3, less at borders and corners
    assert len({tuple(mask.flatten().tolist()) for mask in changed}) > 20


# --- evaluation batches


@pytest.mark.parametrize(("batch_size", "at_once"), [(1, 32), (10, 32), (40, 80), (1000, 1000)])
def test_evaluation_takes_no_more_memory_than_training(noise, batch_size, at_once):
    """Two thousand images: in parts of twice a step's, of 32 at least and of 1,000 at most."""
    data = data_module(noise(train=2000, test=2000), val_fraction=0.1, batch_size=batch_size)
    assert max(len(part.index) for part in data.evaluation(torch.arange(2000))) == at_once
    assert max(len(part.index) for part in data.test_dataloader().sampler) == at_once


@pytest.mark.parametrize(("size", "at_once"), [(64, 1000), (224, 81), ([64, 256], 250), (4096, 1)])
def test_evaluation_shows_fewer_images_at_once_the_larger_they_are(size, at_once):
    sampler = Sequential(torch.arange(2000), CROP_AND_FLIP, size)
    assert sampler.at_once == at_once
    assert max(len(part.index) for part in sampler) <= at_once


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_every_rank_has_a_part_of_every_evaluation_batch(ranks):
    """Also where images are so large that fewer than there are ranks are shown at once."""
    sampler = Sequential(torch.arange(23), CROP_AND_FLIP, 1024, ranks=ranks)  # three at once
    steps = list(sampler)
    assert len(steps) == len(sampler)
    assert min(len(step.share(rank, ranks).index) for step in steps for rank in range(ranks)) >= 1
    assert torch.cat([step.index for step in steps]).tolist() == list(range(23))


def test_splits_of_fewer_images_than_devices_are_refused(noise):
    data = data_module(noise(train=40, test=20), batch_size=16, val_fraction=0.25)  # of which 10 are for validation
    data.check_shares(8)
    with pytest.raises(UserError, match=r"trainer\.devices=16 is more than the 10 validation images"):
        data.check_shares(16)


@pytest.mark.parametrize("split", ["val", "test"])
def test_eval_dataloaders_yield_every_image_once_unaugmented(noise, monkeypatch, split):
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 8)
    images = noise(train=40, test=20)
    data = data_module(images, val_fraction=0.5, augment=Augment(2, True, 3))
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    batches = list(loader)
    assert [len(batch.y) for batch in batches] == [7, 7, 6]
    assert len(loader) == 3
    index = joined(batches, "index")
    # Test images are counted on after the 40 training images: an index names one image of the data set.
    assert torch.equal(index, data.val_index if split == "val" else 40 + torch.arange(20))
    index = index % 40 if split == "test" else index
    x, y = (images.train_x, images.train_y) if split == "val" else (images.test_x, images.test_y)
    mean, std = (torch.tensor(values)[:, None, None] for values in images.mean_std)
    torch.testing.assert_close(joined(batches, "x"), (x[index] / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(joined(batches, "y"), y[index])
    assert set(joined(batches, "view").tolist()) == {data.augment.plain_view}
    assert equal(list(loader), batches)


def test_test_dataloader_without_a_trainer_uses_the_given_device(noise):
    batch = next(iter(data_module(noise()).test_dataloader(torch.device("meta"))))
    assert {part.device.type for part in batch} == {"meta"}


def test_loader_splits_an_evaluation_over_ranks_completely(noise, monkeypatch):
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 8)
    images = noise(test=19)
    whole = data_module(images).test_dataloader()
    shares = [
        Loader(
            whole.pixels,
            whole.sampler,
            images.mean_std,
            10,
            torch.channels_last,
            torch.device("cpu"),
            rank,
            3,
        )
        for rank in range(3)
    ]
    sizes = [[len(batch.y) for batch in share] for share in shares]
    assert {len(rank) for rank in sizes} == {3}
    assert all(max(step) - min(step) <= 1 for step in zip(*sizes, strict=True))
    seen = torch.cat([joined(list(share), "index") for share in shares])
    assert torch.equal(seen.sort().values, torch.arange(19))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_data_module_on_disk_gives_the_batches_of_memory(noise, workers):
    images, augment = noise(), Augment(2, True, 5)
    in_memory = DataModule(images, 0.25, 0, augment, 8, 0)
    on_disk = DataModule(images, 0.25, 0, augment, 8, 0, in_memory=False, workers=workers)
    assert equal(epoch_batches(in_memory, 3), epoch_batches(on_disk, 3))
    assert equal(list(in_memory.val_dataloader()), list(on_disk.val_dataloader()))
    assert equal(list(in_memory.test_dataloader()), list(on_disk.test_dataloader()))


def test_loader_maps_a_channel_without_contrast_to_zero(noise):
    images = noise()
    images.train_x[:, 2] = 0
    x = joined(epoch_batches(data_module(images)), "x")
    assert x.isfinite().all()
    assert (x[:, 2] == 0).all()


# --- mistakes


@pytest.mark.parametrize(("batch_size", "fitting"), [(31, 16), (256, 16)])
def test_data_module_names_a_batch_size_that_fits(noise, batch_size, fitting):
    message = f"batch_size={batch_size} is more than the 30 training images; give batch_size={fitting}"
    with pytest.raises(UserError, match=f"^{message}$"):
        data_module(noise(), batch_size=batch_size, val_fraction=0.25)
    assert data_module(noise(), batch_size=fitting, val_fraction=0.25).steps_per_epoch == 1


def test_data_module_takes_all_images_as_one_batch(noise):
    assert data_module(noise(train=32), batch_size=32).steps_per_epoch == 1
    with pytest.raises(UserError, match=r"give batch_size=32$"):
        data_module(noise(train=32), batch_size=33)


@pytest.mark.parametrize("batch_size", [0, -8, 2.5, True, "8"])
def test_data_module_refuses_batch_size_out_of_range(noise, batch_size):
    with pytest.raises(ValueError, match=r"batch_size must be a whole number in \[1, inf\), got "):
        data_module(noise(), batch_size=batch_size)


@pytest.mark.parametrize(("per_class", "least"), [(4, 0.13), (2, 0.26), (50, 0.011), (5000, 0.00011)])
def test_data_module_names_the_smallest_val_fraction(noise, per_class, least):
    images = noise(train=40)
    images = replace(
        images, train_x=images.train_x[:1].expand(10 * per_class, -1, -1, -1), train_y=torch.arange(10 * per_class) % 10
    )
    with pytest.raises(UserError, match=rf"^data.val_fraction=1e-09 holds out none of .*=0, or at least {least:g} for"):
        data_module(images, val_fraction=1e-9)
    assert sorted((data_module(images, val_fraction=least).val_index % 10).tolist()) == list(range(10))
    below = least - 10 ** math.floor(math.log10(least)) / 10  # one less in the second digit
    assert not len(stratified_split(images.train_y, below - 1e-12, 0)[1])


def test_data_module_refuses_validation_of_single_images(noise):
    images = noise(train=10)  # one image of each class
    with pytest.raises(UserError, match=r"none of the 10 training images; give data.val_fraction=0$"):
        data_module(images, val_fraction=0.9)
    assert data_module(images).steps_per_epoch == 1


def test_stratified_split_keeps_an_image_of_each_class_for_training():
    y = torch.tensor([0, 1, 1, 2, 2, 2, 2])
    train, val = stratified_split(y, 0.95, 0)
    assert y[train].tolist() == [0, 1, 2]
    assert y[val].tolist() == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (Augment(9, True, 0), "crop must be at most 8 for images of 8x8 pixels, got 9"),
        (Augment(100_000, True, 0), "crop must be at most 8 for images of 8x8 pixels, got 100000"),
        (Augment(0, True, 8), "cutout must be at most 7 for images of 8x8 pixels, got 8"),
        (Augment(0, True, 64), "cutout must be at most 7 for images of 8x8 pixels, got 64"),
    ],
)
def test_data_module_refuses_augmentation_larger_than_the_images(noise, augment, message):
    with pytest.raises(ValueError, match=f"^data.augment.{message}$"):
        data_module(noise(), augment=augment)


def test_data_module_takes_the_largest_augmentation(noise):
    (batch, *_) = epoch_batches(data_module(noise(), augment=Augment(8, True, 7)))
    assert batch.x.isfinite().all()


@pytest.mark.parametrize("value", ["no", "off", 0, 1, None])
def test_data_module_refuses_in_memory_that_is_no_switch(noise, value):
    with pytest.raises(
        ValueError, match=f"^data.in_memory must be true or false, got {'null' if value is None else value}$"
    ):
        DataModule(noise(), 0.0, 0, CROP_AND_FLIP, 8, 0, in_memory=value)


@pytest.mark.parametrize("value", ["two", 1.5, True, None])
def test_data_module_refuses_workers_that_are_no_number(noise, value):
    with pytest.raises(ValueError, match=r"^data.workers must be a whole number in \[0, .*, got "):
        DataModule(noise(), 0.0, 0, CROP_AND_FLIP, 8, 0, workers=value)


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_data_module_refuses_val_fraction_out_of_range(noise, fraction):
    with pytest.raises(ValueError, match=rf"data.val_fraction must be in \[0, 1\), got {fraction:g}"):
        data_module(noise(), val_fraction=fraction)


def test_train_dataloader_refuses_a_batch_that_ranks_cannot_share(noise):
    data = data_module(noise(), batch_size=8)
    data.trainer = SimpleNamespace(world_size=3)
    with pytest.raises(UserError, match="batch_size must be a multiple of the 3 devices, got 8"):
        data.train_dataloader()
