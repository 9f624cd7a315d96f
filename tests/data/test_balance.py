"""Classes of different size: weights in the loss, or sampling with equal odds."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.losses import hard_loss
from tests.common import QUICK

PLAIN = Augment(1, True, 0)


@pytest.fixture
def images(noise):
    """400 images: 320, 60 and 20 of three classes."""
    many = noise(train=400, num_classes=3)
    return replace(many, train_y=torch.tensor([0] * 320 + [1] * 60 + [2] * 20))


def data_module(images, balance, augment=PLAIN, **options):
    return DataModule(images, 0.0, 0, augment, 20, 0, balance=balance, **options)


def batches(data):
    return list(data.train_dataloader())


def test_sampling_shows_every_class_equally_often(images):
    data = data_module(images, "sampling")
    shown = []
    for epoch in range(10):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        shown += [batch.y for batch in loader]
        assert len(loader) == 20
    counts = torch.cat(shown).bincount()
    assert counts.tolist() == pytest.approx([4000 / 3] * 3, abs=120)  # four standard deviations


def test_sampling_depends_on_seed_and_epoch_alone(images):
    first, again = (batches(data_module(images, "sampling")) for _ in range(2))
    on_disk = batches(data_module(images, "sampling", in_memory=False))
    for one, *others in zip(first, again, on_disk, strict=True):
        assert all(torch.equal(one.x, other.x) and torch.equal(one.index, other.index) for other in others)


def test_weights_make_the_loss_that_of_weighted_classes(images):
    """Of torch's own, which divides by the weights of the batch instead of their mean over all images, 1."""
    plain, weighted = (batches(data_module(images, balance)) for balance in ("none", "weights"))
    weights = torch.tensor([400 / 3 / n for n in (320, 60, 20)])
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    for before, after in zip(plain, weighted, strict=True):
        assert torch.equal(before.x, after.x)
        assert torch.equal(before.index, after.index)
        assert torch.equal(after.labels, before.y)
        expected = F.cross_entropy(logits, before.y, weights, reduction="sum") / 20
        torch.testing.assert_close(hard_loss(logits, after.y), expected)
    total = torch.cat([batch.y for batch in weighted]).sum(dim=0)
    torch.testing.assert_close(total, torch.full((3,), 400 / 3))  # each class weighs the same, all images 1 on average


def test_weights_are_those_of_the_labels_that_are_trained_on(images):
    data = data_module(images, "weights", fraction=0.5, noise=0.4)
    counts = data.train_y[data.train_index].bincount()
    torch.testing.assert_close(data.class_weights, len(data.train_index) / 3 / counts)
    missing = replace(images, train_y=images.train_y.clamp(max=1))
    assert data_module(missing, "weights").class_weights.tolist() == pytest.approx([400 / 640, 400 / 160, 0])


def test_weights_and_mixing_multiply(images):
    augment = replace(PLAIN, mixup=1.0)
    plain, weighted = (batches(data_module(images, balance, augment)) for balance in ("none", "weights"))
    weights = data_module(images, "weights").class_weights
    for before, after in zip(plain, weighted, strict=True):
        torch.testing.assert_close(after.y, before.y * weights)


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_evaluation_is_not_balanced(images, balance):
    (batch,) = data_module(images, balance).test_dataloader()
    assert torch.equal(batch.y, images.test_y)


def test_data_module_refuses_another_balance(images):
    with pytest.raises(ValueError, match=r"^data.balance must be one of none, weights, sampling, got even$"):
        data_module(images, "even")


def test_balanced_run_has_figures_of_each_class(run, tmp_path):
    from kd.runs.results import read

    assert run(*QUICK, "epochs=1", "method=logits", "data.balance=sampling", "hydra.run.dir=run")[0] == 0
    record = read(tmp_path / "run" / "result.json")
    assert len(record.test_class_acc) == 10
    assert record.test_balanced_acc == pytest.approx(sum(record.test_class_acc) / 10)


def test_methods_that_need_labels_refuse_weights(run):
    code, printed = run(*QUICK, "method=dkd", "data.balance=weights")
    assert code == 1
    assert "error: dkd needs the label of each image, and data.balance=weights makes a weight of it; write" in printed


def test_a_method_without_labels_refuses_weights_of_them(run, tmp_path):
    code, printed = run(*QUICK, "method=funmatch", "data.balance=weights")
    assert code == 1
    assert "error: this method reads no labels, or weighs them by 0, and data.balance=weights would" in printed
    assert not (tmp_path / "teachers").exists()


@pytest.mark.parametrize(
    "method", ["method=tfkd", "method=combine method.terms={lskd:1}", "method=combine method.terms={nkd:1}"]
)
def test_smoothing_of_labels_that_have_no_weight_is_refused(run, method):
    code, printed = run(*QUICK, *method.split(), "alpha=0", "recipe.label_smoothing=0.1")
    assert code == 1
    assert "recipe.label_smoothing=0.1: this method reads no labels, or weighs them by 0" in printed


@pytest.mark.parametrize("setting", ["data.balance=weights", "recipe.label_smoothing=0.1"])
@pytest.mark.parametrize("method", [("method=simkd",), ("method=logits", "alpha=0")], ids=str)
def test_settings_of_labels_that_have_no_weight_are_refused(run, setting, method):
    code, printed = run(*QUICK, *method, setting)
    assert code == 1
    assert "this method reads no labels, or weighs them by 0" in printed
    assert "training the" not in printed
