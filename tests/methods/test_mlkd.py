import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from kd.data.batch import Batch
from kd.losses import soft_loss, standardized
from kd.methods.mlkd import MLKD, TEMPERATURES, level_losses, strong_view, unsure_half
from kd.models.output import Output

LEVELS = ["instance", "batch", "class"]


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_levels_by_hand(monkeypatch):
    """One temperature. The teacher says 3/4, 1/4 and 1/4, 3/4, the student 1/2, 1/2 of both images.

    P P' is 10/16 on the diagonal and 6/16 beside it, Q Q' 1/2 everywhere: four differences of 1/8. So it is for the
    classes: P' P is the same matrix. Each level is 4 / 64 / 2 = 1/32, and KL 0.130812 as in tests/test_losses.py.
    """
    monkeypatch.setattr("kd.methods.mlkd.TEMPERATURES", (1.0,))
    student, teacher = torch.zeros(2, 2), tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    levels = level_losses(student, teacher)
    assert list(levels) == LEVELS
    assert levels["instance"].item() == pytest.approx(0.130812, rel=1e-5)
    assert levels["batch"].item() == pytest.approx(1 / 32, rel=1e-5)
    assert levels["class"].item() == pytest.approx(1 / 32, rel=1e-5)
    half = level_losses(student, teacher, images=tensor([1.0, 0.0]), classes=tensor([0.0, 1.0]))
    assert [half[name].item() for name in LEVELS] == pytest.approx([0.065406, 1 / 64, 1 / 64], rel=1e-5)


def reference(student, teacher, images, classes):
    """Pair by pair, in fp64, as the paper has it: a mask chooses, temperature by temperature."""
    student, teacher = student.double().numpy(), teacher.double().numpy()
    count, width = student.shape
    total = dict.fromkeys(LEVELS, 0.0)
    for T in (2, 3, 4, 5, 6):
        q, p = (np.exp(z / T) / np.exp(z / T).sum(axis=1, keepdims=True) for z in (student, teacher))
        for i in range(count):
            if images[i]:
                total["instance"] += T**2 * sum(p[i] * np.log(p[i] / q[i])) / count
                total["batch"] += sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for j in range(count)) / count
        for c in range(width):
            if classes[c]:
                total["class"] += sum((p[:, c] @ p[:, d] - q[:, c] @ q[:, d]) ** 2 for d in range(width)) / width
    return total


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_levels_like_plain_formulas_pair_by_pair(classes):
    student, teacher = logits(7, classes), logits(7, classes, seed=1)
    everything = torch.ones(7), torch.ones(classes)
    chosen = (torch.arange(7) % 3 == 0).float(), (torch.arange(classes) % 2 == 0).float()
    for masks in (everything, chosen):
        expected = reference(student, teacher, *masks)
        found = {name: level.item() for name, level in level_losses(student, teacher, *masks).items()}
        assert found == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(level_losses(student, teacher), level_losses(student, teacher, *everything))


def test_levels_of_equal_networks_are_0_and_do_not_depend_on_the_order_of_the_batch():
    student, teacher, order = logits(6, 5), logits(6, 5, seed=1), torch.randperm(6)
    for level in level_losses(student, student + 4).values():
        assert level.item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(level_losses(student, teacher), level_losses(student[order], teacher[order]))
    expected = sum(soft_loss(student, teacher, T) for T in TEMPERATURES)
    torch.testing.assert_close(level_losses(student, teacher)["instance"], expected)


def test_masks_choose_the_unsure_half():
    """Not a factor of a mean: what an image that does not count says is without effect."""
    teacher = tensor([[9.0, 0, 0, 0], [1, 0, 0, 0], [5, 0, 0, 0], [2, 0, 0, 0]])
    images, classes = unsure_half(teacher)
    assert images.tolist() == [0, 1, 0, 1]
    assert classes.tolist() == [0, 1, 1, 1]  # equal ones are at the median
    student = logits(4, 4)
    instance = level_losses(student, teacher, images)["instance"]
    assert torch.equal(level_losses(student * images[:, None], teacher, images)["instance"], instance)
    unsure = level_losses(student[[1, 3]], teacher[[1, 3]])["instance"]
    torch.testing.assert_close(instance, unsure / 2)


def test_levels_grow_with_the_batch_unless_they_are_rescaled(labelled):
    """Twice the same images: sums over pairs are four times as large."""
    student, teacher = logits(64, 10), logits(64, 10, seed=1)
    for rescale, factors in ((False, [1, 2, 4]), (True, [1, 1, 1])):
        method = MLKD(rescale=rescale)
        once = method(output(student), output(teacher), labelled(*[0] * 64))
        twice = method(output(student.repeat(2, 1)), output(teacher.repeat(2, 1)), labelled(*[0] * 128))
        ratios = [(twice[name] / once[name]).item() for name in LEVELS]
        assert ratios == pytest.approx(factors, rel=1e-4)
    plain = MLKD(rescale=False)(output(student), output(teacher), labelled(*[0] * 64))
    torch.testing.assert_close(plain, once)  # what is published, at the published size


@pytest.fixture
def seen():
    return []


def step(method, tiny_net, seen, count=8):
    batch = Batch(torch.randn(count, 3, 8, 8), torch.arange(count), torch.arange(count), torch.zeros(count).long())
    student = tiny_net().eval()
    student.register_forward_pre_hook(lambda net, args: seen.append(args[0]))

    def teacher(shown):
        seen.append(shown)
        return output(shown.x[:, 0].flatten(1)[:, :10] * 2)

    return batch, student, method.step(student, teacher, batch)


def test_step_has_every_term_of_both_views_from_its_own_logits(tiny_net, seen):
    """The released code took the weak view's logits for part of the strong term, and left two strong terms out."""
    batch, student, (found, terms, _) = step(MLKD(), tiny_net, seen)
    weak_x, weak, strong_x, strong = seen
    assert torch.equal(weak_x, batch.x)
    assert weak is batch
    assert torch.equal(strong_x, strong.x)
    assert torch.equal(strong.index, torch.full((8,), -1))  # no stored logits are of these images
    assert not torch.equal(strong.x, batch.x)
    assert list(terms) == ["hard", *LEVELS, "strong_hard", *(f"strong_{name}" for name in LEVELS)]
    assert torch.equal(found.logits, student(batch.x).logits)
    ours, theirs = student(strong.x).logits, strong.x[:, 0].flatten(1)[:, :10] * 2
    levels = level_losses(ours, theirs)
    assert terms["strong_hard"].item() == pytest.approx(0.1 * F.cross_entropy(ours, batch.y).item())
    for name, factor in zip(LEVELS, (1, 64 / 8, (64 / 8) ** 2), strict=True):
        assert terms[f"strong_{name}"].item() == pytest.approx(0.9 * factor * levels[name].item(), rel=1e-5)
    assert not MLKD().stored_logits_suffice


def test_weights_of_0_leave_the_labels(tiny_net, seen):
    _, _, (_, terms, _) = step(MLKD(alpha=1.0, beta=0.0), tiny_net, seen)
    assert {name for name, term in terms.items() if term} == {"hard", "strong_hard"}


def test_strong_view_changes_contrast_and_brightness_and_blots_a_square():
    torch.manual_seed(0)
    x = torch.randn(200, 3, 16, 16)
    shown = strong_view(x)
    blots = (shown == 0).all(dim=1)
    sizes = blots.flatten(1).sum(dim=1)
    assert sizes.max() == 64
    assert sizes.min() >= 16  # in a corner
    assert (sizes / 64).mean().item() == pytest.approx((7 / 8) ** 2, abs=0.05)  # a side is whole with probability 1/2
    slopes, shifts = [], []
    for image, blotted, before in zip(shown, blots, x, strict=True):
        # What is left is a straight line of what was there.
        left, was = image[:, ~blotted].flatten(), before[:, ~blotted].flatten()
        slope = ((left - left.mean()) @ (was - was.mean()) / (was - was.mean()).square().sum()).item()
        shift = (left.mean() - slope * was.mean() - (1 - slope) * before.mean()).item()
        slopes.append(slope)
        shifts.append(shift)
        torch.testing.assert_close(left, slope * was + (1 - slope) * before.mean() + shift, atol=1e-4, rtol=1e-4)
    assert 0.5 <= min(slopes) < 0.6
    assert 1.4 < max(slopes) <= 1.5
    assert -0.5 <= min(shifts) < -0.4
    assert 0.4 < max(shifts) <= 0.5


def test_strong_view_is_of_the_seed_and_keeps_its_input_precision_and_layout():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(4, 3, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
        before = x.clone()
        first, again = (strong_view(x) for _ in range(2) if torch.manual_seed(3))
        assert torch.equal(x, before)
        assert torch.equal(first, again)
        assert not torch.equal(strong_view(x), first)
        assert first.dtype == dtype
        assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("student", [torch.zeros(3, 4), 120 * torch.eye(3, 4), logits(3, 4)])
def test_terms_and_gradients_are_finite_under_autocast_too(labelled, student):
    student = student.clone().requires_grad_()
    batch = labelled(3, 3, 3)
    for teacher in (torch.zeros(3, 4), 120 * torch.eye(3, 4).flip(1)):
        terms = MLKD()(output(student), output(teacher), batch)
        (gradient,) = torch.autograd.grad(sum(terms.values()), student)
        assert gradient.isfinite().all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(MLKD()(output(student), output(teacher), batch), terms)


def test_rescale_takes_true_or_false():
    with pytest.raises(ValueError, match=r"^method.rescale must be true or false, got 1$"):
        MLKD(rescale=1)


def test_standardize_compares_z_scores_in_both_views(tiny_net, seen):
    batch, student, (found, terms, _) = step(MLKD(standardize=True), tiny_net, seen)
    strong = seen[3]
    teacher = {"": batch.x[:, 0].flatten(1)[:, :10] * 2, "strong_": strong.x[:, 0].flatten(1)[:, :10] * 2}
    ours = {"": found.logits, "strong_": student(strong.x).logits}
    for view, masks in (("", unsure_half(teacher[""])), ("strong_", ())):
        levels = level_losses(standardized(ours[view]), standardized(teacher[view]), *masks)
        for name, factor in zip(LEVELS, (1, 64 / 8, (64 / 8) ** 2), strict=True):
            assert terms[view + name].item() == pytest.approx(0.9 * factor * levels[name].item(), rel=1e-5)
