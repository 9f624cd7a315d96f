"""An exponential moving average of the weights, which is validated, tested and kept in their place."""

from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from kd.ranges import require
from kd.training.modules import Classifier


class WeightAverage(L.Callback):
    """Average the weights of the network that is kept, and its BatchNorm statistics, over the steps of training.

    After step t, counted from 1, average = d * average + (1 - d) * weights with d = min(decay, (1 + t) / (10 + t)), so
    that the initial weights are soon forgotten. The average takes the weights' place during validation, and for good
    when training has ended. It is part of the checkpoint, in fp32 at least: in bf16 small steps are rounded away.

    Source: Polyak, Juditsky 1992, in the exponential form of Tarvainen, Valpola 2017, arXiv 1703.01780.

    Args:
        decay: in (0, 1).

    Raises:
        ValueError: for a decay outside its range.
    """

    def __init__(self, decay: float) -> None:
        require("recipe.ema", decay)
        self.decay = decay
        self._steps = 0
        self._average: list[Tensor] = []
        self._trained: list[Tensor] = []
        self._listed: list[Tensor] = []
        """Those of the network itself, listed once: to walk through a deep network takes as long as a small step."""

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._average = state_dict["steps"], list(state_dict["average"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = self._listed = _weights(pl_module)
        self._average = [
            # A copy in which a thousandth more is not rounded away, as it is in bf16.
            tensor.detach().to(weight.device, torch.promote_types(weight.dtype, torch.float32), copy=True)
            for tensor, weight in zip(self._average or weights, weights, strict=True)
        ]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._steps:  # gradients are still accumulated
            return
        self._steps = trainer.global_step
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        weights = zip(self._listed, self._average, strict=True)
        torch._foreach_lerp_(self._average, [w.detach().to(average.dtype) for w, average in weights], 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trained = [weight.detach().clone() for weight in _weights(pl_module)]
        _fill(pl_module, self._average)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _fill(pl_module, self._trained)
        self._trained = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _fill(pl_module, self._average)


@torch.no_grad()
def _fill(module: L.LightningModule, tensors: Sequence[Tensor]) -> None:
    for weight, tensor in zip(_weights(module), tensors, strict=True):
        weight.copy_(tensor)


def _weights(module: L.LightningModule) -> list[Tensor]:
    """Return all floating-point parameters and buffers in the state of the network that is kept, themselves."""
    net: nn.Module = cast(Classifier, module).inference_net
    state = {id(tensor) for tensor in net.state_dict(keep_vars=True).values()}  # other buffers are made anew
    tensors = (tensor for tensor in (*net.parameters(), *net.buffers()) if id(tensor) in state)
    return [tensor for tensor in tensors if tensor.is_floating_point()]
