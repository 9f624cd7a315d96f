"""Accuracy and NLL on further test sets, once, after the test."""

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.also_test import AlsoTest
from kd.data.batch import Batch
from kd.data.module import DataModule
from kd.models.output import checked
from kd.teachers.frozen import FrozenTeacher
from kd.terminal import with_progress
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
    if not data.also_test or not trainer.is_global_zero:
        return Measured({}, {})
    device, net = trainer.strategy.root_device, module.inference_net
    net.to(device).eval()  # the Trainer has left both to the CPU and to training
    precision = cast(Any, trainer).precision_plugin

    def logits(batch: Batch) -> Tensor:
        with precision.test_step_context():
            return checked(net(precision.convert_input(batch.x)), net).logits

    def batches(test: AlsoTest) -> Iterable[Batch]:
        loader, limit = data.also_test_dataloader(test, device), trainer.limit_test_batches
        return islice(loader, limit if isinstance(limit, int) else max(1, int(limit * len(loader))))

    measured = _by_name(data.also_test, batches, logits)
    net.cpu()
    return measured


def measure_teacher(
    teacher: FrozenTeacher, tests: Iterable[AlsoTest], data: DataModule, device: torch.device
) -> Measured:
    """Test a teacher on each further test set, as it was tested on its own; means of parts come first."""
    return _by_name(
        tests,
        lambda test: data.also_test_dataloader(test, device),
        lambda batch: teacher.forward_as_trained(batch).logits,
    )


def _by_name(
    tests: Iterable[AlsoTest], batches: Callable[[AlsoTest], Iterable[Batch]], logits: Callable[[Batch], Tensor]
) -> Measured:
    """Return accuracy and NLL on each test set, by its name, of the logits of its batches."""
    measured = Measured({}, {})
    parts: dict[str, list[tuple[float, float]]] = {}
    figures: dict[str, tuple[float, float]] = {}
    for test in with_progress(tests, "testing on further images"):
        figures[test.name] = _measured(batches(test), logits)
        if test.mean_of is not None:
            parts.setdefault(test.mean_of, []).append(figures[test.name])
    means = {name: (fmean(acc for acc, _ in those), fmean(nll for _, nll in those)) for name, those in parts.items()}
    for name, (acc, nll) in (means | figures).items():
        measured.acc[name], measured.nll[name] = acc, nll
        if "/" not in name:
            log.info("also tested on %s: %.2f %%", name, 100 * acc)
    return measured


@torch.inference_mode()
def _measured(batches: Iterable[Batch], logits: Callable[[Batch], Tensor]) -> tuple[float, float]:
    """Return accuracy and NLL; every image weighs the same."""
    right = nll = torch.zeros((), dtype=torch.float64)
    images = 0
    for batch in batches:
        z = logits(batch).float()
        right = right + (z.argmax(dim=1) == batch.y).sum().cpu()
        nll = nll + F.cross_entropy(z, batch.y, reduction="sum").cpu()
        images += len(batch.y)
    return float(right) / images, float(nll) / images
