import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.dist import DIST, correlation, dist_losses
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The teacher says 1/2 1/4 1/4 and 1/4 1/2 1/4, the student 1/2 1/4 1/4 and 1/4 1/4 1/2.
STUDENT = tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).log()
TEACHER = tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).log()


@pytest.mark.parametrize("T", [1, 2])
def test_terms_by_hand(labelled, T):
    terms = DIST(T, alpha=0.5, beta=2.0, gamma=3.0)(output(T * STUDENT), output(T * TEACHER), labelled(0, 1))
    assert list(terms) == ["hard", "inter", "intra"]
    # Rows: 1, and of (-1, -1, 2) with (-1, 2, -1) -3/6; their mean is 1/4.
    assert terms["inter"].item() == pytest.approx(2 * T**2 * 0.75, rel=1e-5)
    # Columns: the first 1, the second constant in the student, the third in the teacher; their mean is 1/3.
    assert terms["intra"].item() == pytest.approx(3 * T**2 * 2 / 3, rel=1e-5)


@pytest.mark.parametrize("T", [0.5, 1, 4, 50])
@pytest.mark.parametrize("classes", [3, 10, 100])
def test_losses_are_numpys_correlations(T, classes):
    student, teacher = logits(9, classes, scale=2.0), logits(9, classes, seed=1, scale=2.0)
    p, q = (np.exp(z.double().numpy() / T) for z in (student, teacher))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    found = dist_losses(student, teacher, T)
    assert [value.item() / T**2 for value in found] == pytest.approx([inter, intra], rel=2e-5)


def test_correlation_ignores_shift_and_scale_of_a_row():
    a, b = torch.rand(5, 8), torch.rand(5, 8)
    torch.testing.assert_close(correlation(a, b), correlation(3 * a + 2, 0.1 * b))
    torch.testing.assert_close(correlation(a, a), torch.ones(5))


def test_correlation_of_probabilities_whose_squares_underflow():
    a, b = 1e-28 * torch.rand(3, 6, dtype=torch.float64), torch.rand(3, 6, dtype=torch.float64)
    torch.testing.assert_close(correlation(a.float(), b.float()), correlation(a, b).float(), rtol=1e-4, atol=1e-5)


def test_losses_of_equal_logits_are_0_and_do_not_depend_on_the_order_of_the_batch():
    student, teacher, order = logits(6, 5), logits(6, 5, seed=1), torch.randperm(6)
    assert [value.item() for value in dist_losses(student, student + 7, 4.0)] == pytest.approx([0, 0], abs=2e-5)
    torch.testing.assert_close(dist_losses(student, teacher, 4.0), dist_losses(student[order], teacher[order], 4.0))


def test_t_squared_is_a_plain_weight():
    """Logits that are scaled with T keep their softmax."""
    student, teacher = logits(6, 5), logits(6, 5, seed=1)
    once, twice = dist_losses(student, teacher, 1.0), dist_losses(2 * student, 2 * teacher, 2.0)
    assert [value.item() for value in twice] == pytest.approx([4 * value.item() for value in once], rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.zeros(4, 3), logits(4, 3)),
        (logits(4, 3), torch.zeros(4, 3)),
        (torch.full((4, 3), 50.1), torch.full((4, 3), 50.1)),
        (logits(1, 3), logits(1, 3, seed=1)),
        (logits(4, 2), logits(4, 2, seed=1)),
        (tensor([[120.0, 0, 0], [0, 120, -3]]), tensor([[0.0, 0, 120], [0, 120, 0]])),
    ],
    ids=["constant student", "constant teacher", "constant", "one image", "two classes", "gap"],
)
def test_losses_and_gradients_are_finite(student, teacher):
    student = student.clone().requires_grad_()
    for T in (1.0, 4.0):
        losses = dist_losses(student, teacher, T)
        (gradient,) = torch.autograd.grad(sum(losses), student)
        assert all(loss.isfinite() for loss in losses)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e3


def test_one_image_keeps_its_batch_dimension():
    """A batch of one image has rows to compare and, of each class, a single number."""
    student, teacher = logits(1, 6), logits(1, 6, seed=1)
    inter, intra = dist_losses(student, teacher, 1.0)
    p, q = student.softmax(dim=1).double().numpy(), teacher.softmax(dim=1).double().numpy()
    assert inter.item() == pytest.approx(1 - np.corrcoef(p, q)[0, 1], rel=1e-4)
    assert intra.item() == 1


def test_weights_of_0_leave_the_labels(labelled):
    terms = DIST(beta=0.0, gamma=0.0)(output(logits(2, 5)), output(logits(2, 5, seed=1)), labelled(3, 1))
    assert terms["inter"] == terms["intra"] == 0
    expected = torch.nn.functional.cross_entropy(logits(2, 5), tensor([3, 1]))
    assert torch.equal(terms["hard"], expected)
