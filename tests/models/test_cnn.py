import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd.models.cnn import CNN
from kd.models.output import checked, probe

SMALL = {
    "scale": 3,
    "num_classes": 5,
    "image_size": 8,
    "activation": "relu",
    "conv_dropout": 0.25,
    "head_dropout": 0.5,
}


def small(**changes):
    torch.manual_seed(0)
    return CNN(**{**SMALL, **changes})


def noise(size=8, n=6):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("scale", "count"),
    [
        # conv 896 + 9248 + 18496 + 36928, BatchNorm 64 + 64 + 128 + 128, hidden 4096 * 1024 + 1024, head 10240 + 10
        (32, 4_271_530),
        # conv 448 + 2320 + 4640 + 9248, BatchNorm 32 + 32 + 64 + 64, hidden 2048 * 512 + 512, head 5120 + 10
        (16, 1_071_066),
    ],
)
def test_number_of_parameters(scale, count):
    with torch.device("meta"):
        net = CNN(scale, 10, 32, "relu", 0.25, 0.5)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(("scale", "num_classes", "size"), [(1, 2, 4), (3, 10, 8), (2, 100, 20)])
def test_shapes_follow_from_scale_classes_and_image_size(scale, num_classes, size):
    output = small(scale=scale, num_classes=num_classes, image_size=size)(noise(size))
    assert output.logits.shape == (6, num_classes)
    assert [f.shape[1:] for f in output.features] == [(scale, size, size), (2 * scale, size // 2, size // 2)]
    assert output.embedding.shape == (6, 32 * scale)


def test_features_come_after_the_activation():
    relu, elu = small()(noise()), small(activation="elu")(noise())
    for rectified, exponential in zip(relu.features, elu.features, strict=True):
        assert rectified.min() == 0
        assert -1 < exponential.min() < 0  # ELU's floor is -1


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("elu", F.elu)])
@pytest.mark.parametrize("training", [True, False])
def test_features_are_the_activated_preacts(activation, function, training):
    output = small(activation=activation).train(training)(noise())
    assert len(output.preacts) == len(output.features) == 2
    for preact, feature in zip(output.preacts, output.features, strict=True):
        assert preact.min() < feature.min() <= 0  # what an activation in place would have overwritten
        assert torch.equal(function(preact), feature)


def test_state_dict_holds_the_names_that_saved_weights_have():
    layers = [f"stages.{stage}.{i}" for stage in range(2) for i in (0, 1, 3, 4)] + ["hidden.1", "classifier"]
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    norms = [f"stages.{stage}.{i}" for stage in range(2) for i in (1, 4)]
    names |= {f"{norm}.{kind}" for norm in norms for kind in ("running_mean", "running_var", "num_batches_tracked")}
    assert small().state_dict().keys() == names


def test_forward_computes_the_layers_written_out():
    net = small()
    net(2 * noise() + 1)  # BatchNorm has statistics of its own
    weights = net.eval().state_dict()

    def conv_bn(x, conv, norm):
        x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], padding=1)
        mean, var = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{norm}.weight"], weights[f"{norm}.bias"])

    x = noise()
    for stage in ("stages.0", "stages.1"):
        x = F.relu(conv_bn(x, f"{stage}.0", f"{stage}.1"))
        x = F.max_pool2d(F.relu(conv_bn(x, f"{stage}.3", f"{stage}.4")), 2)
    x = F.relu(F.linear(x.flatten(1), weights["hidden.1.weight"], weights["hidden.1.bias"]))
    assert torch.equal(net(noise()).logits, F.linear(x, weights["classifier.weight"], weights["classifier.bias"]))


def test_features_are_what_the_next_layers_read():
    net = small().eval()
    output = net(noise())
    pooled = nn.functional.max_pool2d(output.features[0], 2)
    torch.testing.assert_close(net.stages[1](pooled), output.features[1])
    torch.testing.assert_close(net.hidden(nn.functional.max_pool2d(output.features[1], 2)), output.embedding)


@pytest.mark.parametrize("training", [True, False])
def test_embedding_is_what_the_classifier_reads(training):
    net = small().train(training)
    output = net(noise())
    assert torch.equal(net.classifier(output.embedding), output.logits)


def test_dropout_rates_are_those_asked_for():
    net = small(scale=8, conv_dropout=0.2, head_dropout=0.6)
    torch.manual_seed(0)
    dropped = (net.downsample(torch.ones(8, 8, 64, 64)) == 0).double().mean()
    assert abs(dropped - 0.2) < 0.01  # n = 65,536: standard deviation 0.0016
    dropped = (net.hidden[-1](torch.ones(65_536)) == 0).double().mean()
    assert abs(dropped - 0.6) < 0.01
    assert any(isinstance(layer, nn.ELU) for layer in small(activation="elu").hidden)


@pytest.mark.parametrize(("name", "stochastic"), [("conv_dropout", True), ("head_dropout", True), (None, False)])
def test_each_dropout_acts_in_training_and_none_in_evaluation(name, stochastic):
    rates = {"conv_dropout": 0.0, "head_dropout": 0.0}
    net = small(**{**rates, **({name: 0.5} if name else {})})
    assert torch.equal(net(noise()).logits, net(noise()).logits) is not stochastic
    net.eval()
    assert torch.equal(net(noise()).logits, net(noise()).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0}, r"scale must be a whole number in \[1, 512\], got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"image_size": 30}, "image_size must be a multiple of 4, got 30"),
        ({"image_size": 2}, "image_size must be at least 4 for a network that halves it 2 times, got 2"),
        ({"image_size": 0}, r"image_size must be a whole number in \[1, 4096\], got 0"),
        ({"activation": "gelu"}, "activation must be one of relu, elu, got gelu"),
        ({"conv_dropout": 1.0}, r"conv_dropout must be in \[0, 1\), got 1"),
        ({"head_dropout": -0.1}, r"head_dropout must be in \[0, 1\), got -0.1"),
        ({"head_dropout": float("nan")}, r"head_dropout must be in \[0, 1\), got nan"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        small(**changes)


@pytest.mark.parametrize("training", [True, False])
def test_probe_leaves_no_trace(training):
    net = small().train(training)
    net(noise())  # BatchNorm has something to lose
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(0)
    output = probe(net, 8)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert {layer.training for layer in net.modules()} == {training}
    net.stages[0].train(not training)
    probe(net, 8)
    assert (net.stages[0].training, net.stages[1].training) == (not training, training)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not output.logits.requires_grad
    assert output.features[1].shape == (2, 6, 4, 4)


def test_probe_takes_images_as_they_are():
    net = small().eval()
    assert torch.equal(probe(net, noise(n=3)).logits, net(noise(n=3)).logits)


def test_checked_names_the_network_that_returns_something_else():
    output = small()(noise())
    assert checked(output, small()) is output
    message = r"Linear returned a Tensor, not a kd\.Output; wrap it with kd\.wrap\(net\)"
    with pytest.raises(TypeError, match=f"^{message}$"):
        checked(torch.zeros(2), nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"^Identity returned an int, not"):
        checked(3, nn.Identity())
    with pytest.raises(TypeError, match=r"^Flatten returned a Tensor, not"):
        probe(nn.Flatten(), 8)
