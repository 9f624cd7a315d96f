import math

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.at import AT, at_loss
from kd.models.output import Output
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*maps):
    return Output(torch.zeros(len(maps[0]), 3), maps, torch.empty(0))


def test_at_loss_by_hand():
    """Student: channels (3, 0) and (4, -2), so q = (25/2, 4/2), of length sqrt(160.25); teacher: q = (0, 1)."""
    student = tensor([[[[3.0, 0.0]], [[4.0, -2.0]]]])
    teacher = tensor([[[[0.0, -1.0]]]])
    # Q_s = (12.5, 2) / 12.658989 = (0.987441, 0.157990); ((0.987441 - 0)^2 + (0.157990 - 1)^2) / 2 = 0.842010
    assert at_loss(student, teacher).item() == pytest.approx(0.842010, rel=1e-5)
    # p = 1: q_s = (3.5, 1), of length 3.640055, Q_s = (0.961524, 0.274721); half of 0.924528 + 0.526029 is 0.725279
    assert at_loss(student, teacher, 1).item() == pytest.approx(0.725279, rel=1e-5)


def reference(student, teacher, p):
    """Image by image and place by place: 2 - 2 cos of the attention maps, over H * W."""
    total = 0.0
    for ours, theirs in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        maps = []
        for feature in (ours, theirs):
            channels, height, width = feature.shape
            maps.append(
                [
                    sum(abs(feature[c, h, w]) ** p for c in range(channels)) / channels
                    for h in range(height)
                    for w in range(width)
                ]
            )
        cosine = np.dot(*maps) / np.sqrt(np.dot(maps[0], maps[0]) * np.dot(maps[1], maps[1]))
        total += (2 - 2 * cosine) / len(maps[0]) / len(student)
    return total


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_at_loss_like_the_formula_place_by_place(p):
    student, teacher = noise(3, 4, 5, 2), noise(3, 7, 5, 2, seed=1)
    assert at_loss(student, teacher, p).item() == pytest.approx(reference(student, teacher, p), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
@pytest.mark.parametrize("p", [2, 8, 16])
def test_at_loss_of_a_high_power_neither_vanishes_nor_overflows(scale, p):
    student, teacher = noise(3, 4, 5, 2), noise(3, 7, 5, 2, seed=1)
    ours = (scale * student).requires_grad_()
    loss = at_loss(ours, scale * teacher, p)
    loss.backward()
    assert loss.item() == pytest.approx(reference(student.double(), teacher.double(), p), rel=1e-4)
    assert 0 < ours.grad.abs().max() < math.inf


def test_at_loss_sees_neither_order_of_channels_nor_sign_nor_scale():
    student, teacher = noise(3, 4, 5, 2), noise(3, 7, 5, 2, seed=1)
    loss = at_loss(student, teacher)
    torch.testing.assert_close(at_loss(-7 * student[:, [2, 0, 3, 1]], 0.1 * teacher), loss)
    torch.testing.assert_close(at_loss(student[[2, 0, 1]], teacher[[2, 0, 1]]), loss)
    assert at_loss(student, torch.cat([student, -student], dim=1)).item() < 1e-14


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_at_loss_of_zero_maps_is_finite(p):
    """Also its gradient, where the length is 0."""
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = at_loss(student, noise(2, 3, 4, 4), p)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 16)
    assert student.grad.isfinite().all()


def test_at_is_constant_in_the_batch_and_falls_with_the_places():
    student, teacher = noise(3, 4, 4, 4), noise(3, 7, 4, 4, seed=1)
    loss = at_loss(student, teacher)
    torch.testing.assert_close(at_loss(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1)), loss)
    doubled = [feature.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) for feature in (student, teacher)]
    torch.testing.assert_close(at_loss(*doubled), loss / 4)


def test_at_sums_the_common_stages_and_averages_the_larger_map(labelled):
    student = output(noise(2, 2, 8, 8), noise(2, 4, 2, 2))
    teacher = output(noise(2, 2, 16, 16), noise(2, 3, 8, 8, seed=1), noise(2, 6, 4, 4, seed=2))
    method = AT(beta=10.0)
    method.setup(pair_of(student, teacher))
    terms = method(student, teacher, labelled(0, 1))
    assert list(terms) == ["hard", "at", "soft"]
    means = teacher.features[2].unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    expected = at_loss(student.features[0], teacher.features[1]) + at_loss(student.features[1], means)
    torch.testing.assert_close(terms["at"], 10 * expected)


def test_at_of_a_network_without_maps_is_refused():
    bare = Output(torch.zeros(2, 3), (), torch.empty(0))
    with pytest.raises(ValueError, match=r"^the teacher has no such maps; name its stages"):
        AT().setup(pair_of(output(noise(2, 2, 8, 8)), bare))


def test_rescale_makes_stages_count_alike(labelled):
    """Every place of a map four times: its part falls to a quarter, and with rescale it is as before."""
    student, teacher = noise(2, 2, 8, 8), noise(2, 4, 8, 8, seed=1)

    def term(rescale, factor):
        maps = [m.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3) for m in (student, teacher)]
        method = AT(rescale=rescale)
        method.setup(pair_of(output(maps[0]), output(maps[1])))
        return method(output(maps[0]), output(maps[1]), labelled(0, 1))["at"]

    torch.testing.assert_close(term(False, 2), term(False, 1) / 4)
    torch.testing.assert_close(term(True, 2), term(True, 1))
    torch.testing.assert_close(term(True, 1), term(False, 1))  # the weight is published for maps of 8x8


def test_maps_of_one_place_are_refused():
    """Their attention is 1, whatever they are."""
    one, larger = output(noise(2, 2, 1, 1)), output(noise(2, 3, 8, 8), noise(2, 3, 1, 1))
    with pytest.raises(ValueError, match=r"the student's 1x1 and the teacher's 1x1, 8x8 no two are larger; choose"):
        AT().setup(pair_of(one, larger))
    AT().setup(pair_of(larger, larger))
