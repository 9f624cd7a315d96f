import math

import mpmath
import pytest
import torch
from torch import tensor

from kd.losses import soft_loss
from kd.methods.abkd import ABKD, abkd_loss
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_by_hand(labelled):
    """The teacher says 3/4, 1/4 at T = 2, the student 1/2, 1/2.

    a = b = 1: (p - q)^2 / 2, summed 1/16; with a = 1, b = 0: KL = 0.130812 as in tests/test_losses.py.
    """
    student, teacher = tensor([[0.0, 0.0]]), tensor([[2 * math.log(3), 0.0]])
    for a, b, expected in ((1.0, 1.0, 0.0625), (1.0, 0.0, 0.130812), (0.0, 1.0, 0.143841)):
        terms = ABKD(2.0, 0.25, 3.0, a, b)(output(student), output(teacher), labelled(0))
        assert list(terms) == ["hard", "abkd", "soft"]
        assert terms["abkd"].item() == pytest.approx(3 * expected, rel=1e-5)
        assert terms["hard"].item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
        assert terms["soft"].item() == pytest.approx(0.75 * 4 * 0.130812, rel=1e-5)


def exact(student, teacher, T, a, b):
    """The general formula with 60 digits; it needs no limits if a 0 is replaced by 1e-20."""
    with mpmath.workdps(60):
        a, b = (mpmath.mpf(x) if x else mpmath.mpf("1e-20") for x in (a, b))
        b += mpmath.mpf("1e-20") * (a + b == 0)
        total = mpmath.mpf(0)
        for ours, theirs in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
            p, q = ([mpmath.exp(mpmath.mpf(z) / T) for z in row] for row in (theirs, ours))
            p, q = ([value / sum(row) for value in row] for row in (p, q))
            total += mpmath.fsum(
                a / (a + b) * x ** (a + b) + b / (a + b) * y ** (a + b) - x**a * y**b for x, y in zip(p, q, strict=True)
            )
        return float(total / (a * b) / len(student))


@pytest.mark.parametrize(
    ("a", "b"),
    [(0.8, 0.3), (0.5, 0.5), (2, 1), (1, 0), (0.4, 0), (0, 1), (0, 0.3), (0, 0), (1, -1), (-0.5, 0.5), (2e-4, 3e-4)],
)
@pytest.mark.parametrize("T", [1, 4])
def test_loss_is_the_general_formula_and_its_limits(a, b, T):
    student, teacher = logits(3, 5), logits(3, 5, seed=1)
    expected = exact(student, teacher, T, a, b)
    assert abkd_loss(student, teacher, T, a, b).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0.7, 0), (0, 0.7), (0, 0), (0.6, -0.6)])
def test_loss_is_continuous_where_it_has_limits(a, b):
    student, teacher = logits(3, 5, scale=1.0), logits(3, 5, seed=1, scale=1.0)
    limit = abkd_loss(student, teacher, 1.0, a, b).item()
    for near in (9e-5, 1.1e-4, 2e-4):
        assert abkd_loss(student, teacher, 1.0, a + near, b + near / 2).item() == pytest.approx(limit, rel=2e-3)


@pytest.mark.parametrize("T", [1, 4, 20])
def test_loss_is_kl_in_either_direction(T):
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    torch.testing.assert_close(T**2 * abkd_loss(student, teacher, T, 1.0, 0.0), soft_loss(student, teacher, T))
    torch.testing.assert_close(T**2 * abkd_loss(student, teacher, T, 0.0, 1.0), soft_loss(teacher, student, T))


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.3), (1, 0), (0, 1), (0, 0), (0.3, 0), (2, 2)])
def test_loss_is_0_for_equal_networks_and_larger_for_others(a, b):
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    assert abkd_loss(teacher + 3, teacher, 4.0, a, b).item() == pytest.approx(0, abs=1e-6)
    assert abkd_loss(student, teacher, 4.0, a, b) > 0


def test_exchanging_networks_and_exponents_changes_nothing():
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    torch.testing.assert_close(abkd_loss(student, teacher, 4.0, 0.8, 0.3), abkd_loss(teacher, student, 4.0, 0.3, 0.8))


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.3), (1, 0), (0, 1), (0, 0), (0.001, 0.001), (2, 2)])
def test_loss_and_gradient_are_finite_at_a_gap_of_120(a, b):
    student = tensor([[120.0, 0, 0], [0, 0, 0]]).requires_grad_()
    loss = abkd_loss(student, tensor([[0.0, 120, 0], [0, 0, 120]]), 1.0, a, b)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_weight_of_0_leaves_the_labels(labelled):
    terms = ABKD(beta=0.0)(output(logits(2, 5)), output(logits(2, 5, seed=1)), labelled(3, 1))
    assert terms["abkd"] == terms["soft"] == 0
    assert torch.equal(terms["hard"], torch.nn.functional.cross_entropy(logits(2, 5), tensor([3, 1])))
