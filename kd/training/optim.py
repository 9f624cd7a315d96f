"""Parameter groups for weight decay, and learning rate schedules.

A schedule maps the fraction of training that is done to a factor on the optimiser's learning rate. Its length is
always the total number of steps, so that it cannot disagree with the epochs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kd.ranges import require

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LambdaLR]


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the module's parameters in two groups: with weight decay, and without it (BatchNorm and biases).

    The second group holds exactly the parameters of at most one dimension.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def one_cycle(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Return a schedule: linear warm-up over the fraction `warmup` in [0, 1) of all steps, then linear decay to 0.

    Source: Smith 2018, arXiv 1803.09820, without the cycled momentum.
    """
    return _schedule(optimizer, total_steps, warmup, lambda done: 1 - done)


def cosine(optimizer: Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Return a schedule: linear warm-up over the fraction `warmup` in [0, 1) of all steps, then a half cosine to 0.

    Source: Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts.
    """
    return _schedule(optimizer, total_steps, warmup, lambda done: 0.5 * (1 + math.cos(math.pi * done)))


def multistep(
    optimizer: Optimizer, total_steps: int, warmup: float, milestones: Sequence[float], gamma: float
) -> LambdaLR:
    """Return a schedule: linear warm-up over the fraction `warmup` in [0, 1), then a factor `gamma` per milestone.

    Milestones are fractions in (0, 1) of the steps after the warm-up.
    """
    for milestone in milestones:
        if not 0 < milestone < 1:
            raise ValueError(f"schedule.milestones must be fractions of training in (0, 1), got {milestone:g}")
    return _schedule(optimizer, total_steps, warmup, lambda done: gamma ** sum(done >= m for m in milestones))


def _schedule(optimizer: Optimizer, total_steps: int, warmup: float, decay: Callable[[float], float]) -> LambdaLR:
    require("schedule.warmup", warmup)
    ramp = round(warmup * total_steps)

    def factor(step: int) -> float:
        # Counted from 1 during warm-up, so that no step has a learning rate of 0.
        return (step + 1) / (ramp + 1) if step < ramp else decay((step - ramp) / max(1, total_steps - ramp))

    return LambdaLR(optimizer, factor)
