import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import zscore
from torch import tensor

from kd.losses import nckd_loss, soft_loss, standardized, tckd_loss
from kd.methods.ctkd import CTKD
from kd.methods.dkd import DKD
from kd.methods.logits import Logits
from kd.methods.lskd import LSKD
from kd.methods.mlkd import MLKD
from kd.models.output import Output
from tests.common import pair_of


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_standardized_by_hand():
    """Deviation with K - 1: of (1, 2, 3) it is 1, and with K it would be 0.816."""
    torch.testing.assert_close(
        standardized(tensor([[1.0, 2, 3], [10, 10, 40]])),
        tensor([[-1.0, 0, 1], [-1, -1, 2]]) / tensor([[1.0], [math.sqrt(3)]]),
    )


def test_standardized_is_scipys_zscore_with_one_degree_of_freedom():
    z = logits(7, 10)
    expected = zscore(z.double().numpy(), axis=1, ddof=1)
    np.testing.assert_allclose(standardized(z).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [torch.zeros(2, 5), torch.full((2, 5), 50.1), tensor([[1e30, 1e30, 1e30]])])
def test_standardized_of_equal_logits_has_a_finite_gradient(rows):
    rows = rows.clone().requires_grad_()
    z = standardized(rows)
    (gradient,) = torch.autograd.grad((z * torch.arange(z.shape[1])).sum(), rows)
    assert z.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("classes", "T", "p"), [(10, 1, 0.724), (10, 2, 0.351), (100, 1, 0.996), (100, 2, 0.600)])
def test_no_teacher_is_surer_than_the_page_says(classes, T, p):
    """The surest logits are those of which all but one are equal."""
    surest = torch.zeros(1, classes)
    surest[0, 3] = 1000.0
    found = (standardized(surest) / T).softmax(dim=1).max().item()
    assert found == pytest.approx(p, abs=5e-4)
    assert found == pytest.approx(1 / (1 + (classes - 1) * math.exp(-math.sqrt(classes) / T)), rel=1e-5)
    others = torch.randn(1000, classes) * torch.rand(1000, 1) * 50
    assert (standardized(others) / T).softmax(dim=1).max().item() < found


def test_terms_by_hand(labelled):
    """Z-scores of three classes: student (-1, 0, 1), teacher (1, 0, -1); T = 2.

    The softmax is e^0.5 : 1 : e^-0.5 = 0.506480 : 0.307196 : 0.186324 for the teacher, reversed for the student. KL is
    the sum of p times the difference of z / T: 0.506480 * 1 - 0.186324 * 1 = 0.320156, times T^2 = 1.280625.
    """
    terms = LSKD(T=2.0, alpha=0.5, beta=3.0)(
        output(tensor([[1.0, 2, 3]])), output(tensor([[70.0, 40, 10]])), labelled(2)
    )
    assert list(terms) == ["hard", "lskd"]
    assert terms["lskd"].item() == pytest.approx(3 * 1.280625, rel=1e-5)
    # of the logits themselves: -ln(e^3 / (e + e^2 + e^3)) = 0.407606
    assert terms["hard"].item() == pytest.approx(0.5 * 0.407606, rel=1e-5)


@pytest.mark.parametrize("T", [0.5, 2, 20])
@pytest.mark.parametrize("classes", [3, 10, 100])
def test_term_like_a_plain_formula(labelled, T, classes):
    student, teacher = logits(6, classes), logits(6, classes, seed=1, scale=9.0)
    ours, theirs = (log_softmax(zscore(z.double().numpy(), axis=1, ddof=1) / T, axis=1) for z in (student, teacher))
    expected = T**2 * (np.exp(theirs) * (theirs - ours)).sum(axis=1).mean()
    terms = LSKD(T, beta=1.0)(output(student), output(teacher), labelled(*[0] * 6))
    assert terms["lskd"].item() == pytest.approx(expected, rel=2e-5)


def test_term_ignores_shift_and_scale_of_either_network(labelled):
    student, teacher, batch = logits(4, 10), logits(4, 10, seed=1), labelled(0, 1, 2, 3)
    term = LSKD()(output(student), output(teacher), batch)["lskd"]
    torch.testing.assert_close(LSKD()(output(0.1 * student + 8), output(teacher), batch)["lskd"], term)
    torch.testing.assert_close(LSKD()(output(student), output(30 * teacher - 2), batch)["lskd"], term)
    assert LSKD()(output(5 * teacher), output(teacher), batch)["lskd"].item() == pytest.approx(0, abs=1e-5)


def test_term_and_gradient_are_finite_for_constant_logits_and_a_gap_of_120(labelled):
    for student in (torch.zeros(1, 4), tensor([[120.0, 0, 0, 0]]), torch.full((1, 4), -7.3)):
        student.requires_grad_()
        terms = LSKD(T=1.0)(output(student), output(tensor([[0.0, 0, 0, 120]])), labelled(1))
        (gradient,) = torch.autograd.grad(sum(terms.values()), student)
        assert gradient.isfinite().all()


def test_logits_with_standardize_is_the_same_with_its_weights(labelled):
    args = output(logits(4, 10)), output(logits(4, 10, seed=1)), labelled(0, 1, 2, 3)
    terms, lskd = Logits(2.0, 0.1, standardize=True)(*args), LSKD(2.0, 0.1, 0.9)(*args)
    assert list(terms) == ["hard", "soft"]
    assert torch.equal(terms["hard"], lskd["hard"])
    assert torch.equal(terms["soft"], lskd["lskd"])


def test_standardize_is_off_by_default_and_changes_no_bit(labelled):
    student, teacher, batch = logits(4, 10), logits(4, 10, seed=1), labelled(0, 1, 2, 3)
    soft = Logits(2.0, 0.1)(output(student), output(teacher), batch)["soft"]
    assert torch.equal(soft, (1 - 0.1) * soft_loss(student, teacher, 2.0))
    method = DKD(warmup=0.0)
    terms = method(output(student), output(teacher), batch)
    assert torch.equal(terms["tckd"], tckd_loss(student, teacher, batch.y, 4.0))
    assert torch.equal(terms["nckd"], 8 * nckd_loss(student, teacher, batch.y, 4.0))


def test_dkd_with_standardize_reads_z_scores_but_for_the_labels(labelled):
    student, teacher, batch = logits(4, 10), logits(4, 10, seed=1), labelled(0, 1, 2, 3)
    terms = DKD(2.0, 1.0, 1.0, warmup=0.0, standardize=True)(output(student), output(teacher), batch)
    ours, theirs = standardized(student), standardized(teacher)
    assert torch.equal(terms["tckd"], tckd_loss(ours, theirs, batch.y, 2.0))
    assert torch.equal(terms["nckd"], nckd_loss(ours, theirs, batch.y, 2.0))
    assert terms["hard"].item() == pytest.approx(torch.nn.functional.cross_entropy(student, batch.y).item())


@pytest.mark.parametrize("method", [Logits, DKD])
def test_standardize_takes_true_or_false(method):
    with pytest.raises(ValueError, match=r"^method.standardize must be true or false, got 1$"):
        method(standardize=1)


@pytest.mark.parametrize(
    "method",
    [LSKD(), Logits(standardize=True), DKD(standardize=True), CTKD(standardize=True), MLKD(standardize=True)],
    ids=lambda method: type(method).__name__,
)
def test_z_scores_of_two_classes_are_refused(method):
    two, three = (pair_of(output(logits(4, classes)), output(logits(4, classes))) for classes in (2, 3))
    instead = "choose method=logits" if isinstance(method, LSKD) else "write method.standardize=false"
    message = f"^z-scores of the logits of 2 classes are constants, of which a student learns nothing; {instead}$"
    with pytest.raises(ValueError, match=message):
        method.setup(two)
    method.setup(three)


@pytest.mark.parametrize("method", [Logits(), DKD(), CTKD(), MLKD()], ids=lambda method: type(method).__name__)
def test_logits_of_two_classes_are_not(method):
    method.setup(pair_of(output(logits(4, 2)), output(logits(4, 2))))


def test_terms_of_two_classes_are_finite(labelled):
    """In a loop of one's own, which calls no setup."""
    student = logits(4, 2).requires_grad_()
    terms = LSKD()(output(student), output(logits(4, 2, seed=1)), labelled(0, 1, 1, 0))
    (gradient,) = torch.autograd.grad(sum(terms.values()), student)
    assert gradient.isfinite().all()
