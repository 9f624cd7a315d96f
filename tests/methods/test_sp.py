import re

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.sp import SP, sp_loss
from kd.models.output import Output
from tests.common import pair_of


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(feature):
    return Output(torch.zeros(len(feature), 2), (feature,), torch.empty(0))


STUDENT, TEACHER = maps(5, 2, 4, 4), maps(5, 3, 2, 2, seed=1)


def test_sp_loss_by_hand():
    # The student's images are alike: all similarities are 1 / sqrt 2. The teacher's are not: 1 and 0.
    # 2 (1 - 1/sqrt 2)^2 + 2 (1/sqrt 2)^2, over B^2 = 4: (1 - 1/sqrt 2) = 0.292893
    student, teacher = tensor([[3.0, 4.0], [3.0, 4.0]]), tensor([[2.0, 0.0], [0.0, 5.0]])
    assert sp_loss(student, teacher).item() == pytest.approx(0.292893, rel=1e-5)


def reference(student, teacher):
    """Pair by pair in float64."""
    similarities = []
    for feature in (student, teacher):
        rows = feature.double().reshape(len(feature), -1).numpy()
        products = np.array([[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows])
        similarities.append([row / np.sqrt(sum(row**2)) for row in products])
    rows = [sum((ours - theirs) ** 2) for ours, theirs in zip(*similarities, strict=True)]
    return sum(rows) / len(student) ** 2


def test_sp_loss_like_the_papers_formula_pair_by_pair():
    assert sp_loss(STUDENT, TEACHER).item() == pytest.approx(reference(STUDENT, TEACHER), rel=1e-5)


def test_sp_loss_of_equal_or_scaled_maps_is_zero():
    assert sp_loss(STUDENT, STUDENT).item() == 0
    assert sp_loss(7 * STUDENT, STUDENT).item() == pytest.approx(0, abs=1e-12)


def test_sp_loss_does_not_depend_on_the_order_of_the_batch():
    order = tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(sp_loss(STUDENT[order], TEACHER[order]), sp_loss(STUDENT, TEACHER))


@pytest.mark.parametrize("feature", [torch.zeros(3, 2, 2, 2), torch.ones(3, 2, 2, 2), torch.ones(1, 2, 2, 2)])
def test_sp_loss_of_degenerate_maps_has_a_finite_gradient(feature):
    feature = feature.clone().requires_grad_()
    loss = sp_loss(feature, maps(len(feature), 4, 2, 2))
    loss.backward()
    assert loss.isfinite()
    assert feature.grad.isfinite().all()


def test_sp_loss_falls_as_1_over_the_batch_and_rescaling_undoes_it(labelled):
    student, teacher = (maps(256, 4, 2, 2, seed=seed).relu() for seed in (0, 1))
    plain = [sp_loss(student[:count], teacher[:count]).item() for count in (64, 256)]
    assert plain[0] / plain[1] == pytest.approx(4, rel=0.1)
    for rescale, factor in ((True, 4), (False, 1)):
        method = SP(beta=2.0, rescale=rescale)
        terms = method(output(student), output(teacher), labelled(*[0] * 256))
        assert terms["sp"].item() == pytest.approx(2 * factor * plain[1], rel=1e-5)
        assert list(terms) == ["hard", "sp", "soft"]


def test_network_without_maps_is_refused():
    bare = Output(torch.zeros(2, 2), (), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=re.escape("the teacher has no such maps; name its stages")):
        SP().setup(pair_of(output(STUDENT), bare))


def test_rescale_is_a_switch():
    with pytest.raises(ValueError, match=r"^method.rescale must be true or false, got 1$"):
        SP(rescale=1)
