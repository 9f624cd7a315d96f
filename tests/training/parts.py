"""Modules and data that the tests of both LightningModules have in common."""

from functools import partial

import lightning as L
import torch

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.methods.logits import Logits
from kd.teachers.frozen import FrozenTeacher
from kd.training.modules import Distiller
from kd.training.optim import one_cycle
from tests.common import pair


def classifier_arguments(net, lr=0.05):
    return {
        "net": net,
        "num_classes": net.classifier.out_features,
        "optimizer": partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=0.1),
        "schedule": partial(one_cycle, warmup=0.25),
    }


def distiller(net, teacher, method=None, **recipe):
    method = method or Logits(2.0, 0.3, 0.0)
    method.setup(pair(net, teacher))
    frozen = None if teacher is None else FrozenTeacher(teacher, "id")
    return Distiller(**classifier_arguments(net, **recipe), teacher=frozen, method=method)


def data_module(images, val_fraction=0.25):
    return DataModule(images, val_fraction, 0, Augment(1, True, 0), batch_size=10, seed=3)


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal_state(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class OnTrainBatch(L.Callback):
    """Calls a function at the start of one training step, or of each."""

    def __init__(self, act, step=None):
        self.act, self.step = act, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.step in (None, trainer.global_step):
            self.act(trainer, pl_module, batch)
