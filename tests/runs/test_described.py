"""Networks as files of weights describe them."""

import pytest
import torch

from kd.errors import UserError
from kd.runs.described import described_network

CNN_SETTINGS = {
    "_target_": "kd.models.cnn.CNN",
    "scale": 2,
    "activation": "relu",
    "conv_dropout": 0.0,
    "head_dropout": 0.0,
}


@pytest.mark.parametrize(
    "model",
    [
        None,
        {"scale": 2},
        {"_target_": 3},
        {"_target_": "kd.models.cnn.torch.hub.load"},
        {"_target_": "kd.models.cnn._stage"},
        {"_target_": "kd.models.nowhere.Net"},
        {"_target_": "os.system", "command": "true"},
        {"_target_": "kd.models.external.custom", "target": "os.system"},
        {"_target_": "kd.models.external.timm", "name": "resnet18"},
        {**CNN_SETTINGS, "scale": {"_target_": "os.system", "command": "true"}},
        {**CNN_SETTINGS, "scale": [2]},
        {**CNN_SETTINGS, "scale": "${oc.create:{_target_:os.getcwd}}"},
        {**CNN_SETTINGS, "activation": "${oc.env:HOME}"},
        {**CNN_SETTINGS, "_partial_": True},
        {**CNN_SETTINGS, "in_channels": 1},
        {"_target_": "kd.models." + "a." * 2000 + "b"},
    ],
)
def test_described_network_is_one_of_ours_or_none(model, tmp_path):
    """Hydra would import and call whatever a file of weights names."""
    net = {"weight": torch.zeros(30_000)}
    shape = {"num_classes": 10, "image_size": 8}
    assert described_network(net, {"model": model}, shape, tmp_path) is None
    assert described_network(net, {"model": CNN_SETTINGS}, shape, tmp_path) == CNN_SETTINGS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 100}, r"its metadata describe a network of [\d,]+ parameters, and it holds 1$"),
        ({"pool": 2}, r"cannot build its network, kd\.models\.cnn\.CNN: .*'pool'.*; name the network by teacher=$"),
        ({"_target_": "kd.models.output.probe_images", "scale": 2}, "cannot build its network"),
        ({"_target_": "kd.models.output.parameter_count"}, "cannot build its network"),
    ],
)
def test_described_network_names_a_file_whose_network_cannot_be_built(tmp_path, changes, message):
    described = {"model": CNN_SETTINGS | changes}
    with pytest.raises(UserError, match=rf"^{tmp_path}: {message}"):
        described_network({"a": torch.zeros(1)}, described, {"num_classes": 10, "image_size": 8}, tmp_path)
