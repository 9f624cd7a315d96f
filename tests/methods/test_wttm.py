import math

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.ttm import ttm_loss
from kd.methods.wttm import WTTM, wttm_loss
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_by_hand(labelled):
    """A teacher of 9/10, 1/10: square roots with the sum U = 4 / sqrt(10) = 1.264911, and so 3/4, 1/4."""
    student, teacher = tensor([[0.0, 0.0]]), tensor([[0.9, 0.1]]).log()
    terms = WTTM(gamma=0.5, beta=2.0)(output(student), output(teacher), labelled(0))
    assert list(terms) == ["hard", "wttm"]
    assert terms["hard"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert terms["wttm"].item() == pytest.approx(2 * 1.264911 * 0.130812, rel=1e-5)  # KL as in test_ttm.py


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_loss_is_that_of_powers_of_probabilities(gamma, classes):
    student, teacher = logits(6, classes), logits(6, classes, seed=1)
    expected = 0.0
    for ours, theirs in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        p, q = np.exp(ours) / np.exp(ours).sum(), (np.exp(theirs) / np.exp(theirs).sum()) ** gamma
        # U cancels within q, so that the weighted sum is that of the powers themselves
        expected += (q * (np.log(q / q.sum()) - np.log(p))).sum() / len(student)
    assert wttm_loss(student, teacher, gamma).item() == pytest.approx(expected, rel=1e-5)


def test_loss_is_the_mean_of_each_images_ttm_times_its_weight():
    student, teacher = logits(5, 10), logits(5, 10, seed=1)
    each = [ttm_loss(student[i : i + 1], teacher[i : i + 1], 0.2) for i in range(5)]
    weights = (teacher.softmax(dim=1) ** 0.2).sum(dim=1)
    torch.testing.assert_close(wttm_loss(student, teacher, 0.2), (weights * torch.stack(each)).mean())


def test_weights_reach_from_1_for_a_sure_teacher_to_a_power_of_c():
    student = logits(1, 10)
    for teacher, weight in ((torch.zeros(1, 10), 10**0.9), (1e4 * torch.eye(10)[:1], 1.0)):
        expected = weight * ttm_loss(student, teacher, 0.1)
        torch.testing.assert_close(wttm_loss(student, teacher, 0.1), expected)


def test_loss_is_that_of_ttm_at_an_exponent_of_1():
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    torch.testing.assert_close(wttm_loss(student, teacher, 1.0), ttm_loss(student, teacher, 1.0))


def test_loss_and_gradient_are_finite_at_a_gap_of_120():
    student, teacher = tensor([[0.0, 120.0]]).requires_grad_(), tensor([[120.0, 0.0]])
    for gamma in (0.1, 1.0):
        loss = wttm_loss(student, teacher, gamma)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_weight_of_0_leaves_the_labels(labelled):
    terms = WTTM(beta=0.0)(output(logits(2, 5)), output(logits(2, 5, seed=1)), labelled(3, 1))
    assert terms["wttm"] == 0
    assert torch.equal(terms["hard"], torch.nn.functional.cross_entropy(logits(2, 5), tensor([3, 1])))
