import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.nst import NST, nst_loss
from kd.models.output import Output
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*maps):
    return Output(torch.zeros(len(maps[0]), 3), maps, torch.empty(0))


def test_nst_loss_by_hand():
    """Student: channels (1, 0) and (0, 1) of length 1. Teacher: one channel, (3, 4) / 5."""
    student, teacher = tensor([[[[2.0, 0.0]], [[0.0, 5.0]]]]), tensor([[[[3.0, 4.0]]]])
    # k(a, a): 1, 0, 0, 1, mean 0.5; k(a, b): 0.36 and 0.64, mean 0.5; k(b, b) = 1: 0.5 - 2 * 0.5 + 1 = 0.5
    assert nst_loss(student, teacher).item() == pytest.approx(0.5, rel=1e-6)


def reference(student, teacher):
    """Image by image and pair of channels by pair of channels."""
    total = 0.0
    for ours, theirs in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        a, b = ([channel.ravel() / np.linalg.norm(channel) for channel in feature] for feature in (ours, theirs))
        total += np.mean([np.dot(x, y) ** 2 for x in a for y in a])
        total += np.mean([np.dot(x, y) ** 2 for x in b for y in b])
        total -= 2 * np.mean([np.dot(x, y) ** 2 for x in a for y in b])
    return total / len(student)


@pytest.mark.parametrize(("places", "widths"), [((2, 3), (8, 5)), ((2, 3), (5, 8)), ((4, 5), (3, 7)), ((3, 2), (6, 6))])
def test_nst_loss_like_the_formula_pair_by_pair(places, widths):
    """Through the Gram matrices of places (6 of them, up to 8 channels) and of channels (20 places, up to 7)."""
    student, teacher = noise(3, widths[0], *places).abs(), noise(3, widths[1], *places, seed=1)
    assert nst_loss(student, teacher).item() == pytest.approx(reference(student, teacher), rel=1e-5)


def test_nst_loss_sees_neither_order_of_channels_nor_their_scale():
    student, teacher = noise(3, 4, 5, 2), noise(3, 7, 5, 2, seed=1)
    loss = nst_loss(student, teacher)
    scale = tensor([-1.0, 3.0, 0.2, 10.0])[:, None, None]
    torch.testing.assert_close(nst_loss((scale * student)[:, [2, 0, 3, 1]], teacher), loss)
    torch.testing.assert_close(nst_loss(student[[2, 0, 1]], teacher[[2, 0, 1]]), loss)
    torch.testing.assert_close(nst_loss(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1)), loss)


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (3, 10, 2, 2)])
def test_nst_loss_of_equal_sets_of_channels_is_0(shape):
    feature = noise(*shape)
    assert nst_loss(feature, feature).item() == 0
    assert nst_loss(feature, feature.repeat(1, 3, 1, 1)).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 9, 2, 2), (1, 3, 1, 1)])
def test_nst_loss_of_dead_channels_and_single_places_is_finite(shape):
    student = noise(*shape)
    student[:, 0] = 0
    student.requires_grad_()
    loss = nst_loss(student, torch.zeros(shape))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def largest(function, *tensors):
    """Numbers in the largest tensor that is kept for the backward pass."""
    sizes = [0]

    def pack(kept):
        sizes.append(kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        function(*tensors)
    return max(sizes)


@pytest.mark.parametrize(("channels", "side"), [(64, 4), (16, 8)])
def test_nst_loss_never_holds_all_products(channels, side):
    student, teacher = noise(2, channels, side, side).requires_grad_(), noise(2, channels, side, side, seed=1)
    assert largest(nst_loss, student, teacher) <= 2 * max(channels * side**2, min(channels, side**2) ** 2)


def test_nst_sums_the_common_stages_and_averages_the_larger_map(labelled):
    student = output(noise(2, 2, 8, 8), noise(2, 4, 2, 2))
    teacher = output(noise(2, 2, 16, 16), noise(2, 3, 8, 8, seed=1), noise(2, 6, 4, 4, seed=2))
    method = NST(beta=10.0)
    method.setup(pair_of(student, teacher))
    terms = method(student, teacher, labelled(0, 1))
    assert list(terms) == ["hard", "nst", "soft"]
    means = teacher.features[2].unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    expected = nst_loss(student.features[0], teacher.features[1]) + nst_loss(student.features[1], means)
    torch.testing.assert_close(terms["nst"], 10 * expected)
