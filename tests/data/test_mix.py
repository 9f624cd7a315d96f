import pytest
import torch

from kd.data.augment import Augment
from kd.data.mix import Mix, draw, mixed_labels
from kd.data.module import DataModule
from kd.losses import hard_loss


def test_blend_by_hand():
    first, second = torch.full((2, 1, 2, 4), 8.0), torch.zeros(2, 1, 2, 4)
    box = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 3]])
    mixed, share = Mix(torch.tensor([0.25, 1.0]), box, torch.tensor([1, 0])).blend(first, second)
    assert torch.equal(mixed[0], torch.full((1, 2, 4), 2.0))
    assert torch.equal(mixed[1, 0], torch.tensor([[8.0, 0.0, 0.0, 8.0], [8.0, 8.0, 8.0, 8.0]]))
    assert share.tolist() == [0.25, 0.75]
    assert mixed_labels(torch.tensor([0, 2]), torch.tensor([1, 2]), share, 3).tolist() == [[0.25, 0.75, 0], [0, 0, 1]]


def test_hard_loss_of_mixed_labels_is_the_mixture_of_losses():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    first, second, share = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2]), torch.tensor([0.5, 0.2, 0.9, 1.0])
    losses = [torch.nn.functional.cross_entropy(logits, y, reduction="none") for y in (first, second)]
    expected = (share * losses[0] + (1 - share) * losses[1]).mean()
    torch.testing.assert_close(hard_loss(logits, mixed_labels(first, second, share, 3)), expected)


def test_draw_has_the_moments_of_its_distribution():
    mixup = draw(20_000, 32, 0.4, None, torch.Generator().manual_seed(0))
    assert mixup.box.sum() == 0
    assert mixup.share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert mixup.share.var().item() == pytest.approx(0.25 / 1.8, abs=0.005)  # of Beta(a, a): 1 / (4 (2a + 1))
    cutmix = draw(20_000, 1000, None, 1.0, torch.Generator().manual_seed(0))
    assert (cutmix.share == 1).all()
    whole = (cutmix.box[:, 0] > 0) & (cutmix.box[:, 1] < 1000) & (cutmix.box[:, 2] > 0) & (cutmix.box[:, 3] < 1000)
    sides = (cutmix.box[:, 1] - cutmix.box[:, 0]), (cutmix.box[:, 3] - cutmix.box[:, 2])
    assert torch.equal(sides[0][whole], sides[1][whole])
    area = (sides[0] * sides[1])[whole] / 1e6
    # A box is whole with probability (1 - s)^2, s = sqrt(area), and areas are uniform: of s, 2 s (1 - s)^2 is left.
    assert area.mean().item() == pytest.approx(0.2, abs=0.01)
    middles = (cutmix.box[:, ::2] + cutmix.box[:, 1::2])[whole] / 2.0
    assert middles.std(dim=0).min() > 100
    assert middles.mean(dim=0).tolist() == pytest.approx([500, 500], abs=10)
    narrow = draw(20_000, 1000, None, 50.0, torch.Generator().manual_seed(0)).box
    height, width = narrow[:, 1] - narrow[:, 0], narrow[:, 3] - narrow[:, 2]
    inside = (narrow[:, ::2] > 0).all(dim=1) & (narrow[:, 1::2] < 1000).all(dim=1)
    area = (height * width)[inside] / 1e6
    assert area.mean().item() == pytest.approx(0.5, abs=0.05)  # less than half, as larger boxes are cut more often
    assert area.std().item() == pytest.approx(0.05, abs=0.01)  # of Beta(50, 50)
    assert cutmix.box.min() >= 0
    assert cutmix.box.max() <= 1000
    both = draw(20_000, 32, 0.4, 1.0, torch.Generator().manual_seed(0))
    boxed = both.share == 1
    assert boxed.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (both.box[~boxed] == 0).all()


def module(images, *mixes, **options):
    return DataModule(images, 0.25, 0, Augment(1, True, 2, *mixes), batch_size=10, seed=3, **options)


@pytest.mark.parametrize("mixes", [(1.0, None), (None, 1.0), (0.4, 1.0)])
def test_batches_are_mixtures_of_the_batches_without_mixing(noise, mixes):
    """Same order, crops and cutout: of each image its own part or share, the rest of another one of the step."""
    images = noise()
    plain, mixed = (list(module(images, *parts).train_dataloader()) for parts in ((), mixes))
    for before, after in zip(plain, mixed, strict=True):
        assert after.y.shape == (10, 10)
        torch.testing.assert_close(after.y.sum(dim=1), torch.ones(10))
        assert (after.index == -1).all()
        assert (after.view == -1).all()
        own = after.y.gather(1, before.y[:, None]).squeeze(1)
        assert all(
            own[i] == 1 or any(is_mixture(after.x[i], before.x[i], other, own[i]) for other in before.x)
            for i in range(10)
        )


def is_mixture(mixed, own, other, share):
    """By mixup with that share, or by cutmix: every place is the one's or the other's."""
    weighed = torch.allclose(share * own + (1 - share) * other, mixed, atol=1e-4)
    places = [torch.isclose(mixed, part, atol=1e-5).all(dim=0) for part in (own, other)]
    return weighed or bool((places[0] | places[1]).all())


def test_batches_with_mixing_depend_on_seed_and_epoch_alone(noise):
    images, pick = noise(), lambda batches: torch.stack([batch.x for batch in batches])
    loader = module(images, 1.0, 1.0).train_dataloader()
    first = pick(loader)
    assert torch.equal(first, pick(module(images, 1.0, 1.0).train_dataloader()))
    on_disk = module(images, 1.0, 1.0, in_memory=False, workers=0).train_dataloader()
    assert torch.equal(first, pick(on_disk))
    loader.sampler.set_epoch(1)
    assert not torch.equal(first, pick(loader))


def test_ranks_share_a_mixed_step(noise):
    data = module(noise(), 1.0, 1.0)
    whole = next(iter(data.train_dataloader()))
    assert len(next(data.train_dataloader().indices()).index) == 10  # each image once: partners are of the same step
    parts = []
    for rank in range(2):
        loader = data.train_dataloader()
        loader.rank, loader.ranks = rank, 2
        parts.append(next(iter(loader)))
    for rank, part in enumerate(parts):
        torch.testing.assert_close(part.x, whole.x[rank::2])
        torch.testing.assert_close(part.y, whole.y[rank::2])


def test_evaluation_is_not_mixed(noise):
    (batch,) = module(noise(), 1.0, 1.0).test_dataloader()
    assert not batch.y.is_floating_point()
    assert (batch.index >= 0).all()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=rf"data\.augment\.{name} must be in \[0\.01, 100\], got 0"):
        Augment(0, False, 0, **{name: 0.0})


def test_mixed_images_train_a_student_and_its_teacher(run, tmp_path):
    from kd.runs.results import read
    from tests.common import QUICK

    code, printed = run(*QUICK, "data.augment.cutmix=1", "data.augment.mixup=0.4", "method=logits", "hydra.run.dir=run")
    assert code == 0, printed
    assert read(tmp_path / "run" / "result.json").status == "done"
    assert (
        "with cutout, mixup or cutmix an image has too many views"
        in printed + (tmp_path / "run" / "train.log").read_text()
    )
    code, printed = run(*QUICK, "data.augment.cutmix=1", "method=dkd", "hydra.run.dir=refused")
    assert code == 1
    assert "error: dkd needs the label of each image, and data.augment.cutmix mixes two" in printed
    assert not (tmp_path / "refused" / "checkpoints").exists()


def test_draw_covers_a_wide_image_in_its_proportions():
    cutmix = draw(20_000, [100, 400], None, 1.0, torch.Generator().manual_seed(0)).box
    inside = (cutmix[:, 0] > 0) & (cutmix[:, 1] < 100) & (cutmix[:, 2] > 0) & (cutmix[:, 3] < 400)
    height, width = cutmix[inside, 1] - cutmix[inside, 0], cutmix[inside, 3] - cutmix[inside, 2]
    assert (width - 4 * height).abs().max() <= 5  # both are rounded to even numbers
    assert (cutmix[:, 1].max().item(), cutmix[:, 3].max().item(), cutmix.min().item()) == (100, 400, 0)
