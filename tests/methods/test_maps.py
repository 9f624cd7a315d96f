import re

import pytest
import torch

from kd.methods.maps import classifier_head, of_one_size, stage_pairs
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.models.output import probe
from kd.models.wide_resnet import WideResNet


def test_stage_pairs_meet_at_the_deepest():
    two, three = [torch.empty(1, 1, 1, 1)] * 2, [torch.empty(1, 1, 1, 1)] * 3
    assert stage_pairs(two, three) == [(-2, -2), (-1, -1)]
    assert stage_pairs(three, three) == [(-3, -3), (-2, -2), (-1, -1)]
    with pytest.raises(ValueError, match=r"^the teacher has no such maps"):
        stage_pairs(two, [])


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
