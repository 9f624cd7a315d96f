import itertools
import math

import pytest
import torch
from torch import nn, tensor

from kd.methods.ab import AB, ab_loss
from kd.models.output import Output
from tests.common import pair, pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*preacts):
    return Output(torch.zeros(len(preacts[0]), 2), tuple(map(torch.relu, preacts)), torch.empty(0), preacts)


def built(student, teacher, **knobs):
    torch.manual_seed(0)
    method = AB(**knobs)
    method.setup(pair_of(student, teacher))
    return method


STUDENT = output(noise(3, 2, 8, 8), noise(3, 4, 4, 4, seed=1))
TEACHER = output(noise(3, 5, 8, 8, seed=2), noise(3, 6, 2, 2, seed=3))


def test_ab_loss_by_hand():
    """With margin 1: active teachers want more than 1, the others less than -1; 0 is not active."""
    student, teacher = tensor([[[[0.5, 3.0, -2.0, 0.5, -0.25]]]]), tensor([[[[2.0, 0.1, 5.0, -4.0, 0.0]]]])
    # (1 - 0.5)^2, 0, (1 + 2)^2, (0.5 + 1)^2, (-0.25 + 1)^2
    assert ab_loss(student, teacher).item() == pytest.approx(0.25 + 9 + 2.25 + 0.5625)


def reference(student, teacher, m):
    """The four cases as the paper lists them, place by place."""
    total = 0.0
    for b, c, h, w in itertools.product(*map(range, student.shape)):
        s, t = student[b, c, h, w].item(), teacher[b, c, h, w].item()
        if s > -m and t <= 0:
            total += (s + m) ** 2
        if s <= m and t > 0:
            total += (s - m) ** 2
    return total / len(student)


@pytest.mark.parametrize("margin", [0.3, 1.0, 2.0])
def test_ab_loss_like_the_formula_place_by_place(margin):
    student, teacher = noise(2, 3, 4, 3), noise(2, 3, 4, 3, seed=1)
    assert ab_loss(student, teacher, margin).item() == pytest.approx(reference(student, teacher, margin), rel=1e-5)


def test_ab_loss_sees_signs_of_the_teacher_alone():
    student, teacher = noise(2, 3, 4, 3), noise(2, 3, 4, 3, seed=1)
    loss = ab_loss(student, teacher)
    torch.testing.assert_close(ab_loss(student, 100 * teacher), loss)
    torch.testing.assert_close(ab_loss(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1)), loss)
    assert ab_loss(2 * teacher.sign(), teacher).item() == 0


def test_ab_weights_the_stages_and_averages_the_larger_map(labelled):
    method = built(STUDENT, TEACHER, beta=0.5, warmup=0.0)
    first, second = (method.connectors[i](STUDENT.preacts[i]) for i in range(2))
    expected = 0.5 * ab_loss(first, TEACHER.preacts[0])
    expected = expected + ab_loss(nn.functional.avg_pool2d(second, 2), TEACHER.preacts[1])
    terms = method(STUDENT, TEACHER, labelled(0, 1, 0))
    torch.testing.assert_close(terms["ab"], 0.5 * expected)
    assert terms["hard"].item() == pytest.approx(math.log(2))


def test_boundaries_are_learnt_first_and_rest_then(labelled):
    method = built(STUDENT, TEACHER, warmup=0.25, alpha=0.5)
    for method.progress in (0.0, 0.24, 0.25, 0.9):
        terms = method(STUDENT, TEACHER, labelled(0, 1, 0))
        assert list(terms) == ["hard", "ab", "soft"]
        assert (terms["ab"] > 0) == (method.progress < 0.25)
        assert terms["hard"].item() == pytest.approx(0 if method.progress < 0.25 else 0.5 * math.log(2))
        method.zero_grad()
        sum(terms.values()).backward()  # also what rests has gradients, of 0
        assert all((p.grad.abs().max() > 0) == (method.progress < 0.25) for p in method.parameters())


def test_ab_names_the_network_without_maps_before_the_activation(tiny_net):
    bare = tiny_net()
    rich = output(noise(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"^ab needs maps before the activation, and the student has none; .*preacts"):
        AB().setup(pair(bare)._replace(teacher=rich))
    with pytest.raises(ValueError, match=r"^ab needs maps before the activation, and the teacher has none; .*cnn16"):
        AB().setup(pair(bare, bare)._replace(student=rich))


@pytest.mark.parametrize("margin", [0, -1.0, math.nan])
def test_margin_outside_its_range_is_refused(margin):
    with pytest.raises(ValueError, match=r"^method.margin must be in \(0, inf\), got"):
        AB(margin=margin)
