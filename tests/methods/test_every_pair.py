"""Pairs of networks of different kinds: each method in conf/method teaches them, or says before training why not."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd.models.ensemble import Ensemble
from kd.models.output import Output
from kd.models.wide_resnet import WideResNet
from kd.models.wrap import wrap
from tests.methods.every import TinyViT, case, cnn, each_method


class NoMaps(nn.Module):
    """A network that shows logits and embedding alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        output = self.net(x)
        return Output(output.logits, (), output.embedding)


class CosineHead(nn.Module):
    """A network whose logits are no linear function of its embedding."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        output = self.net(x)
        weight = F.normalize(self.net.classifier.weight, dim=1)
        return output._replace(logits=10 * F.normalize(output.embedding, dim=1) @ weight.T)


PAIRS = {
    "same": lambda: (cnn(2, size=16), cnn(2, size=16)),
    "wider student": lambda: (cnn(4, size=16), cnn(2, size=16)),
    "deeper teacher": lambda: (cnn(2, size=16), WideResNet(10, 1, 10, 16, 0.0)),
    "deeper student": lambda: (WideResNet(10, 1, 10, 16, 0.0), cnn(4, size=16)),
    "transformer teaches": lambda: (cnn(2, size=16), vit(8)),
    "transformer learns": lambda: (vit(6), cnn(4, size=16)),
    "transformers": lambda: (vit(6), vit(8)),
    "wrapped student": lambda: (wrap(cnn_module(2), image_size=16), cnn(4, size=16)),
    "wrapped teacher": lambda: (cnn(2, size=16), wrap(cnn_module(4), image_size=16)),
    "wrapped teacher with preacts": lambda: (cnn(2, size=16), wrap(cnn_module(4), image_size=16, preacts=True)),
    "one stage": lambda: (wrap(cnn_module(2), ["1"], image_size=16), cnn(4, size=16)),
    "other size": lambda: (wrap(cnn_module(2), ["0"], image_size=16), wrap(cnn_module(4), ["1"], image_size=16)),
    "student without maps": lambda: (NoMaps(cnn(2, size=16)), cnn(4, size=16)),
    "teacher without maps": lambda: (cnn(2, size=16), NoMaps(cnn(4, size=16))),
    "ensemble": lambda: (cnn(2, size=16), Ensemble([cnn(4, size=16), cnn(4, size=16)])),
    "no linear head": lambda: (cnn(2, size=16), CosineHead(cnn(4, size=16))),
}

NO_MAPS = {"student without maps", "teacher without maps"}
NO_PREACTS = NO_MAPS | {"transformer teaches", "transformer learns", "transformers", "wrapped student"}
NO_PREACTS |= {"wrapped teacher", "one stage", "other size"}
OTHER_SIZES = {"deeper teacher", "deeper student", "transformer teaches", "transformer learns", "wrapped student"}
OTHER_SIZES |= {"wrapped teacher", "wrapped teacher with preacts", "one stage", "other size"}
NO_HEAD = {"ensemble", "no linear head"}
REFUSED = {
    **dict.fromkeys(("at", "fitnet", "ft", "nst", "reviewkd", "sp", "vid"), NO_MAPS),
    **dict.fromkeys(("ab", "ofd"), NO_PREACTS),
    **dict.fromkeys(("simkd", "srrl"), NO_HEAD),
    "feature": NO_MAPS | OTHER_SIZES,
    "fsp": PAIRS.keys() - {"same"},
    "kdsvd": NO_MAPS | {"one stage", "other size"},
}
"""Pairs by the method that does not take them; all others are taught."""


def cnn_module(width):
    """Two blocks and a linear layer, as anyone would write them: a tensor in, logits out."""

    def block(channels, width):
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    return nn.Sequential(
        block(3, width), block(width, 2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)
    )


def vit(width):
    return wrap(TinyViT(width, size=16), ["blocks.0", "blocks.1"], image_size=16)


@each_method
@pytest.mark.parametrize("kind", PAIRS)
def test_pair_is_taught_or_refused_in_words(name, kind):
    torch.manual_seed(3)
    student, teacher = PAIRS[kind]()
    before = copy.deepcopy(teacher.state_dict())
    try:
        found = case(name, student, teacher, size=16)
    except ValueError as error:
        words = str(error)
        assert re.search("student|teacher|network", words), words
        # Both shapes, or what is missing and what would serve.
        shapes = re.findall(r"\d+(?:x\d+)*", words)
        assert len(shapes) >= 2 or re.search(r"\b(no|needs?|without|has not)\b", words), words
        assert len(words) > 60, words
        assert kind in REFUSED.get(name, ()), f"{words}; if that is meant, name the pair in REFUSED"
        return
    assert kind not in REFUSED.get(name, ()), f"{name} takes {kind}, see REFUSED"
    for share in (0.01, 0.6):
        step = found.step(share)
        assert all(torch.isfinite(term) for term in step.terms.values())
        step.loss.backward()
        missing = [key for key, p in found.learned if p.grad is None and key.startswith("method.")]
        assert not missing, f"no gradient: {missing}"
        assert all(p.grad is None or p.grad.isfinite().all() for _, p in found.learned)
    state = teacher.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.items())
    net = found.method.inference_net(student).eval()
    with torch.no_grad():
        assert net(found.batch.x).logits.shape == (8, 10)
