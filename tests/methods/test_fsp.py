import itertools
import math

import numpy as np
import pytest
import torch
from torch import tensor

from kd.methods.fsp import FSP, fsp_loss
from kd.models.output import Output
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*maps):
    return Output(torch.zeros(len(maps[0]), 2), maps, torch.empty(0))


def built(student, teacher, **knobs):
    method = FSP(**knobs)
    method.setup(pair_of(student, teacher))
    return method


STUDENT = noise(3, 2, 8, 8), noise(3, 4, 4, 4, seed=1), noise(3, 3, 2, 2, seed=2)
TEACHER = noise(3, 2, 8, 8, seed=3), noise(3, 4, 4, 4, seed=4), noise(3, 3, 2, 2, seed=5)


def test_fsp_loss_by_hand():
    """Two places; first map and second: (1, 2) and (3, 4), (0, 1) of the student, (1, 0) and (2, 1), (2, 3)."""
    student = tensor([[[[1.0, 2.0]]]]), tensor([[[[3.0, 4.0]], [[0.0, 1.0]]]])
    teacher = tensor([[[[1.0, 0.0]]]]), tensor([[[[2.0, 1.0]], [[2.0, 3.0]]]])
    # G_s = (3 + 8, 0 + 2) / 2 = (5.5, 1), G_t = (2, 2) / 2 = (1, 1): 4.5^2 / 2
    assert fsp_loss(student, teacher).item() == pytest.approx(10.125)


def reference(student, teacher):
    """Image by image and pair of channels by pair of channels; each map's side is twice the next one's."""
    total = 0.0
    for (a, b), (c, d) in zip(itertools.pairwise(student), itertools.pairwise(teacher), strict=True):
        squares = []
        for image, i, j in itertools.product(range(len(a)), range(a.shape[1]), range(b.shape[1])):
            entries = []
            for shallow, deep in ((a, b), (c, d)):
                shallow, deep = shallow[image, i].double().numpy(), deep[image, j].double().numpy()
                height, width = deep.shape
                means = shallow.reshape(height, 2, width, 2).mean(axis=(1, 3))
                entries.append((means * deep).sum() / deep.size)
            squares.append((entries[0] - entries[1]) ** 2)
        total += np.mean(squares)
    return total


def test_fsp_loss_like_the_formula_pair_by_pair():
    assert fsp_loss(STUDENT, TEACHER).item() == pytest.approx(reference(STUDENT, TEACHER), rel=1e-5)


def test_fsp_loss_is_constant_in_batch_and_places():
    loss = fsp_loss(STUDENT, TEACHER)
    assert fsp_loss(TEACHER, TEACHER).item() == 0
    repeated = ([feature.repeat(4, 1, 1, 1) for feature in maps] for maps in (STUDENT, TEACHER))
    torch.testing.assert_close(fsp_loss(*repeated), loss)
    # as large a matrix from a teacher on larger images
    larger = [feature.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) for feature in TEACHER]
    torch.testing.assert_close(fsp_loss(STUDENT, larger), loss)
    torch.testing.assert_close(fsp_loss([2 * f for f in STUDENT], [2 * f for f in TEACHER]), 16 * loss)


def test_fsp_takes_the_common_stages_from_the_deepest_up(labelled):
    student, teacher = output(*STUDENT[1:]), output(*TEACHER)
    terms = built(student, teacher, warmup=0.0, beta=0.5)(student, teacher, labelled(0, 1, 0))
    torch.testing.assert_close(terms["fsp"], 0.5 * fsp_loss(STUDENT[1:], TEACHER[1:]))
    assert terms["hard"].item() == pytest.approx(math.log(2))


def test_matrices_are_learnt_first_and_rest_then(labelled):
    student, teacher = output(*STUDENT), output(*TEACHER)
    method = built(student, teacher, warmup=0.25, alpha=0.5)
    for method.progress in (0.0, 0.24, 0.25, 0.9):
        terms = method(student, teacher, labelled(0, 1, 0))
        assert list(terms) == ["hard", "fsp", "soft"]
        assert (terms["fsp"] > 0) == (method.progress < 0.25)
        assert terms["hard"].item() == pytest.approx(0 if method.progress < 0.25 else 0.5 * math.log(2))


def test_fsp_has_nothing_to_learn_beside_the_student():
    assert not list(built(output(*STUDENT), output(*TEACHER)).parameters())


def test_networks_of_different_channels_are_refused_with_the_channels():
    wide = output(*(torch.cat([feature, feature], dim=1) for feature in TEACHER))
    with pytest.raises(ValueError, match=r"^fsp needs stages of equally many .* have 2, 4, 3, the teacher's 4, 8, 6; "):
        built(output(*STUDENT), wide)


def test_networks_of_one_stage_are_refused():
    with pytest.raises(ValueError, match=r"^fsp needs two stages .* the student has 1, the teacher 3; name more, "):
        built(output(STUDENT[-1]), output(*TEACHER))
