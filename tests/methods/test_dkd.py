import math

import pytest
import torch
from torch import tensor

from kd.methods.dkd import DKD
from kd.models.output import Output


def output(*p, T=1):
    """Logits whose softmax at T are these probabilities."""
    return Output(T * tensor([p]).log(), (), torch.empty(0))


# As in tests/test_losses.py: tckd = T^2 * 0.143841, nckd = T^2 * 0.362990, and at T = 1 hard = ln 4 = 1.386294
STUDENT, TEACHER = (1 / 4, 1 / 4, 1 / 2), (1 / 2, 3 / 8, 1 / 8)


def late(method):
    method.progress = 0.5
    return method


@pytest.mark.parametrize(
    ("T", "alpha", "beta", "tckd", "nckd"),
    [(1, 1, 1, 0.143841, 0.362990), (4, 1, 8, 2.301456, 46.462720), (1, 3, 0, 0.431523, 0), (1, 0, 0.5, 0, 0.181495)],
)
def test_terms_by_hand(labelled, T, alpha, beta, tckd, nckd):
    terms = late(DKD(T, alpha, beta))(output(*STUDENT, T=T), output(*TEACHER, T=T), labelled(0))
    assert list(terms) == ["hard", "tckd", "nckd"]  # a weight of 0 drops no term
    assert terms["tckd"].item() == pytest.approx(tckd, rel=1e-5)
    assert terms["nckd"].item() == pytest.approx(nckd, rel=1e-5)


def test_hard_term_is_the_whole_cross_entropy(labelled):
    terms = late(DKD(1.0))(output(*STUDENT), output(*TEACHER), labelled(0))
    assert terms["hard"].item() == pytest.approx(math.log(4), rel=1e-6)


def test_label_smoothing_touches_the_hard_term_only(labelled):
    student = Output(tensor([[math.log(3), 0.0]]), (), torch.empty(0))
    plain, smooth = (late(DKD(label_smoothing=rate))(student, student, labelled(0)) for rate in (0.0, 0.2))
    assert smooth["hard"].item() == pytest.approx(0.397543, rel=1e-5)  # worked out in tests/test_losses.py
    assert torch.equal(smooth["tckd"], plain["tckd"])
    assert torch.equal(smooth["nckd"], plain["nckd"])


def test_warmup_raises_both_terms_of_the_teacher_and_no_other(labelled):
    method = DKD(1.0, 1.0, 1.0, warmup=0.2)
    curve = []
    for method.progress in (0.0, 0.05, 0.1, 0.2, 0.9):
        curve.append(method(output(*STUDENT), output(*TEACHER), labelled(0)))
    full = curve[-1]
    for terms, factor in zip(curve, (0, 0.25, 0.5, 1, 1), strict=True):
        assert terms["hard"] == full["hard"]
        assert terms["tckd"].item() == pytest.approx(factor * full["tckd"].item())
        assert terms["nckd"].item() == pytest.approx(factor * full["nckd"].item())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": 0}, r"T must be in \[0.001, 1e6\], got 0"),
        ({"alpha": -1}, r"alpha must be in \[0, inf\), got -1"),
        ({"beta": math.inf}, r"beta must be in \[0, inf\), got inf"),
        ({"warmup": 1}, r"warmup must be in \[0, 1\), got 1"),
        ({"label_smoothing": 2}, r"label_smoothing must be in \[0, 1\], got 2"),
    ],
)
def test_knobs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DKD(**changes)
