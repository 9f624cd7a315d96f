import math

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.skd import SKD, skd_loss
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_by_hand(labelled):
    """Two images, two classes. The student's point apart, the teacher's the same way: D = (0, -1/2; -1/2, 0).

    The rows have the covariance (1, -1; -1, 1) / 8. With 1/8 on its diagonal the inverse is (16, 8; 8, 16) / 3, so that
    each row has the squared distance 16/3 / 4, and the root of it is 1.154701.
    """
    student, teacher = tensor([[3.0, 0], [0, 0.5]]), tensor([[1.0, 0], [7, 0]])
    terms = SKD(alpha=0.25, beta=2.0, tikhonov=0.125)(output(student), output(teacher), labelled(0, 1))
    assert list(terms) == ["hard", "skd", "soft"]
    assert terms["skd"].item() == pytest.approx(2 * 1.154701, rel=1e-6)
    hard = (math.log1p(math.exp(-3)) + math.log1p(math.exp(-0.5))) / 2
    assert terms["hard"].item() == pytest.approx(0.25 * hard, rel=1e-5)


def reference(student, teacher, tikhonov):
    """Cosines pair by pair, numpy's covariance and inverse, in fp64."""
    student, teacher = student.double().numpy(), teacher.double().numpy()
    count, classes = student.shape
    cosine = lambda z, i, j: z[i] @ z[j] / math.sqrt((z[i] @ z[i]) * (z[j] @ z[j]))  # noqa: E731
    d = np.array(
        [[(cosine(student, i, j) - cosine(teacher, i, j)) / classes for j in range(count)] for i in range(count)]
    )
    inverse = np.linalg.inv(np.cov(d, rowvar=False) + tikhonov * np.eye(count))
    return np.mean([math.sqrt(row @ inverse @ row) for row in d])


@pytest.mark.parametrize("tikhonov", [1e-3, 0.1, 5])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_loss_like_a_plain_formula(classes, tikhonov):
    student, teacher = logits(12, classes), logits(12, classes, seed=1)
    expected = reference(student, teacher, tikhonov)
    assert skd_loss(student, teacher, tikhonov).item() == pytest.approx(expected, rel=1e-4)


def test_loss_ignores_the_length_of_logits_and_the_order_of_images():
    student, teacher, order = logits(8, 10), logits(8, 10, seed=1), torch.randperm(8)
    loss = skd_loss(student, teacher, 0.1)
    torch.testing.assert_close(skd_loss(student * torch.rand(8, 1).add(0.1), 9 * teacher, 0.1), loss)
    torch.testing.assert_close(skd_loss(student[order], teacher[order], 0.1), loss)


def test_loss_of_equal_networks_and_of_one_image_is_0_with_a_gradient():
    for student, teacher in ((logits(6, 10), logits(6, 10)), (logits(1, 10), logits(1, 10, seed=1))):
        student.requires_grad_()
        loss = skd_loss(student, teacher, 0.1)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert gradient.abs().max().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("student", [torch.zeros(4, 3), torch.full((4, 3), 2.0), 120 * torch.eye(4, 3), logits(4, 3)])
def test_loss_and_gradient_are_finite(student):
    student = student.clone().requires_grad_()
    for teacher in (torch.zeros(4, 3), 120 * torch.eye(4, 3).flip(1), logits(4, 3, seed=1)):
        loss = skd_loss(student, teacher, 0.1)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_loss_is_in_fp32_under_autocast():
    student, teacher = logits(8, 10), logits(8, 10, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = skd_loss(student, teacher, 0.1)
    assert torch.equal(loss, skd_loss(student, teacher, 0.1))


def test_size_grows_as_the_root_of_the_batch_while_the_diagonal_outweighs_the_covariance():
    student, teacher = logits(64, 100), logits(64, 100, seed=1)
    ratio = skd_loss(student, teacher, 1e3) / skd_loss(student[:16], teacher[:16], 1e3)
    assert ratio.item() == pytest.approx(2, rel=0.1)


def test_weight_of_0_leaves_the_terms_of_logits(labelled):
    args = output(logits(2, 5)), output(logits(2, 5, seed=1)), labelled(3, 1)
    plain, full = SKD(beta=0.0)(*args), SKD()(*args)
    assert plain["skd"] == 0
    assert all(torch.equal(plain[name], full[name]) for name in ("hard", "soft"))


def test_tikhonov_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^method.tikhonov must be in \[1e-4, inf\), got 0$"):
        SKD(tikhonov=0)
