import math
from functools import partial

import pytest
import torch
from torch import nn

from kd.models.cnn import CNN
from kd.training.optim import cosine, multistep, one_cycle, parameter_groups

LR = 0.5


def sgd():
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=LR, momentum=0.9)


def curve(optimizer, schedule, steps):
    """Return the learning rate at each of the next steps, and after them, as a factor."""
    factors = [optimizer.param_groups[0]["lr"] / LR]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        factors.append(optimizer.param_groups[0]["lr"] / LR)
    return factors


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # two of eight steps rise; six remain, the peak first
        (partial(one_cycle, warmup=0.25), [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
        (partial(one_cycle, warmup=0.0), [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]),
        # (1 + cos(pi k / 4)) / 2 for the four steps after four rising ones
        (partial(cosine, warmup=0.5), [0.2, 0.4, 0.6, 0.8, 1, 0.853553, 0.5, 0.146447, 0]),
        # milestones at steps 2 + 6 / 2 = 5 and 2 + 6 * 2 / 3 = 6
        (
            partial(multistep, warmup=0.25, milestones=[0.5, 2 / 3], gamma=0.1),
            [1 / 3, 2 / 3, 1, 1, 1, 0.1, *[0.01] * 3],
        ),
        (partial(multistep, warmup=0.0, milestones=[], gamma=0.1), [1] * 9),
    ],
)
def test_schedule_matches_the_curve_by_hand(schedule, expected):
    optimizer = sgd()
    assert curve(optimizer, schedule(optimizer, 8), 8) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("shape", [one_cycle, cosine])
def test_schedule_has_no_step_at_rate_zero(shape, warmup, total):
    optimizer = sgd()
    *during, after = curve(optimizer, shape(optimizer, total, warmup), total)
    assert min(during) > 0
    assert max(during) <= 1
    assert after == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        partial(one_cycle, warmup=0.3),
        partial(cosine, warmup=0.3),
        partial(multistep, warmup=0.1, milestones=[0.5], gamma=0.2),
    ],
)
def test_schedule_continues_from_its_state(schedule):
    optimizer = sgd()
    whole = curve(optimizer, schedule(optimizer, 10), 10)
    first = sgd()
    first_schedule = schedule(first, 10)
    curve(first, first_schedule, 4)
    second = sgd()
    resumed = schedule(second, 10)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(first_schedule.state_dict())
    assert curve(second, resumed, 6) == whole[4:]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (partial(one_cycle, warmup=1), r"schedule.warmup must be in \[0, 1\), got 1"),
        (partial(cosine, warmup=-0.1), r"schedule.warmup must be in \[0, 1\), got -0.1"),
        (partial(one_cycle, warmup=math.nan), r"schedule.warmup must be in \[0, 1\), got nan"),
        (
            partial(multistep, warmup=0, milestones=[0.5, 150], gamma=0.1),
            r"schedule.milestones must be fractions of training in \(0, 1\), got 150",
        ),
        (
            partial(multistep, warmup=0, milestones=[0], gamma=0.1),
            r"schedule.milestones must be fractions of training in \(0, 1\), got 0",
        ),
    ],
)
def test_schedule_names_fractions_out_of_range(schedule, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        schedule(sgd(), 100)


def test_parameter_groups_exempt_exactly_batchnorm_and_biases_from_decay():
    net = CNN(2, 10, 8, "relu", 0.0, 0.0)
    net.classifier.weight.requires_grad_(False)
    expected = {id(layer.bias) for layer in net.modules() if isinstance(getattr(layer, "bias", None), nn.Parameter)}
    expected |= {id(layer.weight) for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)}
    decayed, undecayed = parameter_groups(net)
    assert sorted(map(id, undecayed["params"])) == sorted(expected)
    assert undecayed["weight_decay"] == 0
    assert "weight_decay" not in decayed
    grouped = [id(p) for group in (decayed, undecayed) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_parameter_groups_decay_weights_and_nothing_else_unless_all_are_wanted(optimizer, decay_all):
    net = CNN(2, 10, 8, "relu", 0.0, 0.0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer(parameter_groups(net, decay_all), lr=0.1, weight_decay=0.5).step()
    for name, p in net.named_parameters():
        factor = 0.95 if p.ndim > 1 or decay_all else 1  # 1 - 0.1 * 0.5
        torch.testing.assert_close(p.detach(), before[name] * factor, msg=name)
