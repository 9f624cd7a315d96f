"""Accuracy and NLL on further test sets, once, after the test."""

import logging
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple, cast

import lightning as L
import torch
import torch.nn.functional as F

from kd.data.module import DataModule, Loader
from kd.models.output import checked
from kd.training.modules import Classifier

log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """Figures by the name of the test set."""

    acc: dict[str, float]
    nll: dict[str, float]
    """Nats."""


def measure(module: Classifier, data: DataModule, trainer: L.Trainer) -> Measured:
    """Test the network on each further test set, and on one process only; means of parts come first.

    Of each, as many batches as the Trainer's `limit_test_batches` allows.

    Args:
        module: after its test.
        data: with the further test sets.
        trainer: the one that tested it, for device and precision.
    """
    measured = Measured({}, {})
    if not data.also_test or not trainer.is_global_zero:
        return measured
    device, net = trainer.strategy.root_device, module.inference_net
    net.to(device).eval()  # the Trainer has left both to the CPU and to training
    parts: dict[str, list[tuple[float, float]]] = {}
    figures: dict[str, tuple[float, float]] = {}
    for test in data.also_test:
        figures[test.name] = _measured(net, data.also_test_dataloader(test, device), trainer)
        if test.mean_of is not None:
            parts.setdefault(test.mean_of, []).append(figures[test.name])
    net.cpu()
    means = {name: (fmean(acc for acc, _ in those), fmean(nll for _, nll in those)) for name, those in parts.items()}
    for name, (acc, nll) in (means | figures).items():
        measured.acc[name], measured.nll[name] = acc, nll
        if "/" not in name:
            log.info("also tested on %s: %.2f %%", name, 100 * acc)
    return measured


@torch.inference_mode()
def _measured(net: torch.nn.Module, loader: Loader, trainer: L.Trainer) -> tuple[float, float]:
    """Return accuracy and NLL; every image weighs the same."""
    limit = trainer.limit_test_batches
    batches = limit if isinstance(limit, int) else max(1, int((1.0 if limit is None else limit) * len(loader)))
    precision = cast(Any, trainer).precision_plugin
    right = nll = torch.zeros((), dtype=torch.float64)
    images = 0
    for batch in islice(loader, batches):
        with precision.test_step_context():
            logits = checked(net(precision.convert_input(batch.x)), net).logits.float()
        right = right + (logits.argmax(dim=1) == batch.y).sum().cpu()
        nll = nll + F.cross_entropy(logits, batch.y, reduction="sum").cpu()
        images += len(batch.y)
    return float(right) / images, float(nll) / images
