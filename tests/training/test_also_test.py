from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kd.data.also_test import AlsoTest
from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.training.also_test import measure
from kd.training.modules import Classifier


@pytest.fixture
def classifier(tiny_net):
    return Classifier(tiny_net(dropout=0.5), 10, partial(torch.optim.SGD, lr=0.1), lambda *_: None)


def data_module(images, *tests):
    return DataModule(images, 0.0, 0, Augment(1, True, 0), 10, 0, also_test=tests)


def test_measure_gives_the_figures_of_the_network(noise, trainer, classifier):
    images = noise()
    parts = [AlsoTest(f"C/fog/{i}", images.test_x[i::2], images.test_y[i::2], "C") for i in range(2)]
    extra = AlsoTest("C/spatter/1", images.test_x[:3], images.test_y[:3])
    data = data_module(images, *parts, extra, AlsoTest("same", images.test_x, images.test_y))
    classifier.train()
    acc, nll = measure(classifier, data, trainer())
    assert list(acc) == list(nll) == ["C", "C/fog/0", "C/fog/1", "C/spatter/1", "same"]
    (batch,) = data.test_dataloader()
    logits = classifier.net.eval()(batch.x).logits
    assert acc["same"] == pytest.approx((logits.argmax(dim=1) == batch.y).float().mean().item())
    assert nll["same"] == pytest.approx(F.cross_entropy(logits, batch.y).item(), rel=1e-5)
    for figures in (acc, nll):
        assert figures["C"] == pytest.approx(figures["same"])  # two halves
        assert figures["C"] == pytest.approx((figures["C/fog/0"] + figures["C/fog/1"]) / 2)


def test_measure_is_limited_like_the_test(noise, trainer, classifier, monkeypatch):
    monkeypatch.setattr("kd.data.module.EVAL_BATCH", 5)
    images = noise()
    x = images.test_x.clone()
    x[5:] = 0
    tests = [AlsoTest(name, pixels, images.test_y) for name, pixels in (("whole", images.test_x), ("first", x))]
    data = data_module(images, *tests)
    for limit in (1, 0.25):
        nll = measure(classifier, data, trainer(limit_test_batches=limit)).nll
        assert nll["whole"] == nll["first"]
    nll = measure(classifier, data, trainer()).nll
    assert nll["whole"] != nll["first"]
