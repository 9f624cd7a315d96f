"""The mathematics: values by hand, independent references, identities, extremes."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import tensor

from kd.losses import hard_loss, nce_loss, nckd_loss, soft_loss, tckd_loss


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


def exact(student, teacher, T):
    """T^2 * KL with 50 digits: fp64 loses half of its own at T = 1e6."""
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        for ours, theirs in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
            p, q = ([mpmath.exp(mpmath.mpf(z) / T) for z in row] for row in (theirs, ours))
            total += mpmath.fsum(
                a / sum(p) * (mpmath.log(a / sum(p)) - mpmath.log(b / sum(q))) for a, b in zip(p, q, strict=True)
            )
        return float(T**2 * total / len(student))


@pytest.mark.parametrize("T", [0.001, 0.1, 1, 10, 11, 100, 1e3, 1e4, 1e5, 1e6])
def test_losses_are_exact_at_every_temperature(T):
    student, teacher, y = logits(7, 10), logits(7, 10, seed=1), torch.arange(7)
    assert soft_loss(student, teacher, T).item() == pytest.approx(exact(student, teacher, T), rel=2e-4, abs=1e-9 * T)
    others = [torch.stack([torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(z)]) for z in (student, teacher)]
    assert nckd_loss(student, teacher, y, T).item() == pytest.approx(exact(*others, T), rel=2e-4, abs=1e-9 * T)
    # the label against all others: two classes with the logits T log p_y and T log(1 - p_y)
    binary = [
        torch.stack([log_p, torch.log(-torch.expm1(log_p))], 1) * T for log_p in map(target(y, T), (student, teacher))
    ]
    if T > 0.1:  # below, 1 - p_y is beyond fp64
        assert tckd_loss(student, teacher, y, T).item() == pytest.approx(exact(*binary, T), rel=2e-4, abs=1e-9 * T)


def target(y, T):
    return lambda z: (z.double() / T).log_softmax(dim=1).gather(1, y[:, None]).squeeze(1)


@pytest.mark.parametrize("T", [1, 10, 11, 100, 1e3, 1e4, 1e5, 1e6])
def test_soft_loss_gradient_is_exact_at_every_temperature(T):
    student, teacher = logits(5, 10), logits(5, 10, seed=1)
    q, p = ((z.double() / T).softmax(dim=1) for z in (student, teacher))
    torch.testing.assert_close(gradient(student, teacher, T), (T * (q - p) / 5).float(), rtol=1e-4, atol=1e-6)


def test_losses_are_as_exact_under_autocast():
    student, teacher, y = logits(7, 10), logits(7, 10, seed=1), torch.arange(7)
    for T in (4, 1e5):
        with torch.autocast("cpu", torch.bfloat16):
            mixed = soft_loss(student, teacher, T), tckd_loss(student, teacher, y, T), nckd_loss(student, teacher, y, T)
        plain = soft_loss(student, teacher, T), tckd_loss(student, teacher, y, T), nckd_loss(student, teacher, y, T)
        assert [value.dtype for value in mixed] == [torch.float32] * 3
        torch.testing.assert_close(mixed, plain, rtol=1e-6, atol=0)


def test_soft_loss_is_not_negative_where_fp32_would_be():
    student = logits(64, 10)
    teacher = student + 0.01 * logits(64, 10, seed=1)
    for T in (20, 1e3, 1e5):
        assert soft_loss(student, teacher, T).item() == pytest.approx(4.05e-4, rel=0.1)  # |0.03|^2 * 9 / (2 * 10)


@pytest.mark.parametrize("T", [0.5, 1, 10, 1e5])
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


# One image of three classes at T = 1, label 0: the teacher says 1/2, 3/8, 1/8, the student 1/4, 1/4, 1/2.
#   tckd = 1/2 ln(1/2 : 1/4) + 1/2 ln(1/2 : 3/4) = 0.346574 - 0.202733 = 0.143841
#   nckd, of 3/4 and 1/4 against 1/3 and 2/3: 3/4 ln(9/4) + 1/4 ln(3/8) = 0.608198 - 0.245207 = 0.362990
@pytest.mark.parametrize("T", [1, 4])
def test_tckd_and_nckd_by_hand(T):
    student, teacher = (T * tensor([p]).log() + 3 for p in ([1 / 4, 1 / 4, 1 / 2], [1 / 2, 3 / 8, 1 / 8]))
    assert tckd_loss(student, teacher, tensor([0]), T).item() == pytest.approx(T**2 * 0.143841, rel=1e-5)
    assert nckd_loss(student, teacher, tensor([0]), T).item() == pytest.approx(T**2 * 0.362990, rel=1e-5)


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_tckd_and_nckd_make_up_the_soft_loss(T, classes):
    student, teacher, y = logits(6, classes), logits(6, classes, seed=1), torch.arange(6) % classes
    rest = 1 - (teacher / T).softmax(dim=1)[torch.arange(6), y]
    for i in range(6):
        one = student[i : i + 1], teacher[i : i + 1]
        together = tckd_loss(*one, y[i : i + 1], T) + rest[i] * nckd_loss(*one, y[i : i + 1], T)
        assert together.item() == pytest.approx(soft_loss(*one, T).item(), rel=1e-3, abs=1e-5)


def test_tckd_and_nckd_are_means_over_the_batch():
    student, teacher, y = logits(6, 10), logits(6, 10, seed=1), torch.arange(6)
    for loss in (tckd_loss, nckd_loss):
        each = [loss(student[i : i + 1], teacher[i : i + 1], y[i : i + 1], 4) for i in range(6)]
        torch.testing.assert_close(loss(student, teacher, y, 4), sum(each) / 6)


def test_nckd_of_two_classes_is_nothing():
    student = logits(5, 2).requires_grad_()
    loss = nckd_loss(student, logits(5, 2, seed=1), torch.arange(5) % 2, 4)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("loss", [tckd_loss, nckd_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [((200, 0, 0), (0, 200, 0)), ((0, 200, 100), (200, 0, 0)), ((-200, 0, 0), (0, 0, 200)), ((6e4, 0, 0), (0, 6e4, 0))],
)
def test_tckd_and_nckd_of_confident_networks_are_finite(loss, dtype, student, teacher):
    ours = tensor([student], dtype=dtype).requires_grad_()
    value = loss(ours, tensor([teacher], dtype=dtype), tensor([0]), 1)
    value.backward()
    assert value.dtype == torch.float32
    assert 0 <= value < 2e5
    assert ours.grad.isfinite().all()


def test_tckd_of_opposite_certainties_by_hand():
    # The teacher rules the label out, the student everything else: ln(1 / e^-200) but for ln 2 of two other classes.
    opposite = tensor([[200.0, 0.0, 0.0]]), tensor([[0.0, 200.0, 200.0]])
    assert tckd_loss(*opposite, tensor([0]), 1).item() == pytest.approx(200 - math.log(2), rel=1e-5)


def test_nce_loss_by_hand():
    # K = 2 and Z / N = 1/2, so that a score s has the odds e^s / (K Z / N) = e^s of being real.
    positive, negatives = tensor([math.log(3)]), tensor([[0.0, -math.log(3)]])
    # 3/4 real; 1/2 and 3/4 noise: ln(4/3) + ln 2 + ln(4/3)
    assert nce_loss(positive, negatives, tensor(-math.log(2))).item() == pytest.approx(1.268511, rel=1e-5)


def test_nce_loss_is_the_textbook_formula_for_any_number_of_images():
    positive, negatives, log_mean = logits(4), logits(4, 30, seed=1), tensor(0.7)
    for images in (10, 50_000):
        noise, constant = 30 / images, images * math.exp(0.7)
        real, false = positive.double().exp() / constant, negatives.double().exp() / constant
        expected = -(real / (real + noise)).log().sum() - (noise / (false + noise)).log().sum()
        assert nce_loss(positive, negatives, log_mean).item() == pytest.approx(expected.item() / 4, rel=1e-5)


def test_nce_loss_of_extreme_scores_is_finite():
    positive, negatives = tensor([-300.0]), tensor([[300.0, -300.0]])
    assert nce_loss(positive, negatives, tensor(0.0)).item() == pytest.approx(600, rel=1e-5)


def test_label_smoothing_of_weighted_labels_is_weighted_too():
    """An image of weight 3 counts three times, whatever the smoothing."""
    z, y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 3])
    weights = torch.tensor([[3.0], [0.5]])
    each = [hard_loss(z[i : i + 1], y[i : i + 1], 0.2) for i in range(2)]
    weighted = hard_loss(z, weights * torch.nn.functional.one_hot(y, 5), 0.2)
    torch.testing.assert_close(weighted, (3 * each[0] + 0.5 * each[1]) / 2)
