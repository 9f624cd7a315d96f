"""The checkout as torch.hub sees it."""

import importlib.util

import pytest
import torch

from kd.inference import load
from tests.common import CONF, ROOT
from tests.deploy.common import weights


def hub(name, **arguments):
    return torch.hub.load(str(ROOT), name, source="local", **arguments)


def test_hub_lists_the_networks_of_ours():
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = [name for name in dir(module) if callable(getattr(module, name))]  # as torch.hub.list does
    assert set(names) == {path.stem for path in (CONF / "student").glob("*.yaml")} - {"timm", "torchvision", "custom"}
    assert "1.07 M parameters" in module.cnn16.__doc__


def test_hub_builds_a_network_with_random_weights():
    net = hub("cnn16", num_classes=7, image_size=16, scale=2)
    assert net(torch.zeros(2, 3, 16, 16)).logits.shape == (2, 7)


def test_hub_loads_a_run(finished):
    run = str(finished / "run")
    predictor = hub("cnn16", run=run, scale=2)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(predictor(x).logits, load(run)(x).logits)
    with pytest.raises(ValueError, match="holds a CNN, and resnet8 is a "):
        hub("resnet8", run=run)
    with pytest.raises(ValueError, match="holds a CNN of other settings than cnn16; give them, or take"):
        hub("cnn16", run=run)


def test_hub_loads_a_run_on_grey_images(tmp_path):
    saved = weights(tmp_path / "student.safetensors", channels=1, classes=tuple("0123456789"))
    predictor = hub("cnn16", run=str(saved), scale=2)
    assert predictor(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)
