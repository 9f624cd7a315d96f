"""Distil in a training loop of your own: handwritten digits, a few seconds on a processor.

The networks are plain nn.Modules; any of torchvision's can take their place, such as `kd.wrap(resnet18())`.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import kd
from kd.methods.feature import Feature

torch.manual_seed(0)
pixels, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
x = pixels.float().reshape(-1, 1, 8, 8) / 8 - 1


def network(width):
    first = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return kd.wrap(nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(2 * width, 10)))


def train(parameters, loss, epochs):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(epochs):
        for batch in torch.randperm(1280).split(64):
            optimizer.zero_grad()
            loss(x[batch], y[batch]).backward()
            optimizer.step()


teacher, student = network(32), network(8)
train(teacher.parameters(), lambda x, y: nn.functional.cross_entropy(teacher(x).logits, y), epochs=5)
lesson = kd.distill(student, kd.freeze(teacher), Feature(T=4, alpha=0.1, beta=0.3), example=x[:2])
train(lesson.parameters(), lesson, epochs=10)
for name, net in {"teacher": teacher, "student": student}.items():
    print(f"{name} {(net.eval()(x[1280:]).logits.argmax(dim=1) == y[1280:]).float().mean():.3f}")
