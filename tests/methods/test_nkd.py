import math

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.nkd import NKD, target_loss
from kd.models.output import Output


def output(logits):
    return Output(logits, (), torch.empty(0))


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_by_hand(labelled):
    """Probabilities 1/4, 1/4, 1/2 against the teacher's 1/2, 3/8, 1/8, label 0."""
    student, teacher = tensor([[0.25, 0.25, 0.5]]).log(), tensor([[0.5, 0.375, 0.125]]).log()
    terms = NKD(T=1.0, gamma=2.0)(output(student), output(teacher), labelled(0))
    assert list(terms) == ["hard", "target", "nontarget"]
    assert terms["hard"].item() == pytest.approx(math.log(4), rel=1e-6)
    assert terms["target"].item() == pytest.approx(0.693147, rel=1e-5)  # 1/2 ln 4
    # Among the others 1/3, 2/3 against 3/4, 1/4: 3/4 ln(9/4) + 1/4 ln(3/8) = 0.608198 - 0.245207 = 0.362990.
    assert terms["nontarget"].item() == pytest.approx(2 * 0.362990, rel=1e-5)


def reference(student, teacher, y, T):
    """Target and nontarget as published, image by image and class by class: both are cross-entropies."""
    target = nontarget = entropy = 0.0
    for ours, theirs, label in zip(student.double().numpy(), teacher.double().numpy(), y.tolist(), strict=True):
        p, q = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (theirs, ours))
        target -= p[label] * np.log(q[label])
        others = [c for c in range(len(ours)) if c != label]
        p, q = (np.exp((z - z[others].max()) / T) for z in (theirs, ours))
        for c in others:
            nontarget -= T**2 * p[c] / p[others].sum() * np.log(q[c] / q[others].sum())
            entropy -= T**2 * p[c] / p[others].sum() * np.log(p[c] / p[others].sum())
    return target / len(y), nontarget / len(y), entropy / len(y)


@pytest.mark.parametrize("T", [0.5, 1, 3, 20])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_terms_are_the_published_ones_less_the_teachers_entropy(labelled, T, classes):
    student, teacher, y = logits(7, classes), logits(7, classes, seed=1), [i % classes for i in range(7)]
    terms = NKD(T, gamma=1.0)(output(student), output(teacher), labelled(*y))
    target, nontarget, entropy = reference(student, teacher, tensor(y), T)
    assert terms["target"].item() == pytest.approx(target, rel=1e-5)
    assert terms["nontarget"].item() == pytest.approx(nontarget - entropy, rel=1e-4, abs=1e-6)


def test_gradient_of_nontarget_is_that_of_the_published_cross_entropy(labelled):
    teacher, y = logits(5, 6, seed=1), tensor([0, 5, 2, 2, 1])
    ours, theirs = (logits(5, 6).requires_grad_() for _ in range(2))
    NKD(3.0, 1.0)(output(ours), output(teacher), labelled(*y.tolist()))["nontarget"].backward()
    hidden = torch.nn.functional.one_hot(y, 6).bool()
    published = (teacher / 3).masked_fill(hidden, -math.inf).softmax(dim=1)
    log_p = (theirs / 3).masked_fill(hidden, -math.inf).log_softmax(dim=1).masked_fill(hidden, 0.0)
    (-9 * (published * log_p).sum(dim=1).mean()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_student_that_agrees_has_nothing_left_to_learn_from_the_other_classes(labelled):
    z = logits(4, 10)
    # whatever both say of the label itself
    other = z.scatter_add(1, torch.arange(4)[:, None], torch.full((4, 1), 5.0))
    assert NKD()(output(z), output(other), labelled(0, 1, 2, 3))["nontarget"].item() == pytest.approx(0, abs=1e-4)


def test_terms_are_finite_at_a_gap_of_120(labelled):
    student, teacher = tensor([[120.0, 0.0, -5.0]]).requires_grad_(), tensor([[0.0, 120.0, 1.0]])
    for label in (0, 1, 2):
        terms = NKD(T=1.0)(output(student), output(teacher), labelled(label))
        (gradient,) = torch.autograd.grad(sum(terms.values()), student)
        assert all(term.isfinite() for term in terms.values())
        assert gradient.isfinite().all()


def test_teachers_unsureness_makes_the_target_term_small():
    student = logits(3, 4)
    y = tensor([1, 2, 3])
    sure = 200.0 * torch.nn.functional.one_hot(y, 4)
    hard = torch.nn.functional.cross_entropy(student, y)
    assert target_loss(student, sure, y).item() == pytest.approx(hard.item(), rel=1e-6)
    assert target_loss(student, torch.zeros(3, 4), y).item() == pytest.approx(hard.item() / 4, rel=1e-6)


def test_weight_of_0_leaves_the_other_terms(labelled):
    args = output(logits(4, 10)), output(logits(4, 10, seed=1)), labelled(0, 1, 2, 3)
    plain, full = NKD(gamma=0.0)(*args), NKD()(*args)
    assert plain["nontarget"] == 0
    assert all(torch.equal(plain[name], full[name]) for name in ("hard", "target"))
