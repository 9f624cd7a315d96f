import math

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.srd import SRD, srd_loss
from kd.models.output import Output
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(embedding):
    return Output(torch.zeros(len(embedding), 2), (), embedding)


def test_srd_loss_by_hand():
    # Two images, normalised to -1 and 1, and to 1 and -1 for the teacher: both differ by 2. log(2 * 2^4) = 3.465736.
    # The variances are 10^4, beside which the 10^-4 of BatchNorm does not show.
    student, teacher = tensor([[0.0], [200.0]]), tensor([[500.0], [300.0]])
    assert srd_loss(student, teacher, 4.0).item() == pytest.approx(3.465736, abs=1e-4)
    assert srd_loss(student, teacher, 1.0).item() == pytest.approx(math.log(4), abs=1e-4)


@pytest.mark.parametrize("exponent", [1.0, 4.0, 5.5])
def test_srd_loss_like_the_papers_formula_in_float64(exponent):
    student, teacher = noise(6, 3), 3 * noise(6, 3, seed=1) + 1
    total, normal = 0.0, []
    for x in (student.double().numpy(), teacher.double().numpy()):
        normal.append((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-4))
    for i in range(6):
        for d in range(3):
            total += abs(normal[0][i, d] - normal[1][i, d]) ** exponent
    assert srd_loss(student, teacher, exponent).item() == pytest.approx(math.log(total), rel=1e-4)


def test_term_like_torchs_batchnorm_and_its_gradient(labelled):
    """BatchNorm without learned scale, as the authors use it."""
    method = SRD(beta=3.0)
    student, teacher = noise(6, 3), noise(6, 5, seed=1)
    method.setup(pair_of(output(student), output(teacher)))
    norm = torch.nn.BatchNorm1d(5, eps=1e-4, affine=False)
    expected = 3 * (norm(method.projector(student)) - norm(teacher)).abs().pow(4).sum().log()
    (gradient,) = torch.autograd.grad(expected, method.projector.weight)
    terms = method(output(student), output(teacher), labelled(*[0] * 6))
    assert list(terms) == ["hard", "srd", "soft"]
    terms["srd"].backward()
    torch.testing.assert_close(terms["srd"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.projector.weight.grad, gradient, rtol=1e-3, atol=1e-4)


def test_srd_loss_sees_neither_scale_nor_place_of_a_column():
    student, teacher = 100 * noise(6, 3), 100 * noise(6, 3, seed=1)
    moved = teacher * tensor([1.0, 5.0, 20.0]) + 7
    torch.testing.assert_close(srd_loss(student, moved, 4.0), srd_loss(student, teacher, 4.0))
    order = tensor([3, 0, 5, 4, 1, 2])
    torch.testing.assert_close(srd_loss(student[order], teacher[order], 4.0), srd_loss(student, teacher, 4.0))


@pytest.mark.parametrize("exponent", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("student", [torch.zeros(4, 3), noise(4, 3), 1e15 * noise(4, 3), noise(1, 3)])
def test_srd_loss_is_finite_also_for_equal_embeddings(student, exponent):
    for teacher in (student, noise(*student.shape, seed=1)):
        ours = student.clone().requires_grad_()
        loss = srd_loss(ours, teacher, exponent)
        loss.backward()
        assert loss.isfinite()
        assert ours.grad.isfinite().all()
        if len(student) == 1:
            assert ours.grad.abs().max() == 0


def test_gradient_does_not_depend_on_how_often_the_batch_is_repeated():
    student, teacher = noise(6, 3), noise(6, 3, seed=1)
    gradients = []
    for times in (1, 4):
        shift = torch.zeros(6, 3, requires_grad=True)
        srd_loss((student + shift).repeat(times, 1), teacher.repeat(times, 1), 4.0).backward()
        gradients.append(shift.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_exponent_below_1_is_refused():
    with pytest.raises(ValueError, match=r"^exponent must be in \[1, 100\], got 0.5$"):
        SRD(exponent=0.5)
