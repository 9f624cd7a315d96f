import pytest
import torch

from kd.losses import soft_loss
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.models.output import probe
from kd.training.performance import Speed


@pytest.fixture
def nets():
    torch.manual_seed(0)
    return [CNN(scale, 5, 8, "relu", 0.2, 0.2).eval() for scale in (2, 3)]


def test_one_network_is_itself(nets):
    x = torch.randn(4, 3, 8, 8)
    for ours, theirs in zip(_flat(nets[0](x)), _flat(Ensemble(nets[:1])(x)), strict=True):
        assert torch.equal(ours, theirs)


def _flat(output):
    return output.logits, *output.features, output.embedding


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_it_says_the_normalised_geometric_mean_at_every_temperature(nets, T):
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        product = torch.stack([(net(x).logits / T).softmax(1) for net in nets]).prod(dim=0).sqrt()
        said = (Ensemble(nets)(x).logits / T).softmax(1)
    assert torch.allclose(said, product / product.sum(dim=1, keepdim=True), atol=1e-6)


def test_maps_of_all_networks_lie_side_by_side(nets):
    shapes = [tuple(feature.shape[1:]) for feature in probe(Ensemble(nets), 8).features]
    assert shapes == [(2 + 3, 8, 8), (4 + 6, 4, 4)]
    assert probe(Ensemble(nets), 8).embedding.shape == (2, 32 * 5)


def test_a_frozen_copy_says_the_same(nets):
    plain = dict.fromkeys(("channels_last", "packed_dropout", "fused", "compile", "tensor_cores", "keep_memory"), False)
    speed = Speed(**plain, fold_teacher=True, stored_logits=False, stored_logits_gb=0.0)
    ensemble = Ensemble(nets).eval()
    for _ in range(3):
        ensemble.train()(torch.randn(8, 3, 8, 8))  # BatchNorm's statistics are no longer 0 and 1
    frozen = speed.frozen(ensemble.eval(), half=False)
    x = torch.randn(4, 3, 8, 8)
    assert soft_loss(frozen(x).logits, ensemble(x).logits, 1.0) < 1e-6
    assert not any("BatchNorm" in type(module).__name__ for module in frozen.modules())


def test_none_is_no_ensemble():
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
