import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd.losses import soft_loss
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.models.output import probe
from kd.training.performance import Speed, folded


@pytest.fixture
def nets():
    torch.manual_seed(0)
    return [CNN(scale, 5, 8, "relu", 0.2, 0.2).eval() for scale in (2, 3)]


def test_ensemble_of_one_is_that_network(nets):
    x = torch.randn(4, 3, 8, 8)
    for ours, theirs in zip(_flat(nets[0](x)), _flat(Ensemble(nets[:1])(x)), strict=True):
        assert torch.equal(ours, theirs)


def _flat(output):
    return output.logits, *output.features, output.embedding, *output.preacts


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_ensemble_logits_are_the_normalised_geometric_mean_at_every_temperature(nets, T):
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        product = torch.stack([(net(x).logits / T).softmax(1) for net in nets]).prod(dim=0).sqrt()
        mean = (Ensemble(nets)(x).logits / T).softmax(1)
    assert torch.allclose(mean, product / product.sum(dim=1, keepdim=True), atol=1e-6)


def test_features_of_all_networks_lie_side_by_side(nets):
    shapes = [tuple(feature.shape[1:]) for feature in probe(Ensemble(nets), 8).features]
    assert shapes == [(2 + 3, 8, 8), (4 + 6, 4, 4)]
    assert probe(Ensemble(nets), 8).embedding.shape == (2, 32 * 5)


def test_preacts_of_all_networks_lie_side_by_side(nets):
    x = torch.randn(4, 3, 8, 8)
    expected = [torch.cat(maps, dim=1) for maps in zip(*(net(x).preacts for net in nets), strict=True)]
    assert len(expected) == 2
    for preact, both in zip(Ensemble(nets)(x).preacts, expected, strict=True):
        assert torch.equal(preact, both)


def test_preacts_are_left_out_where_a_network_has_none(nets, tiny_net):
    class OneStage(nn.Module):
        def forward(self, x):
            return nets[0](x)._replace(features=nets[0](x).features[:1], preacts=nets[0](x).preacts[:1])

    x = torch.randn(4, 3, 8, 8)
    assert len(Ensemble([OneStage(), OneStage()])(x).preacts) == 1
    mixed = Ensemble([OneStage(), tiny_net(num_classes=5)])(x)
    assert mixed.preacts == ()
    assert mixed.features[0].shape == (4, 2 + 4, 8, 8)


def test_networks_whose_maps_differ_have_none_together(nets, tiny_net):
    """In number, or in size; and so has a copy that torch.fx has traced, which sees no sizes."""

    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nets[1]

        def forward(self, x):
            output = self.net(x)
            return output._replace(features=tuple(F.max_pool2d(stage, 2) for stage in output.features))

    images = torch.randn(2, 3, 8, 8)
    for other in (tiny_net(num_classes=5), Halved()):
        both = Ensemble([nets[0], other], images).eval()
        for net in (both, folded(both)):
            found = net(images)
            assert (found.features, found.preacts) == ((), ())
            expected = (both.nets[0](images).logits + both.nets[1](images).logits) / 2
            torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)
    assert len(Ensemble(nets, images)(images).features) == len(nets[0](images).features)


def test_frozen_ensemble_returns_the_same(nets):
    plain = dict.fromkeys(("channels_last", "packed_dropout", "fused", "compile", "tensor_cores", "keep_memory"), False)
    speed = Speed(**plain, fold_teacher=True, stored_logits=False, stored_logits_gb=0.0)
    ensemble = Ensemble(nets).eval()
    for _ in range(3):
        ensemble.train()(torch.randn(8, 3, 8, 8))  # BatchNorm's statistics are no longer 0 and 1
    frozen = speed.prepare_teacher(ensemble.eval(), half=False)
    x = torch.randn(4, 3, 8, 8)
    assert soft_loss(frozen(x).logits, ensemble(x).logits, 1.0) < 1e-6
    for mine, other in zip(frozen(x).preacts, ensemble(x).preacts, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert not any("BatchNorm" in type(module).__name__ for module in frozen.modules())


def test_ensemble_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
