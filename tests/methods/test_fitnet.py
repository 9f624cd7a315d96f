import math

import pytest
import torch
from torch import tensor

from kd.methods.fitnet import FitNet, hint_loss
from kd.models.output import Output
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*maps):
    return Output(torch.zeros(len(maps[0]), 2), maps, torch.empty(0))


def built(student, teacher, **knobs):
    method = FitNet(**knobs)
    method.setup(pair_of(student, teacher))
    return method


def test_hint_loss_by_hand():
    # (1 - 3)^2, (2 - 2)^2, (0 - 1)^2, (4 - 1)^2: 4 + 0 + 1 + 9 = 14, over four
    student, teacher = tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]]), tensor([[[[3.0, 2.0]], [[1.0, 1.0]]]])
    assert hint_loss(student, teacher).item() == 3.5


def test_hint_term_like_the_formula_place_by_place(labelled):
    student, teacher = output(noise(2, 3, 2, 4)), output(noise(2, 4, 2, 4, seed=1))
    method = built(student, teacher, beta=0.5, warmup=0.0)
    weight, bias = method.regressor.weight.double()[:, :, 0, 0], method.regressor.bias.double()
    total = 0.0
    for b in range(2):
        for h in range(2):
            for w in range(4):
                regressed = weight @ student.features[0][b, :, h, w].double() + bias
                total += ((regressed - teacher.features[0][b, :, h, w].double()) ** 2).sum().item()
    hint = method(student, teacher, labelled(0, 1))["hint"]
    assert hint.item() == pytest.approx(0.5 * total / (2 * 4 * 2 * 4), rel=1e-5)


def test_hint_is_learnt_first_and_rests_then(labelled):
    student, teacher = output(noise(2, 3, 4, 4)), output(noise(2, 4, 4, 4, seed=1))
    method = built(student, teacher, warmup=0.25, alpha=0.5)
    curve = {}
    for method.progress in (0.0, 0.24, 0.25, 0.9):
        curve[method.progress] = method(student, teacher, labelled(0, 1))
        sum(curve[method.progress].values()).backward()  # also what rests has gradients, of 0
        assert all(p.grad is not None for p in method.parameters())
    assert [list(terms) for terms in curve.values()] == [["hard", "hint", "soft"]] * 4
    for progress, terms in curve.items():
        assert (terms["hint"] > 0) == (progress < 0.25)
        assert terms["hard"].item() == pytest.approx(0 if progress < 0.25 else 0.5 * math.log(2))


def test_hint_and_labels_are_learnt_together_without_a_first_stage(labelled):
    student, teacher = output(noise(2, 3, 4, 4)), output(noise(2, 4, 4, 4, seed=1))
    method = built(student, teacher, warmup=0.0)
    for method.progress in (0.0, 0.9):
        terms = method(student, teacher, labelled(0, 1))
        assert terms["hint"] > 0
        assert terms["hard"] > 0


@pytest.mark.parametrize(
    ("stage", "widths"), [(None, (3, 6)), (0, (3, 6)), (1, (4, 7)), (-1, (4, 7))]
)  # of stages with 3 and 4, and with 5, 6 and 7 channels
def test_hint_is_in_the_middle_or_where_it_is_wanted(stage, widths):
    student = output(noise(1, 3, 8, 8), noise(1, 4, 4, 4))
    teacher = output(noise(1, 5, 16, 16), noise(1, 6, 8, 8), noise(1, 7, 4, 4))
    regressor = built(student, teacher, stage=stage).regressor
    assert (regressor.in_channels, regressor.out_channels) == widths


def test_hint_of_three_stages_is_the_second():
    student = output(noise(1, 3, 8, 8), noise(1, 4, 4, 4), noise(1, 5, 2, 2))
    assert built(student, student).regressor.in_channels == 4


def test_hint_of_another_size_is_averaged(labelled):
    student, teacher = output(noise(2, 3, 4, 4)), output(noise(2, 3, 2, 2, seed=1))
    method = built(student, teacher, beta=1.0, warmup=0.0)
    torch.nn.init.dirac_(method.regressor.weight)
    torch.nn.init.zeros_(method.regressor.bias)
    means = student.features[0].unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    torch.testing.assert_close(method(student, teacher, labelled(0, 1))["hint"], hint_loss(means, teacher.features[0]))


def test_stage_that_the_networks_lack_is_named():
    two = output(noise(1, 3, 8, 8), noise(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"^method.stage must be in \[-2, 1\] for a network of 2 stages, got 2$"):
        built(two, two, stage=2)
    with pytest.raises(ValueError, match=r"^method.stage must be a whole number in .*, got middle$"):
        FitNet(stage="middle")
