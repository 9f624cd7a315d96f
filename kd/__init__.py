"""Knowledge distillation with PyTorch: losses, methods, and what turns any network into student or teacher.

Distil in a training loop of your own:

>>> import torch, kd
>>> from torchvision.models import resnet18, resnet34
>>> from kd.methods.logits import Logits
>>> teacher, student = kd.wrap(resnet34(num_classes=10)), kd.wrap(resnet18(num_classes=10))
>>> x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
>>> lesson = kd.distill(student, kd.freeze(teacher), Logits(T=4, alpha=0.1), example=x)
>>> optimizer = torch.optim.SGD(lesson.parameters(), lr=0.1)
>>> lesson(x, y).backward()
>>> optimizer.step()
>>> sorted(lesson.terms)
['hard', 'soft']

Use a loss by itself:

>>> loss = kd.losses.soft_loss(student(x).logits, teacher(x).logits, T=4)

See what a network returns:

>>> output = student(x)
>>> [tuple(feature.shape) for feature in output.features]
[(4, 64, 8, 8), (4, 128, 4, 4), (4, 256, 2, 2), (4, 512, 1, 1)]
>>> tuple(output.embedding.shape)
(4, 512)

Train by settings, as `python train.py` does, and read the records of runs: `kd.train("data=digits", "method=logits")`,
`kd.results("multirun")`. Predict with the weights of a run: `kd.load(RUN_DIR).predict("cat.png")`.
Train with a Lightning Trainer: `Distiller` and `Classifier`, see examples/own_trainer.py.

Importing kd does not import torch: each name is loaded when it is first used.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 10):  # noqa: UP036 - pip refuses to install there, but a checkout may be started
    raise ImportError(f"kd needs Python 3.10 or newer, and this is {sys.version_info[0]}.{sys.version_info[1]}")

if TYPE_CHECKING:
    from kd import losses, methods
    from kd.app.api import results, train
    from kd.data.batch import Batch
    from kd.errors import UserError
    from kd.inference import Predictor, load
    from kd.methods.base import Method, Pair, Step
    from kd.models.output import Output
    from kd.models.wrap import wrap
    from kd.teachers.frozen import freeze
    from kd.training.loop import distill
    from kd.training.modules import Classifier, Distiller

    __version__: str

__all__ = [
    "Batch",
    "Classifier",
    "Distiller",
    "Method",
    "Output",
    "Pair",
    "Predictor",
    "Step",
    "UserError",
    "__version__",
    "distill",
    "freeze",
    "load",
    "losses",
    "methods",
    "results",
    "train",
    "wrap",
]

_HOMES = {
    "Batch": "kd.data.batch",
    "Classifier": "kd.training.modules",
    "Distiller": "kd.training.modules",
    "Method": "kd.methods.base",
    "Output": "kd.models.output",
    "Pair": "kd.methods.base",
    "Predictor": "kd.inference",
    "Step": "kd.methods.base",
    "UserError": "kd.errors",
    "distill": "kd.training.loop",
    "freeze": "kd.teachers.frozen",
    "load": "kd.inference",
    "results": "kd.app.api",
    "train": "kd.app.api",
    "wrap": "kd.models.wrap",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("losses", "methods"):
        return importlib.import_module(f"kd.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("kd")
    raise AttributeError(f"module 'kd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
