import itertools
import math
import re

import numpy as np
import pytest
import torch

from kd.methods.kdsvd import KDSVD, kdsvd_loss, singular_vectors
from kd.models.output import Output
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(*maps):
    return Output(torch.zeros(len(maps[0]), 10), maps, torch.empty(0))


def built(student, teacher, **knobs):
    method = KDSVD(**knobs)
    method.setup(pair_of(student, teacher))
    return method


def test_kdsvd_loss_by_hand():
    # Maps of one place are their own singular vectors: the teacher's is (1, 0) in both stages, the student's (1, 0) and
    # then (0, 1). Differences between the stages are 0, 1; -1, 0 for the teacher, and -1, 0; 0, 1 for the student. With
    # e = exp(-1/8) all four entries differ by 1 - e = 0.117503: 4 * 0.013807.
    one, two = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1), torch.tensor([0.0, 3.0]).reshape(1, 2, 1, 1)
    assert kdsvd_loss([one, two], [one, one], 1).item() == pytest.approx(0.055228, rel=1e-4)


def vectors(maps, k):
    """Right singular vectors of one image's map in float64, with the sign of the number of largest size."""
    _, values, right = np.linalg.svd(maps.double().flatten(1).T.numpy(), full_matrices=False)
    right = right[:k] * np.sign(right[:k][np.arange(min(k, len(right))), np.abs(right[:k]).argmax(axis=1)])[:, None]
    return right, values[:k]


def reference(student, teacher, k):
    total = 0.0
    for b in range(len(student[0])):
        stages = []
        for ours, theirs in zip(student, teacher, strict=True):
            (candidates, _), (targets, values) = vectors(ours[b], k + 3), vectors(theirs[b], k)
            weights, chosen = values / np.sqrt((values**2).sum()), []
            for target in targets:
                best = max(candidates, key=lambda candidate: abs(candidate @ target))
                chosen.append(best * np.sign(best @ target))
            stages.append((np.array(chosen) * weights[:, None], targets * weights[:, None]))
        for before, here in itertools.pairwise(stages):
            for i in range(k):
                for a in range(len(here[0][i])):
                    for c in range(len(before[0][i])):
                        kernels = [math.exp(-((here[net][i][a] - before[net][i][c]) ** 2) / 8) for net in (0, 1)]
                        total += (kernels[0] - kernels[1]) ** 2
    return total / len(student[0])


@pytest.mark.parametrize("k", [1, 2])
def test_kdsvd_loss_like_the_papers_formula_image_by_image(k):
    student = [noise(3, 5, 4, 4), noise(3, 6, 3, 3, seed=1), noise(3, 6, 3, 3, seed=2)]
    teacher = [noise(3, 5, 5, 5, seed=3), noise(3, 6, 3, 4, seed=4), noise(3, 6, 3, 3, seed=5)]
    assert kdsvd_loss(student, teacher, k).item() == pytest.approx(reference(student, teacher, k), rel=1e-3)


def test_kdsvd_loss_of_equal_maps_is_zero_whatever_their_scale_and_sign():
    maps = [noise(2, 4, 3, 3), noise(2, 5, 3, 3, seed=1)]
    for factor in (1, 100, -1):
        assert kdsvd_loss([factor * m for m in maps], maps, 1).item() == pytest.approx(0, abs=1e-9)


def test_gradient_is_that_of_the_singular_vectors_where_these_are_apart():
    """By differences in float64: the damping of small gaps is not seen here."""
    base = torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0])) + 0.2 * noise(4, 4)
    maps, way = base.reshape(1, 4, 2, 2).requires_grad_(), noise(4, seed=1)
    first, values = singular_vectors(maps, 1)
    torch.testing.assert_close(first[0, :, 0].detach(), torch.tensor(vectors(maps[0].detach(), 1)[0][0]).float())
    assert values.shape == (1, 1)
    (first[0, :, 0] @ way).backward()
    step, found = 1e-5, maps.grad.flatten()
    for place in range(0, 16, 3):
        moved = []
        for sign in (1, -1):
            other = base.double().flatten()
            other[place] += sign * step
            moved.append(vectors(other.reshape(4, 2, 2), 1)[0][0] @ way.double().numpy())
        assert found[place].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.01, abs=1e-4)


@pytest.mark.parametrize(
    "maps",
    [
        torch.zeros(2, 4, 2, 2),
        torch.ones(2, 4, 2, 2),
        torch.eye(4).reshape(1, 4, 2, 2).repeat(2, 1, 1, 1),  # all singular values are equal
        1e-12 * noise(2, 4, 2, 2),
        1e12 * noise(2, 4, 2, 2),
    ],
)
def test_gradient_of_degenerate_maps_is_finite(maps):
    maps = maps.clone().requires_grad_()
    loss = kdsvd_loss([maps, maps * 2], [noise(2, 4, 3, 3, seed=1), noise(2, 4, 3, 3, seed=2)], 2)
    loss.backward()
    assert loss.isfinite()
    assert maps.grad.isfinite().all()


def test_channels_that_differ_have_an_adapter(labelled):
    student, teacher = output(noise(2, 3, 4, 4), noise(2, 5, 2, 2)), output(noise(2, 4, 4, 4), noise(2, 5, 4, 4))
    method = built(student, teacher, beta=2.0)
    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == {"adapters.0.weight": (4, 3, 1, 1)}
    terms = method(student, teacher, labelled(0, 1))
    assert list(terms) == ["hard", "kdsvd", "soft"]
    terms["kdsvd"].backward()
    assert method.adapters[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("k", [1, 2])
def test_term_is_the_weighted_loss_of_so_many_vectors(labelled, k):
    student, teacher = (output(noise(2, 3, 4, 4, seed=seed), noise(2, 5, 2, 2, seed=seed)) for seed in (0, 1))
    term = built(student, teacher, beta=2.0, k=k)(student, teacher, labelled(0, 1))["kdsvd"]
    losses = [kdsvd_loss(student.features, teacher.features, count).item() for count in (1, 2)]
    assert term.item() == pytest.approx(2 * losses[k - 1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=0.01)


def test_networks_without_two_common_stages_are_refused():
    one, two = output(noise(2, 3, 4, 4)), output(noise(2, 3, 4, 4), noise(2, 3, 4, 4))
    with pytest.raises(ValueError, match=re.escape("of 2 stages of the student and 1 of the teacher only one is")):
        built(two, one)
    with pytest.raises(ValueError, match=r"^k must be at most 3, the channels of the teacher's map, got 4$"):
        built(two, two, k=4)


def test_kdsvd_loss_of_maps_that_are_not_finite_is_nan_and_no_error():
    maps = [noise(2, 4, 3, 3), noise(2, 5, 3, 3, seed=1)]
    assert kdsvd_loss([maps[0] * math.nan, maps[1]], maps, 1).isnan()
