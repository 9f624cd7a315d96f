import math

import pytest
import torch
from torch import nn, tensor

from kd.data.batch import Batch
from kd.losses import soft_loss, standardized
from kd.methods.ctkd import CTKD, Reverse, tempered_loss
from kd.models.output import Output
from kd.training.optim import parameter_groups


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def late(method, progress=0.9):
    method.progress = progress
    return method


def test_terms_by_hand(labelled):
    """theta = 0 gives T = 1 + 2 / 2 = 2, at which the teacher says 3/4, 1/4 and the student 1/2, 1/2."""
    method = CTKD(alpha=0.25, span=2.0)
    nn.init.zeros_(method.theta)
    terms = method(output(torch.zeros(1, 2)), output(tensor([[2 * math.log(3), 0.0]])), labelled(0))
    assert list(terms) == ["hard", "soft"]
    assert terms["hard"].item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert terms["soft"].item() == pytest.approx(0.75 * 4 * 0.130812, rel=1e-5)  # as in tests/test_losses.py


def test_temperature_begins_at_15_6():
    assert CTKD().temperature().item() == pytest.approx(1 + 20 / (1 + math.exp(-1)), rel=1e-6)
    assert CTKD().temperature().item() == pytest.approx(15.62, abs=0.005)


@pytest.mark.parametrize("T", [1.0, 4.0, 15.6, 30.0])
def test_loss_is_the_soft_loss(T):
    student, teacher = logits(8, 10), logits(8, 10, seed=1)
    found = tempered_loss(student, teacher, tensor(T))
    torch.testing.assert_close(found, soft_loss(student.double(), teacher.double(), T), atol=1e-4, rtol=1e-5)


def test_gradient_of_the_temperature_is_that_of_finite_differences():
    student, teacher = logits(8, 10), logits(8, 10, seed=1)
    T = tensor(4.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(tempered_loss(student, teacher, T), T)
    high, low = (soft_loss(student, teacher, t).item() for t in (4.01, 3.99))
    assert gradient.item() == pytest.approx((high - low) / 0.02, rel=1e-2)


@pytest.mark.parametrize("theta", [-4.0, 1.0])
def test_temperature_moves_to_increase_the_loss_and_the_student_to_lower_it(labelled, theta):
    """A step of plain gradient descent on either alone."""
    student, teacher, batch = logits(8, 10, scale=1.0).requires_grad_(), logits(8, 10, seed=1), labelled(*range(8))
    method = late(CTKD(alpha=0.0))
    nn.init.constant_(method.theta, theta)
    before = method(output(student), output(teacher), batch)["soft"]
    gradients = torch.autograd.grad(before, [student, method.theta])
    with torch.no_grad():
        moved = method(output(student - 0.1 * gradients[0]), output(teacher), batch)["soft"]
        method.theta -= 0.1 * gradients[1] / gradients[1].abs()
        opposed = method(output(student), output(teacher), batch)["soft"]
    assert moved < before < opposed


def test_reversal_changes_the_gradient_of_the_temperature_only():
    student, teacher = logits(4, 10).requires_grad_(), logits(4, 10, seed=1)
    method = late(CTKD())
    reversed_T, T = method.temperature(), (1 + 20 * method.theta.sigmoid())
    assert torch.equal(reversed_T, T)
    ours, theirs = (
        torch.autograd.grad(tempered_loss(student, teacher, t), [student, method.theta]) for t in (reversed_T, T)
    )
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], -theirs[1])


def test_reversal_is_turned_on_as_half_a_cosine():
    method = CTKD(warmup=0.4)
    strengths = []
    for method.progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.99):
        strengths.append(method.strength)
    half = math.sqrt(0.5)
    assert strengths == pytest.approx([0, (1 - half) / 2, 0.5, (1 + half) / 2, 1, 1])
    x = tensor(3.0, requires_grad=True)
    Reverse.apply(x, 0.25).backward()
    assert x.grad.item() == -0.25


def test_temperature_is_trained_without_weight_decay_and_saved():
    method = CTKD()
    decayed, plain = parameter_groups(nn.ModuleDict({"net": nn.Linear(2, 2), "method": method}))
    assert all(p is not method.theta for p in decayed["params"])
    assert any(p is method.theta for p in plain["params"])
    assert plain["weight_decay"] == 0
    assert method.state_dict().keys() == {"theta"}


def test_temperature_is_a_monitor(tiny_net):
    batch = Batch.of(torch.randn(4, 3, 8, 8), tensor([0, 1, 2, 3]))
    step = CTKD().step(tiny_net(), lambda batch: output(logits(4, 10)), batch)
    assert list(step.terms) == ["hard", "soft"]
    assert step.monitors["T"].item() == pytest.approx(15.62, abs=0.005)
    assert not step.monitors["T"].requires_grad


def test_loss_and_gradients_are_finite_in_half_precision_and_at_a_gap_of_120(labelled):
    for dtype in (torch.float32, torch.bfloat16):
        method = late(CTKD()).to(dtype)
        for theta in (-200.0, 0.0, 200.0):
            nn.init.constant_(method.theta, theta)
            student = tensor([[120.0, 0.0]], dtype=dtype, requires_grad=True)
            terms = method(output(student), output(tensor([[0.0, 120.0]], dtype=dtype)), labelled(1))
            gradients = torch.autograd.grad(sum(terms.values()), [student, method.theta])
            assert terms["soft"].dtype == torch.float32
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 0.5}, r"method.lowest must be in \[1, 10\], got 0.5"),
        ({"span": 0}, r"method.span must be in \(0, 20\], got 0"),
    ],
)
def test_knobs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        CTKD(**changes)


def test_standardize_compares_z_scores(labelled):
    student, teacher, batch = logits(4, 10), logits(4, 10, seed=1), labelled(0, 1, 2, 3)
    terms = CTKD(standardize=True)(output(student), output(teacher), batch)
    plain = CTKD()(output(standardized(student)), output(standardized(teacher)), batch)
    assert torch.equal(terms["soft"], plain["soft"])
    assert torch.equal(terms["hard"], CTKD()(output(student), output(teacher), batch)["hard"])
