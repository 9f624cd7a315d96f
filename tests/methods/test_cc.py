import math

import pytest
import torch
from torch import tensor

from kd.methods.cc import CC, cc_loss
from kd.models.output import Output


def embeddings(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = embeddings(5, 3), embeddings(5, 7, seed=1)


def test_cc_loss_by_hand():
    # Products are 1 for the student's pair and 0 for the teacher's. With gamma 0.5 and P = 2 the kernel is
    # (1 + x + x^2 / 2) / e: 2.5 / e and 1 / e. Two entries of (1.5 / e)^2, over B^2 = 4: 1.125 / e^2 = 0.152252
    student, teacher = tensor([[1.0], [4.0]]), tensor([[0.0, 2.0], [3.0, 0.0]])
    assert cc_loss(student, teacher, 0.5, 2).item() == pytest.approx(0.152252, rel=1e-5)


def reference(student, teacher, gamma):
    """The kernel itself, pair by pair in float64, by distances."""
    kernels = []
    for x in (student.double(), teacher.double()):
        x = [row / row.norm() for row in x]
        kernels.append([math.exp(-gamma * (a - b).pow(2).sum().item()) for a in x for b in x])
    return sum((a - b) ** 2 for a, b in zip(*kernels, strict=True)) / len(student) ** 2


def test_cc_loss_of_high_order_is_that_of_the_gaussian_kernel():
    assert cc_loss(STUDENT, TEACHER, 0.4, 20).item() == pytest.approx(reference(STUDENT, TEACHER, 0.4), rel=1e-5)
    assert cc_loss(STUDENT, TEACHER, 0.4, 2).item() == pytest.approx(reference(STUDENT, TEACHER, 0.4), rel=0.3)


def test_cc_loss_does_not_depend_on_the_order_of_the_batch():
    """As RepDistiller's does, which compares consecutive images."""
    order = tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(cc_loss(STUDENT[order], TEACHER[order], 0.4, 2), cc_loss(STUDENT, TEACHER, 0.4, 2))


def test_cc_loss_sees_nothing_but_directions():
    torch.testing.assert_close(cc_loss(3 * STUDENT, TEACHER, 0.4, 2), cc_loss(STUDENT, TEACHER, 0.4, 2))
    assert cc_loss(STUDENT, STUDENT, 0.4, 2).item() == 0
    assert cc_loss(STUDENT[:1], TEACHER[:1], 0.4, 2).item() == pytest.approx(0, abs=1e-12)


def test_cc_loss_does_not_grow_with_the_batch():
    student, teacher = embeddings(256, 8), embeddings(256, 8, seed=1)
    few, many = (cc_loss(student[:count], teacher[:count], 0.4, 2).item() for count in (64, 256))
    assert few == pytest.approx(many, rel=0.1)


@pytest.mark.parametrize("student", [torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(1, 2)])
def test_cc_loss_of_degenerate_embeddings_has_a_finite_gradient(student):
    student = student.clone().requires_grad_()
    loss = cc_loss(student, embeddings(len(student), 4), 0.4, 2)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_terms_are_weighted(labelled):
    outputs = [Output(torch.zeros(5, 2), (), embedding) for embedding in (STUDENT, TEACHER)]
    terms = CC(beta=3.0, gamma=0.2, P=3)(*outputs, labelled(0, 1, 0, 1, 0))
    assert list(terms) == ["hard", "cc", "soft"]
    assert terms["cc"].item() == pytest.approx(3 * cc_loss(STUDENT, TEACHER, 0.2, 3).item(), rel=1e-6)


def test_order_of_the_expansion_is_a_whole_number():
    with pytest.raises(ValueError, match=r"^P must be a whole number in \[1, 20\], got 0$"):
        CC(P=0)
