import math

import pytest
import torch
from torch import tensor

from kd.methods.vid import VID, vid_loss
from kd.models.output import Output
from kd.training.optim import parameter_groups
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*maps):
    return Output(torch.zeros(len(maps[0]), 2), maps, torch.empty(0))


def built(student, teacher, **knobs):
    torch.manual_seed(0)
    method = VID(**knobs)
    method.setup(pair_of(student, teacher))
    return method


STUDENT = output(noise(3, 2, 8, 8), noise(3, 4, 4, 4, seed=1))
TEACHER = output(noise(3, 5, 8, 8, seed=2), noise(3, 6, 4, 4, seed=3))


def test_vid_loss_by_hand():
    # Channel 0: errors 2 and 0 with variance 4: (4/4 + ln 4 + 0 + ln 4) / 2; channel 1: errors 1 and 3, variance 1:
    # (1 + 9) / 2. Over the four numbers: (0.5 + 1.386294 + 5) / 4
    mean, teacher = tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]]), tensor([[[[3.0, 2.0]], [[1.0, 1.0]]]])
    loss = vid_loss(mean, teacher, tensor([4.0, 1.0]))
    assert loss.item() == pytest.approx(1.721574, rel=1e-5)


def test_vid_loss_is_a_normal_log_likelihood():
    """Against torch's distribution, number by number; beside the constant log(2 pi) / 2."""
    mean, teacher, variance = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1), tensor([0.3, 2.0, 7.0])
    total = 0.0
    for c in range(3):
        normal = torch.distributions.Normal(mean[:, c].double(), variance[c].double().sqrt())
        total -= normal.log_prob(teacher[:, c].double()).sum().item()
    expected = total / mean.numel() - math.log(2 * math.pi) / 2
    assert vid_loss(mean, teacher, variance).item() == pytest.approx(expected, rel=1e-5)


def test_vid_loss_is_least_at_the_mean_squared_error():
    mean, teacher = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    variance = ((mean - teacher) ** 2).mean(dim=(0, 2, 3)).requires_grad_()
    vid_loss(mean, teacher, variance).backward()
    assert variance.grad.abs().max() < 1e-7


def test_vid_begins_with_the_published_variance(labelled):
    method = built(STUDENT, TEACHER)
    for scale in method.scales:
        torch.testing.assert_close(torch.nn.functional.softplus(scale) + 1e-5, torch.full_like(scale, 5.0))
    errors = [
        ((mean(ours) - theirs) ** 2).mean().item()
        for mean, ours, theirs in zip(method.means, STUDENT.features, TEACHER.features, strict=True)
    ]
    terms = method(STUDENT, TEACHER, labelled(0, 1, 0))
    assert list(terms) == ["hard", "vid", "soft"]
    assert terms["vid"].item() == pytest.approx(sum(errors) / 10 + math.log(5), rel=1e-5)


@pytest.mark.parametrize("variance", [1e-4, 0.7, 1000.0])
def test_variance_may_begin_anywhere(variance):
    scale = built(STUDENT, TEACHER, init_variance=variance).scales[0]
    assert (torch.nn.functional.softplus(scale) + 1e-5)[0].item() == pytest.approx(variance, rel=1e-3)


def test_variances_learn_without_weight_decay(labelled):
    """In mdistiller they are in no optimiser; here they come to each channel's mean squared error."""
    teacher = output(
        *(feature * torch.linspace(0.5, 2, feature.shape[1])[:, None, None] for feature in TEACHER.features)
    )
    method = built(STUDENT, teacher)
    assert {id(scale) for scale in method.scales} <= {id(p) for p in parameter_groups(method)[1]["params"]}
    assert {"scales.0", "scales.1"} <= method.state_dict().keys()
    optimizer = torch.optim.Adam(method.scales.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        method.term(STUDENT, teacher, labelled(0, 1, 0)).backward()
        optimizer.step()
    for mean, scale, ours, theirs in zip(method.means, method.scales, STUDENT.features, teacher.features, strict=True):
        error = ((mean(ours) - theirs) ** 2).mean(dim=(0, 2, 3))
        torch.testing.assert_close(torch.nn.functional.softplus(scale), error, rtol=0.01, atol=0.01)


def test_vid_pairs_the_deepest_stages_and_averages_the_larger_map(labelled):
    deep = output(noise(3, 7, 16, 16), *TEACHER.features)
    torch.testing.assert_close(
        built(STUDENT, deep).term(STUDENT, deep, labelled(0, 1, 0)),
        built(STUDENT, TEACHER).term(STUDENT, TEACHER, labelled(0, 1, 0)),
    )
    small = output(torch.nn.functional.avg_pool2d(STUDENT.features[0], 2))
    large = output(STUDENT.features[0])
    target = output(noise(3, 5, 4, 4))
    torch.testing.assert_close(
        built(large, target).term(large, target, labelled(0, 1, 0)),
        built(small, target).term(small, target, labelled(0, 1, 0)),
    )


@pytest.mark.parametrize("value", [0, -1.0, math.inf])
def test_variance_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^method.init_variance must be a? ?.*in \[0.0001, 1e6\]"):
        VID(init_variance=value)
