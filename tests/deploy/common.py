"""Weights of a network that stands for a trained one."""

import torch

from kd.models.cnn import CNN
from kd.runs.weights import save_weights

CLASSES = ["cat", "=dog", "eel"]


def weights(path, seed=0, size=8, channels=3, classes=tuple(CLASSES)):
    torch.manual_seed(seed)
    facts = {
        "model": {"_target_": "kd.models.cnn.CNN", "scale": 2, "activation": "relu"},
        "num_classes": len(classes),
        "image_size": size,
        "classes": list(classes),
        "mean": [0.5, 0.25, 0.125, 0.5, 0.5][:channels],
        "std": [0.5, 0.25, 0.2, 0.5, 0.5][:channels],
    }
    facts["model"] |= {"conv_dropout": 0.5, "head_dropout": 0.5}
    net = CNN(2, len(classes), size, "relu", 0.5, 0.5, in_channels=channels)
    with torch.no_grad():  # classes that differ
        net.classifier.weight.mul_(30)
        net.classifier.bias -= net.eval()(torch.randn(99, channels, size, size) / 0.9).logits.mean(0)
    save_weights(net, path, facts)
    return path
