import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from kd.data.batch import Batch
from kd.methods.tfkd import TFKD, virtual_loss
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_by_hand(labelled):
    """The virtual teacher says 9/10, 1/10, and 3/4, 1/4 at T = 2; the student says 1/2, 1/2."""
    terms = TFKD(T=2.0, alpha=0.75, certainty=0.9)(output(torch.zeros(1, 2)), None, labelled(1))
    assert list(terms) == ["hard", "virtual"]
    assert terms["hard"].item() == pytest.approx(0.75 * math.log(2), rel=1e-6)
    assert terms["virtual"].item() == pytest.approx(0.25 * 0.130812, rel=1e-5)  # 3/4 ln(3/2) + 1/4 ln(1/2)


@pytest.mark.parametrize("T", [1, 4, 20])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_loss_like_a_plain_formula_image_by_image(T, classes):
    student, y = logits(5, classes), torch.arange(5) % classes
    expected = 0.0
    for z, label in zip(student.double().numpy(), y.tolist(), strict=True):
        u = [0.99 if c == label else 0.01 / (classes - 1) for c in range(classes)]
        q = np.array([p ** (1 / T) for p in u])
        q, p = q / q.sum(), np.exp(z) / np.exp(z).sum()
        expected += sum(q[c] * np.log(q[c] / p[c]) for c in range(classes)) / 5
    assert virtual_loss(student, y, T, 0.99).item() == pytest.approx(expected, rel=1e-5)


def test_virtual_teacher_says_what_the_page_says():
    """The gradient is p - q, so that it shows q."""
    for T, p in ((1.0, 0.99), (20.0, 0.1350)):
        student = torch.zeros(1, 10).requires_grad_()
        (gradient,) = torch.autograd.grad(virtual_loss(student, tensor([4]), T, 0.99), student)
        assert 0.1 - gradient[0, 4].item() == pytest.approx(p, abs=5e-5)
        assert 0.1 - gradient[0, 0].item() == pytest.approx((1 - p) / 9, abs=5e-5)


def test_defaults_are_label_smoothing_of_0_096_with_10_classes(labelled):
    y = [0, 3, 9, 9]
    ours, theirs = (logits(4, 10).requires_grad_() for _ in range(2))
    sum(TFKD()(output(ours), None, labelled(*y)).values()).backward()
    F.cross_entropy(theirs, tensor(y), label_smoothing=0.096).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=5e-5, rtol=0)


def test_loss_and_gradient_are_finite_at_a_gap_of_120_and_an_extreme_temperature():
    student = tensor([[0.0, 120.0, -3.0]]).requires_grad_()
    for T in (1e-3, 1.0, 1e6):
        loss = virtual_loss(student, tensor([0]), T, 0.99)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_step_needs_no_teacher(tiny_net):
    student = tiny_net().eval()
    batch = Batch.of(torch.randn(4, 3, 8, 8), tensor([0, 1, 2, 3]))
    output, terms, _ = TFKD().step(student, None, batch)
    assert torch.equal(output.logits, student(batch.x).logits)
    assert terms["hard"].item() == pytest.approx(0.9 * F.cross_entropy(output.logits, batch.y).item())
    assert not TFKD.reads


def test_certainty_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^method.certainty must be in \(0, 1\), got 1$"):
        TFKD(certainty=1)
