"""Distil with a Lightning Trainer of your own: handwritten digits, a few seconds on one processor."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, default_collate

import kd
from kd.methods.logits import Logits
from kd.models.cnn import CNN

L.seed_everything(0)
pixels, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
x = pixels.float().reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 8 - 1
train, test = TensorDataset(x[:1300], y[:1300]), TensorDataset(x[1300:], y[1300:])


def batch(items):
    """What a module of kd is given: images and labels as `kd.Batch`, from any data set of pairs."""
    return kd.Batch.of(*default_collate(items))


def network(scale):
    return CNN(scale, num_classes=10, image_size=8, activation="relu", conv_dropout=0.0, head_dropout=0.0)


def fit(module):
    trainer = L.Trainer(max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True, collate_fn=batch))
    return trainer.test(module, DataLoader(test, batch_size=64, collate_fn=batch), verbose=False)[0]["test/acc"]


def recipe(net):
    return {
        "net": net,
        "num_classes": 10,
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=3e-3),
        "schedule": lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    }


teacher, student = network(scale=8), network(scale=4)
classifier = kd.Classifier(**recipe(teacher))
print(f"teacher {fit(classifier):.3f}")
distiller = kd.Distiller(**recipe(student), method=Logits(T=4, alpha=0.1), teacher=kd.freeze(teacher))
print(f"student {fit(distiller):.3f}")
