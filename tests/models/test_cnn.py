import pytest
import torch
from torch import nn

from kd.models.cnn import CNN
from kd.models.output import probe

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
        ({"scale": 0}, r"scale must be a whole number in \[1, inf\), got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"image_size": 30}, "image_size must be a multiple of 4, got 30"),
        ({"image_size": 0}, "image_size must be a multiple of 4, got 0"),
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
