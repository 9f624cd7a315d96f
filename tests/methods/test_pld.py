import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from kd.methods.pld import PLD, pld_loss, ranking
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_by_hand(labelled):
    """The teacher says 1/2, 3/8, 1/8 at T = 2, the label is 2, so that the ranking is 2, 0, 1.

    Of e^z = 2, 1, 1 the student draws 2 with 1/4, then 0 with 2/3, then 1 with certainty: the weights 1/8 and 1/2 give
    1/8 ln 4 + 1/2 ln(3/2) = 0.173287 + 0.202733.
    """
    student, teacher = tensor([[2.0, 1, 1]]).log(), 2 * tensor([[0.5, 0.375, 0.125]]).log()
    terms = PLD(T=2.0)(output(student), output(teacher), labelled(2))
    assert list(terms) == ["pld"]
    assert terms["pld"].item() == pytest.approx(0.376019, rel=1e-5)


def test_ranking_is_the_label_then_the_teachers_order():
    teacher = tensor([[0.0, 5, -1, 3], [2, 2, 2, 2], [120, 0, 1, -120]])
    expected = [[2, 1, 3, 0], [3, 0, 1, 2], [0, 2, 1, 3]]
    assert ranking(teacher, tensor([2, 3, 0])).tolist() == expected


@pytest.mark.parametrize("T", [0.5, 1, 4])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_loss_like_a_chain_of_softmaxes_image_by_image(T, classes):
    """Each choice is a cross-entropy over what is left, in fp64."""
    student, teacher = logits(5, classes).double(), logits(5, classes, seed=1).double()
    y = torch.arange(5) % classes
    expected = 0.0
    for z, t, label in zip(student, teacher, y.tolist(), strict=True):
        weights = torch.exp(t / T) / torch.exp(t / T).sum()
        left = list(range(classes))
        choice = label
        while left:
            expected += weights[choice] * F.cross_entropy(z[left][None], tensor([left.index(choice)])) / 5
            left.remove(choice)
            choice = max(left, key=lambda c: t[c].item(), default=None)
    assert pld_loss(student, teacher, y, T).item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_is_the_hard_loss_with_a_teacher_that_is_sure_of_the_label():
    student, y = logits(4, 10), tensor([0, 3, 9, 3])
    teacher = 500.0 * F.one_hot(y, 10)
    torch.testing.assert_close(pld_loss(student, teacher, y, 1.0), F.cross_entropy(student, y))


def test_loss_ignores_shift_of_both_and_scale_of_the_teacher_but_for_the_weights():
    student, teacher, y = logits(4, 10), logits(4, 10, seed=1), tensor([0, 3, 9, 3])
    loss = pld_loss(student, teacher, y, 4.0)
    torch.testing.assert_close(pld_loss(student + 9, teacher - 5, y, 4.0), loss)
    torch.testing.assert_close(pld_loss(student, 2 * teacher, y, 8.0), loss)


def test_loss_does_not_depend_on_the_order_of_classes_or_images():
    student, teacher, y = logits(4, 10), logits(4, 10, seed=1), tensor([0, 3, 9, 3])
    loss, order, images = pld_loss(student, teacher, y, 4.0), torch.randperm(10), tensor([2, 0, 3, 1])
    torch.testing.assert_close(pld_loss(student[:, order], teacher[:, order], order.argsort()[y], 4.0), loss)
    torch.testing.assert_close(pld_loss(student[images], teacher[images], y[images], 4.0), loss)


def test_loss_is_convex_in_the_students_logits():
    ours, theirs, teacher, y = logits(4, 10), logits(4, 10, seed=2), logits(4, 10, seed=1), tensor([0, 3, 9, 3])
    between = pld_loss((ours + theirs) / 2, teacher, y, 4.0)
    assert between < (pld_loss(ours, teacher, y, 4.0) + pld_loss(theirs, teacher, y, 4.0)) / 2


def test_gradient_is_that_of_a_student_that_ranks_too_evenly():
    """Descending orders the student's logits as the ranking says."""
    z, teacher, y = torch.zeros(1, 4).requires_grad_(), tensor([[4.0, 3, 2, 1]]), tensor([2])
    (gradient,) = torch.autograd.grad(pld_loss(z, teacher, y, 4.0), z)
    assert (-gradient).argsort(dim=1, descending=True).tolist()[0][-1] == 3
    assert gradient.sum().item() == pytest.approx(0, abs=1e-6)


def test_loss_and_gradient_are_finite_at_a_gap_of_120():
    student = tensor([[120.0, 0, -120], [0, 0, 0]]).requires_grad_()
    for label in (0, 1, 2):
        y = tensor([label, label])
        loss = pld_loss(student, tensor([[-120.0, 0, 120], [0, 0, 0]]), y, 1.0)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()
