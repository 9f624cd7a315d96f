import itertools

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods import rkd
from kd.methods.rkd import RKD, angle_loss, distance_loss
from kd.models.output import Output


def embeddings(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = embeddings(5, 3), embeddings(5, 7, seed=1)


def test_rkd_losses_by_hand():
    # The student's three points lie on a line at 0, 1, 3: distances 1, 2, 3 with mean 2. The teacher's are the corners
    # of a triangle with sides 1: all distances are 1. The differences 1/2, 0, 1/2 cost d^2 / 2 = 1/8 each, both ways:
    # 4/8 / 9 = 0.055556.
    # Cosines on the line: 1 at the outer vertices, -1 at the middle one; in the triangle 1/2. The differences 1/2, 3/2,
    # 1/2 cost 1/8, 1, 1/8, both ways, and a side with itself nothing: 2 * 5/4 / 27 = 0.092593.
    student = tensor([[0.0], [1.0], [3.0]])
    teacher = tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    assert distance_loss(student, teacher).item() == pytest.approx(0.055556, rel=1e-4)
    assert angle_loss(student, teacher).item() == pytest.approx(0.092593, rel=1e-4)


def huber(a, b):
    return (a - b) ** 2 / 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def reference(student, teacher):
    """Pair by pair and triple by triple in float64; angles by products of directions and not by the law of cosines."""
    n, relations = len(student), []
    for x in (student.double().numpy(), teacher.double().numpy()):
        d = {(i, j): np.sqrt(((x[i] - x[j]) ** 2).sum()) for i, j in itertools.product(range(n), repeat=2)}
        mean = sum(d.values()) / (n * (n - 1))
        cosines = [
            0.0 if j in (i, k) else ((x[i] - x[j]) / d[i, j]) @ ((x[k] - x[j]) / d[k, j])
            for i, j, k in itertools.product(range(n), repeat=3)
        ]
        relations.append(([value / mean for value in d.values()], cosines))
    return [float(np.mean([huber(a, b) for a, b in zip(*both, strict=True)])) for both in zip(*relations, strict=True)]


def test_rkd_losses_like_the_papers_formula_triple_by_triple():
    found = distance_loss(STUDENT, TEACHER).item(), angle_loss(STUDENT, TEACHER).item()
    assert found == pytest.approx(reference(STUDENT, TEACHER), rel=1e-5)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_rkd_losses_see_nothing_but_relations(loss):
    """Not order, scale, place or direction."""
    order = tensor([3, 0, 4, 1, 2])
    expected = loss(STUDENT, TEACHER)
    turn = torch.linalg.qr(embeddings(3, 3, seed=2)).Q
    torch.testing.assert_close(loss(STUDENT[order], TEACHER[order]), expected)
    torch.testing.assert_close(loss(3 * STUDENT @ turn + 1, TEACHER), expected)
    assert loss(STUDENT, STUDENT).item() == 0


def test_angles_in_parts_are_those_at_once(monkeypatch):
    """In value and gradient, also where the last part is smaller."""
    results = []
    for entries in (rkd.ENTRIES, 2 * 5 * 7):
        monkeypatch.setattr(rkd, "ENTRIES", entries)
        student = STUDENT.clone().requires_grad_()
        loss = angle_loss(student, TEACHER)
        loss.backward()
        results.append((loss.detach(), student.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
@pytest.mark.parametrize("student", [torch.zeros(4, 3), torch.ones(4, 3), torch.ones(1, 3)])
def test_rkd_losses_of_equal_embeddings_have_a_small_gradient(loss, student):
    student = student.clone().requires_grad_()
    value = loss(student, embeddings(len(student), 2))
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 10


def test_neighbours_far_from_the_origin_keep_their_distance():
    """Squares minus products would lose it."""
    student = tensor([[1000.0, 0.0], [1000.01, 0.0], [1000.0, 0.02]])
    assert distance_loss(student, student - 1000).item() == pytest.approx(0, abs=1e-5)
    assert angle_loss(student, student - 1000).item() == pytest.approx(0, abs=1e-5)


def test_angles_of_neighbours_far_from_others_are_those_of_float64():
    """Two clusters, 100 times as far apart as their images."""
    student, teacher = (embeddings(8, 6, seed=seed) + 100 * (torch.arange(8) % 2)[:, None] for seed in (0, 1))
    _, expected = reference(student, teacher)
    assert angle_loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_rkd_losses_do_not_grow_with_the_batch(loss):
    student, teacher = embeddings(96, 8), embeddings(96, 8, seed=1)
    assert loss(student, teacher).item() == pytest.approx(loss(student[:48], teacher[:48]).item(), rel=0.1)


def test_terms_are_weighted(labelled):
    student = Output(torch.zeros(5, 2), (), STUDENT)
    terms = RKD(alpha=0.5, beta=2.0, distance_weight=3.0, angle_weight=0.25)(
        student, Output(torch.zeros(5, 2), (), TEACHER), labelled(0, 1, 0, 1, 0)
    )
    assert list(terms) == ["hard", "distance", "angle", "soft"]
    assert terms["hard"].item() == pytest.approx(0.5 * 0.693147, rel=1e-5)
    assert terms["distance"].item() == pytest.approx(6 * distance_loss(STUDENT, TEACHER).item(), rel=1e-6)
    assert terms["angle"].item() == pytest.approx(0.5 * angle_loss(STUDENT, TEACHER).item(), rel=1e-6)
