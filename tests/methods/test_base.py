import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import tensor

from kd.losses import hard_loss, soft_loss
from kd.methods.base import Method


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(student, teacher, T):
    ours, theirs = (log_softmax(z.double().numpy() / T, axis=1) for z in (student, teacher))
    return T**2 * (np.exp(theirs) * (theirs - ours)).sum(axis=1).mean()


# The teacher says 3/4 and 1/4 at T, the student 1/2 and 1/2:
# KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287 = 0.130812, times T^2.
@pytest.mark.parametrize(("T", "expected"), [(0.5, 0.032703), (1, 0.130812), (2, 0.523248), (4, 2.092992)])
def test_soft_loss_by_hand(T, expected):
    student, teacher = tensor([[0.0, 0.0]]), tensor([[T * math.log(3), 0.0]])
    assert soft_loss(student, teacher, T).item() == pytest.approx(expected, rel=1e-5)


def test_soft_loss_is_from_teacher_to_student():
    # the other way round: 1/2 ln(2/3) + 1/2 ln 2 = -0.202733 + 0.346574
    student, teacher = tensor([[math.log(3), 0.0]]), tensor([[0.0, 0.0]])
    assert soft_loss(student, teacher, 1).item() == pytest.approx(0.143841, rel=1e-5)


@pytest.mark.parametrize("T", [0.5, 1, 4, 20])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_soft_loss_like_a_plain_formula(T, classes):
    student, teacher = logits(7, classes), logits(7, classes, seed=1)
    assert soft_loss(student, teacher, T).item() == pytest.approx(reference(student, teacher, T), rel=2e-5)


def test_soft_loss_sums_over_classes_and_averages_over_the_batch():
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    each = [soft_loss(student[i : i + 1], teacher[i : i + 1], 4) for i in range(6)]
    torch.testing.assert_close(soft_loss(student, teacher, 4), sum(each) / 6)
    # impossible classes take nothing from the sum over the others
    impossible = torch.full((6, 30), -1e4)
    padded = soft_loss(torch.cat([student, impossible], 1), torch.cat([teacher, impossible], 1), 4)
    torch.testing.assert_close(padded, soft_loss(student, teacher, 4))


def gradient(student, teacher, T):
    student = student.clone().requires_grad_()
    soft_loss(student, teacher, T).backward()
    return student.grad


def test_gradient_keeps_its_scale_at_any_temperature():
    # as T grows, T^2 KL -> |s - t|^2 / 2C with s and t centred: gradient (s - t) / C for each of B images
    student, teacher = logits(5, 10), logits(5, 10, seed=1)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    for T in (300, 3000):
        torch.testing.assert_close(gradient(student, teacher, T), difference / 10 / 5, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("T", [0.5, 1, 10])
def test_nothing_to_learn_from_oneself(T):
    same = logits(4, 10)
    assert abs(soft_loss(same, same, T).item()) < 1e-5
    assert gradient(same, same, T).abs().max() < 1e-5
    assert abs(soft_loss(same + 7, same, T).item()) < 1e-4  # a shift of all logits says nothing


@pytest.mark.parametrize("T", [1, 4])
def test_confident_networks_give_finite_losses_and_gradients(T):
    student = tensor([[1e4, -1e4, 0.0], [0.0, 1e4, 1e4], [-1e4, -1e4, -1e4]])
    teacher = tensor([[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4], [1e4, -1e4, -1e4]])
    assert soft_loss(student, teacher, T).item() == pytest.approx(reference(student, teacher, T), rel=1e-5)
    assert gradient(student, teacher, T).isfinite().all()
    assert hard_loss(student, tensor([1, 0, 2])).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    student, teacher = logits(8, 10).to(dtype), logits(8, 10, seed=1).to(dtype)
    soft, hard = soft_loss(student, teacher, 4), hard_loss(student, torch.arange(8))
    assert soft.dtype == hard.dtype == torch.float32
    assert soft.item() == pytest.approx(reference(student, teacher, 4), rel=2e-5)
    torch.testing.assert_close(hard, hard_loss(student.float(), torch.arange(8)), rtol=1e-6, atol=0)
    assert gradient(student, teacher, 4).isfinite().all()


def test_half_precision_survives_confidence():
    student = tensor([[6e4, -6e4]], dtype=torch.float16)
    assert soft_loss(student, -student, 1).item() == pytest.approx(120_000, rel=1e-2)


def test_hard_loss_by_hand():
    # probabilities 3/4 and 1/4, then 1/2 and 1/2: -(ln 3/4 + ln 1/2) / 2 = (0.287682 + 0.693147) / 2
    z = tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert hard_loss(z, tensor([0, 1])).item() == pytest.approx(0.490415, rel=1e-5)
    # smoothed by 0.2 the target is 0.9 and 0.1: 0.9 * 0.287682 + 0.1 * 1.386294
    assert hard_loss(z[:1], tensor([0]), 0.2).item() == pytest.approx(0.397543, rel=1e-5)


def test_method_without_terms_cannot_be_used(labelled):
    with pytest.raises(NotImplementedError):
        Method()(None, None, labelled(0))
