import math

import pytest
import torch
from torch import tensor

from kd.methods.feature import Feature
from kd.models.output import Output
from tests.common import pair_of

LOGITS = tensor([[0.0, 0.0]])


def maps(*shapes, batch=1):
    """A network's output with one map of the given (C, H, W) per stage, all noise."""
    generator = torch.Generator().manual_seed(0)
    features = tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)
    return Output(LOGITS.expand(batch, -1), features, torch.empty(0))


def built(student, teacher, stages=(0,), alpha=0.2, beta=0.5):
    method = Feature(2.0, alpha, beta, stages, 0.0)
    method.setup(pair_of(student, teacher))
    return method


# As in test_logits.py: hard = 0.693147, soft = 0.523248 at T = 2. The first stage's adapter makes 3 * 2 + 1 = 7 of 2,
# the second's 7 of everything; the teacher has 5 and 4: (2^2 + 3^2) / 2 = 6.5
@pytest.mark.parametrize(
    ("alpha", "beta", "hard", "feature", "soft"),
    [
        (0.2, 0.5, 0.138629, 3.25, 0.156974),
        (0.0, 0.0, 0.0, 0.0, 0.523248),
        (0.7, 0.3, 0.485203, 1.95, 0.0),
        (0.9, 0.1, 0.623832, 0.65, 0.0),  # in floating point 1 - 0.9 - 0.1 < 0
    ],
)
def test_terms_by_hand(alpha, beta, hard, feature, soft, labelled):
    student = Output(LOGITS, (torch.full((1, 1, 2, 2), 2.0), torch.ones(1, 1, 1, 1)), torch.empty(0))
    teacher_maps = (torch.full((1, 3, 2, 2), 5.0), torch.full((1, 2, 1, 1), 4.0))
    teacher = Output(tensor([[2 * math.log(3), 0.0]]), teacher_maps, torch.empty(0))
    method = built(student, teacher, (0, 1), alpha, beta)
    for adapter, weight, bias in zip(method.adapters, (3.0, 0.0), (1.0, 7.0), strict=True):
        torch.nn.init.constant_(adapter.weight, weight)
        torch.nn.init.constant_(adapter.bias, bias)
    terms = method(student, teacher, labelled(0))
    assert list(terms) == ["hard", "feature", "soft"]  # a weight of 0 drops no term
    assert [term.item() for term in terms.values()] == pytest.approx([hard, feature, soft], rel=1e-5, abs=1e-15)
    assert terms["soft"].item() >= 0
    assert {(term.dtype, term.shape) for term in terms.values()} == {(torch.float32, ())}


def test_feature_term_is_the_mean_over_batch_channels_and_places(labelled):
    student, teacher = maps((2, 4, 4), batch=3), maps((5, 4, 4), batch=3)
    method = built(student, teacher, beta=0.5)
    weight, bias = method.adapters[0].weight.squeeze(), method.adapters[0].bias
    adapted = torch.einsum("oc,bchw->bohw", weight, student.features[0]) + bias[:, None, None]
    expected = 0.5 * ((adapted - teacher.features[0]) ** 2).sum() / (3 * 5 * 4 * 4)
    torch.testing.assert_close(method(student, teacher, labelled(0, 1, 0))["feature"], expected)


def test_adapters_are_made_saved_and_taught(labelled):
    student, teacher = maps((2, 8, 8), (4, 4, 4)), maps((3, 8, 8), (6, 4, 4))
    method = built(student, teacher, (0, -1))
    assert {name: tuple(weight.shape) for name, weight in method.state_dict().items()} == {
        "adapters.0.weight": (3, 2, 1, 1),
        "adapters.0.bias": (3,),
        "adapters.1.weight": (6, 4, 1, 1),
        "adapters.1.bias": (6,),
    }
    sum(method(student, teacher, labelled(0)).values()).backward()
    assert all(p.grad.abs().max() > 0 for p in method.parameters())


def test_negative_stages_count_from_each_networks_deepest(labelled):
    student, teacher = maps((2, 4, 4)), maps((3, 8, 8), (6, 4, 4))
    method = built(student, teacher, (-1,))
    assert method.adapters[0].weight.shape == (6, 2, 1, 1)
    assert method(student, teacher, labelled(0))["feature"] > 0


@pytest.mark.parametrize("stage", [2, -3])
def test_stage_that_a_network_lacks_is_named(stage):
    deep, shallow = maps((2, 8, 8), (4, 4, 4), (4, 2, 2)), maps((3, 8, 8), (6, 4, 4))
    with pytest.raises(ValueError, match=rf"method\.stages must be in \[-2, 1\] .* of 2 stages, got {stage}$"):
        built(shallow, deep, (0, stage))
    with pytest.raises(ValueError, match=rf"teacher_stages must be in \[-2, 1\] .* of 2 stages, got {stage}$"):
        built(deep, shallow, (1, stage))


def test_stage_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"method\.stages must name each stage once, got \[0, -2\] of 2 stages"):
        built(maps((2, 8, 8), (4, 4, 4)), maps((3, 8, 8), (6, 4, 4)), (0, -2))


def test_maps_of_different_size_are_answered_with_the_sizes_there_are():
    with pytest.raises(
        ValueError, match=r"student's map 1 is 4x4 and the teacher's map 1 is 4x2. The student's stages "
    ):
        built(maps((2, 8, 8), (4, 4, 4)), maps((3, 8, 8), (6, 4, 2)), (0, 1))


def test_stages_of_the_teacher_are_chosen_apart(labelled):
    student, teacher = maps((2, 8, 8), (4, 4, 4)), maps((3, 16, 16), (5, 8, 8), (6, 4, 4))
    apart = Feature(beta=0.5, stages=[0, 1], teacher_stages=[1, 2])
    apart.setup(pair_of(student, teacher))
    same = Feature(beta=0.5, stages=[0, 1])
    aligned = teacher._replace(features=teacher.features[1:])
    same.setup(pair_of(student, aligned))
    same.load_state_dict(apart.state_dict())
    assert torch.equal(apart(student, teacher, labelled(0))["feature"], same(student, aligned, labelled(0))["feature"])


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_pool_averages_the_larger_map(larger, labelled):
    small, large = maps((2, 2, 2)), maps((2, 4, 4))
    student, teacher = (large, small) if larger == "student" else (small, large)
    method = Feature(beta=1.0, alpha=0.0, stages=[0], pool=True)
    method.setup(pair_of(student, teacher))
    torch.nn.init.dirac_(method.adapters[0].weight)
    torch.nn.init.zeros_(method.adapters[0].bias)
    means = large.features[0].unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    expected = ((means - small.features[0]) ** 2).mean()
    torch.testing.assert_close(method(student, teacher, labelled(0))["feature"], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": -1}, r"T must be in \[0.001, 1e6\], got -1"),
        ({"alpha": 2}, r"alpha must be in \[0, 1\], got 2"),
        ({"beta": -0.5}, r"beta must be in \[0, 1\], got -0.5"),
        ({"beta": math.nan}, r"beta must be in \[0, 1\], got nan"),
        ({"alpha": 0.7, "beta": 0.31}, r"alpha \+ beta must be in \[0, 1\], got alpha=0.7 and beta=0.31"),
        ({"stages": []}, r"method\.stages must name at least one stage, .* got \[\] and \[\]"),
        (
            {"teacher_stages": [0, 1]},
            r"method\.stages must .* method\.teacher_stages one for each, got \[-1\] and \[0, 1\]",
        ),
        ({"stages": ["last"]}, r"method\.stages must be a list of whole numbers, got \['last'\]"),
        ({"pool": 1}, "method.pool must be true or false, got 1"),
    ],
)
def test_knobs_out_of_range_are_refused(changes, message):
    knobs = {"T": 4.0, "alpha": 0.1, "beta": 0.3, "stages": [-1], "label_smoothing": 0.0}
    with pytest.raises(ValueError, match=f"^{message}$"):
        Feature(**{**knobs, **changes})


def test_label_smoothing_touches_the_hard_term_only(labelled):
    student = maps((2, 4, 4))._replace(logits=tensor([[math.log(3), 0.0]]))
    plain, smooth = built(student, student), built(student, student)
    smooth.load_state_dict(plain.state_dict())
    smooth.label_smoothing = 0.2
    before, after = (method(student, student, labelled(0)) for method in (plain, smooth))
    assert after["hard"].item() == pytest.approx(0.2 * 0.397543, rel=1e-5)  # worked out in tests/test_losses.py
    assert torch.equal(before["feature"], after["feature"])
    assert torch.equal(before["soft"], after["soft"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_in_half_precision_are_compared_in_single(dtype, labelled):
    student, teacher = maps((2, 4, 4)), maps((3, 4, 4))
    method = built(student, teacher)
    exact = method(student, teacher, labelled(0))["feature"]
    ours, theirs = (output._replace(features=(output.features[0].to(dtype),)) for output in (student, teacher))
    coarse = method.to(dtype)(ours, theirs, labelled(0))["feature"]
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0.02, atol=0)
