import math

import numpy as np
import pytest
import torch
from torch import tensor

from kd.losses import soft_loss
from kd.methods.ttm import TTM, ttm_loss
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_by_hand(labelled):
    """A teacher of 9/10, 1/10 becomes 3/4, 1/4 by a square root; the student says 1/2, 1/2."""
    student, teacher = tensor([[0.0, 0.0]]), tensor([[0.9, 0.1]]).log()
    terms = TTM(gamma=0.5, beta=2.0)(output(student), output(teacher), labelled(0))
    assert list(terms) == ["hard", "ttm"]
    assert terms["hard"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert terms["ttm"].item() == pytest.approx(2 * 0.130812, rel=1e-5)  # 3/4 ln(3/2) + 1/4 ln(1/2)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_loss_is_that_of_powers_of_probabilities(gamma, classes):
    student, teacher = logits(6, classes), logits(6, classes, seed=1)
    p, q = (np.exp(z.double().numpy()) for z in (student, teacher))
    p, q = p / p.sum(axis=1, keepdims=True), (q / q.sum(axis=1, keepdims=True)) ** gamma
    q /= q.sum(axis=1, keepdims=True)
    expected = np.mean([sum(b[c] * np.log(b[c] / a[c]) for c in range(classes)) for a, b in zip(p, q, strict=True)])
    assert ttm_loss(student, teacher, gamma).item() == pytest.approx(expected, rel=1e-5)


def test_loss_is_the_soft_loss_at_an_exponent_of_1():
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    torch.testing.assert_close(ttm_loss(student, teacher, 1.0), soft_loss(student, teacher, 1.0))


def test_gradient_is_p_minus_q_without_a_temperature():
    student, teacher = logits(6, 10).requires_grad_(), logits(6, 10, seed=1)
    (gradient,) = torch.autograd.grad(ttm_loss(student, teacher, 0.1), student)
    torch.testing.assert_close(gradient, (student.softmax(1) - (0.1 * teacher).softmax(1)).detach() / 6)


def test_loss_is_0_where_the_student_is_the_softened_teacher():
    teacher = logits(6, 10)
    assert ttm_loss(0.1 * teacher + 4, teacher, 0.1).item() == pytest.approx(0, abs=1e-6)
    assert ttm_loss(teacher, teacher, 0.1).item() > 0.1


def test_loss_and_gradient_are_finite_at_a_gap_of_120():
    student, teacher = tensor([[0.0, 120.0]]).requires_grad_(), tensor([[120.0, 0.0]])
    for gamma in (0.1, 1.0):
        loss = ttm_loss(student, teacher, gamma)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_weight_of_0_leaves_the_labels(labelled):
    terms = TTM(beta=0.0)(output(logits(2, 5)), output(logits(2, 5, seed=1)), labelled(3, 1))
    assert terms["ttm"] == 0
    assert torch.equal(terms["hard"], torch.nn.functional.cross_entropy(logits(2, 5), tensor([3, 1])))
