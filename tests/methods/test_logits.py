import math

import pytest
import torch
from torch import tensor

from kd.methods.logits import Logits
from kd.models.output import Output
from tests.common import pair_of


def output(*rows):
    return Output(tensor(rows), (), torch.empty(0))


# T = 2: the teacher says 3/4 and 1/4, the student 1/2 and 1/2. hard = ln 2 = 0.693147, soft = 4 * 0.130812 = 0.523248
STUDENT, TEACHER = output([0.0, 0.0]), output([2 * math.log(3), 0.0])


@pytest.mark.parametrize(
    ("alpha", "hard", "soft"), [(0.25, 0.173287, 0.392436), (0.0, 0.0, 0.523248), (1.0, 0.693147, 0.0)]
)
def test_terms_by_hand(alpha, hard, soft, labelled):
    terms = Logits(2.0, alpha, 0.0)(STUDENT, TEACHER, labelled(0))
    assert list(terms) == ["hard", "soft"]  # a weight of 0 drops no term
    assert terms["hard"].item() == pytest.approx(hard, rel=1e-5)
    assert terms["soft"].item() == pytest.approx(soft, rel=1e-5)


def test_label_smoothing_touches_the_hard_term_only(labelled):
    student = output([math.log(3), 0.0])
    plain, smooth = (Logits(2.0, 0.5, rate)(student, TEACHER, labelled(0)) for rate in (0.0, 0.2))
    assert smooth["hard"].item() == pytest.approx(0.5 * 0.397543, rel=1e-5)  # worked out in tests/test_losses.py
    assert torch.equal(smooth["soft"], plain["soft"])


def test_has_no_weights_of_its_own():
    method = Logits(4.0, 0.1, 0.0)
    method.setup(pair_of(STUDENT, TEACHER))
    assert not method.state_dict()


@pytest.mark.parametrize(
    ("T", "alpha", "message"),
    [
        (0, 0.5, r"T must be in \[0.001, 1e6\], got 0"),
        (math.nan, 0.5, r"T must be in \[0.001, 1e6\], got nan"),
        (4, -0.1, r"alpha must be in \[0, 1\], got -0.1"),
        (4, 1.01, r"alpha must be in \[0, 1\], got 1.01"),
    ],
)
def test_knobs_out_of_range_are_refused(T, alpha, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Logits(T, alpha, 0.0)
