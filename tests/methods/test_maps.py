import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd.methods.ab import ab_loss
from kd.methods.at import at_loss
from kd.methods.fitnet import hint_loss
from kd.methods.fsp import fsp_loss
from kd.methods.ft import ft_loss
from kd.methods.maps import averaged, classifier_head, common_stages, is_mean_of_last_map, of_one_size
from kd.methods.nst import nst_loss
from kd.methods.ofd import ofd_loss
from kd.methods.reviewkd import hcl_loss
from kd.methods.simkd import simkd_loss
from kd.methods.sp import sp_loss
from kd.methods.vid import vid_loss
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.models.output import probe
from kd.models.wide_resnet import WideResNet


def test_common_stages_meet_at_the_deepest():
    two, three = [torch.empty(1, 1, 1, 1)] * 2, [torch.empty(1, 1, 1, 1)] * 3
    assert common_stages(two, three) == [-2, -1]
    assert common_stages(three, three) == [-3, -2, -1]
    with pytest.raises(ValueError, match=r"^the teacher has no such maps"):
        common_stages(two, [])


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8), (4, 2)), ((15, 9), (5, 3)), ((7, 8), (3, 4)), ((2, 2), (4, 4)), ((4, 4), (4, 4))]
)
def test_averaged_is_adaptive_pooling(shape, size):
    maps = torch.randn(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(averaged(maps, size), F.adaptive_avg_pool2d(maps, size))


def test_of_one_size_averages_without_a_gradient_that_gpus_sum_in_any_order(monkeypatch):
    """trainer.deterministic=true refuses that of adaptive pooling on a GPU."""
    monkeypatch.delattr(F, "adaptive_avg_pool2d")
    small, _ = of_one_size(torch.ones(1, 2, 8, 8), torch.zeros(1, 5, 4, 2))
    assert torch.equal(small, torch.ones(1, 2, 4, 2))
    assert hcl_loss(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)) == 1


def test_of_one_size_averages_the_larger_of_each_side():
    wide = torch.arange(8.0).reshape(1, 1, 2, 4)
    small, same = of_one_size(wide, torch.zeros(1, 5, 4, 2))
    assert torch.equal(small, torch.tensor([[[[0.5, 2.5], [4.5, 6.5]]]]))
    assert same.shape == (1, 5, 2, 2)
    assert of_one_size(wide, wide)[0] is wide


@pytest.mark.parametrize("net", [CNN(2, 10, 16, "relu", 0.2, 0.2), WideResNet(10, 1, 10, 16, 0.0)])
def test_classifier_head_makes_the_logits(net):
    assert classifier_head(net, probe(net, 16)) is net.classifier


def test_classifier_head_of_an_ensemble_is_refused():
    net = Ensemble([CNN(2, 10, 16, "relu", 0.0, 0.0), CNN(2, 10, 16, "relu", 0.0, 0.0)])
    with pytest.raises(ValueError, match=re.escape("Ensemble has no linear layer")):
        classifier_head(net, probe(net, 16))


class TwoHeads(nn.Module):
    """A network with a layer of its classifier's shape that is not its classifier, and any map of the embedding."""

    def __init__(self, net, scale, linear=True):
        super().__init__()
        self.decoy = nn.Linear(net.classifier.in_features, net.classifier.out_features)
        self.net, self.linear = net, linear
        for layer in (self.decoy, net.classifier):
            nn.init.normal_(layer.weight, std=scale)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        output = self.net(x)
        return output if self.linear else output._replace(logits=self.net.classifier(F.normalize(output.embedding)))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_classifier_head_of_any_scale_is_told_from_a_layer_of_its_shape(scale):
    torch.manual_seed(0)
    net = TwoHeads(CNN(2, 10, 16, "relu", 0.0, 0.0), scale)
    assert classifier_head(net, probe(net, 16)) is net.net.classifier


@pytest.mark.parametrize("bias", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_classifier_head_that_is_not_linear_is_refused_at_any_scale(scale, bias):
    torch.manual_seed(0)
    net = TwoHeads(CNN(2, 10, 16, "relu", 0.0, 0.0), scale, linear=False)
    nn.init.constant_(net.net.classifier.bias, bias)
    with pytest.raises(ValueError, match=re.escape("TwoHeads has no linear layer")):
        classifier_head(net, probe(net, 16))


def test_mean_of_the_last_map_is_told_from_small_numbers():
    output = probe(WideResNet(10, 1, 10, 16, 0.0), 16)
    assert is_mean_of_last_map(output)
    small = output._replace(features=tuple(1e-6 * part for part in output.features), embedding=1e-6 * output.embedding)
    assert is_mean_of_last_map(small)
    assert not is_mean_of_last_map(small._replace(embedding=small.embedding.flip(1)))


SCALING = {
    "at": (at_loss, 1 / 4),
    "fitnet": (hint_loss, 1),
    "simkd": (simkd_loss, 1),
    "sp": (sp_loss, 1),
    "nst": (nst_loss, 1),
    "vid": (lambda student, teacher: vid_loss(student, teacher, torch.full((3,), 5.0)), 1),
    "fsp": (lambda student, teacher: fsp_loss([student, student], [teacher, teacher]), 1),
    "ft": (ft_loss, 1 / 2),
    "ab": (ab_loss, 4),
    "ofd": (lambda student, teacher: ofd_loss(student, teacher, torch.full((3,), -0.5)), 4),
}
"""Losses of maps, and by how much each grows with maps of four times as many places, as its page says."""


@pytest.mark.parametrize("name", SCALING)
def test_losses_of_maps_scale_with_the_places_as_their_pages_say(name):
    torch.manual_seed(0)
    loss, factor = SCALING[name]
    student, teacher = torch.randn(2, 4, 3, 2, 2)
    large = (torch.tile(maps, (1, 1, 2, 2)) for maps in (student, teacher))
    assert loss(*large).item() == pytest.approx(factor * loss(student, teacher).item(), rel=1e-4)
