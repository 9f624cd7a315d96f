"""Parameter groups for weight decay, the optimiser DOT, and learning rate schedules.

A schedule maps the fraction of training that is done to a factor on the optimiser's learning rate. Its length is
always the total number of steps, so that it cannot disagree with the epochs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kd.ranges import require

OptimizerFactory = Callable[..., Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LambdaLR]


def parameter_groups(module: nn.Module, decay_all: bool = False) -> list[dict[str, Any]]:
    """Return the module's parameters in two groups: with weight decay, and without it (BatchNorm and biases).

    The second group holds exactly the parameters of at most one dimension. With `decay_all` there is one group.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if decay_all:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class DOT(Optimizer):
    r"""Distillation-oriented trainer: SGD with one momentum for the labels and a larger one for distillation.

    Of the gradients g of the labels' terms and d of all other terms, at learning rate \eta:

    $$u \leftarrow (\mu - \delta) u + g + \lambda \theta, \quad
    v \leftarrow (\mu + \delta) v + d, \quad \theta \leftarrow \theta - \eta (u + v)$$

    With `delta=0` it is SGD, and also where a loss has labels alone, or none. Weight decay goes along with the labels,
    as in the authors' code. A parameter that the labels do not reach, such as an adapter's, has momentum mu and weight
    decay in v, likewise.

    A step reads the gradient of all terms together, g + d, from `Parameter.grad`, so that data-parallel training and
    gradient clipping are as ever; g is given to `add_task_gradients` before. `kd.training.modules` does so.

    Deviations:

    * Authors' code: one group of parameters. Here: any number, so that biases have no weight decay.
    * Authors' code: a parameter that distillation does not reach has momentum mu. Here, as in the paper, mu - delta.

    Source: Zhao et al. 2023, arXiv 2307.08436; delta is 0.075 there for CIFAR-100, 0.09 for ImageNet.

    Args:
        params: parameters, or groups of them.
        lr: learning rate, at least 0.
        momentum: mu, in [0, 1).
        delta: half the difference of the two momenta, in [0, 1), with momentum - delta and momentum + delta in [0, 1).
        nesterov: whether each part steps ahead, as in SGD.
        weight_decay: lambda, at least 0.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.05,
        momentum: float = 0.9,
        delta: float = 0.075,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
    ) -> None:
        require("optimizer.lr", lr)
        require("optimizer.momentum", momentum)
        require("optimizer.delta", delta)
        require("optimizer.nesterov", nesterov)
        require("optimizer.weight_decay", weight_decay)
        if momentum < delta or momentum + delta >= 1:
            raise ValueError(
                "optimizer.momentum - optimizer.delta and optimizer.momentum + optimizer.delta must be in [0, 1), "
                f"got {momentum:g} and {delta:g}"
            )
        settings = {"momentum": momentum, "delta": delta, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **settings})
        self._task: dict[Tensor, Tensor] = {}

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def add_task_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients of the labels' term, one for each of `parameters`; None where it does not reach.

        They are added up until the next step, as `Parameter.grad` is over the batches of one step.
        """
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                before = self._task.get(parameter)
                self._task[parameter] = gradient if before is None else before + gradient

    @torch.no_grad()
    def scale_task_gradients(self, factor: Tensor) -> None:
        """Multiply what was added by a factor, that of clipping."""
        if self._task:
            scaled = torch._foreach_mul(list(self._task.values()), factor)
            self._task = dict(zip(self._task, scaled, strict=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            mu, delta, decay = group["momentum"], group["delta"], group["weight_decay"]
            reached = [parameter for parameter in group["params"] if parameter.grad is not None]
            alone = [parameter for parameter in reached if parameter not in self._task]
            both = [parameter for parameter in reached if parameter in self._task]
            self._move(group, "distillation", alone, [parameter.grad for parameter in alone], mu, decay)
            task = [self._task[parameter] for parameter in both]
            rest = list(torch._foreach_sub([parameter.grad for parameter in both], task)) if both else []
            self._move(group, "task", both, task, mu - delta, decay)
            self._move(group, "distillation", both, rest, mu + delta, 0.0)
        self._task = {}
        return loss

    def _move(
        self,
        group: dict[str, Any],
        part: str,
        parameters: list[Tensor],
        gradients: list[Tensor],
        momentum: float,
        decay: float,
    ) -> None:
        """Step along one part of the gradients, for all parameters at once: one by one a GPU has 50 times the calls."""
        if not parameters:
            return
        key = f"{part}_momentum"
        for parameter in parameters:
            if key not in self.state[parameter]:
                self.state[parameter][key] = torch.zeros_like(parameter)
        velocities = [self.state[parameter][key] for parameter in parameters]
        if decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        steps = velocities
        if group["nesterov"]:
            steps = list(torch._foreach_add(gradients, velocities, alpha=momentum))
        torch._foreach_add_(parameters, steps, alpha=-group["lr"])


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
