import copy

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from kd.models.output import probe
from kd.models.wide_resnet import WideResNet
from kd.training.performance import PackedDropout, Speed
from tests.common import ROOT

CONF = ROOT / "conf"
SMALL = {"depth": 10, "widen": 2, "num_classes": 5, "image_size": 8, "dropout": 0.0}


def small(**changes):
    torch.manual_seed(0)
    return WideResNet(**{**SMALL, **changes})


def noise(size=8, n=6):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def fast():
    settings = yaml.safe_load((CONF / "speed" / "fast.yaml").read_text())
    del settings["_target_"]
    return Speed(**settings)


def seasoned(**changes):
    """A network a few steps into its training: BatchNorm has statistics, scales and shifts of its own."""
    net = small(**changes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        x = 2 * torch.randn(32, 3, 8, 8) + 0.5
        optimizer.zero_grad()
        F.cross_entropy(net(x).logits, torch.arange(32) % 5).backward()
        optimizer.step()
    assert all(not torch.equal(m.weight, torch.ones_like(m.weight)) for m in net.modules() if is_bn(m))
    return net.eval()


def is_bn(module):
    return isinstance(module, nn.BatchNorm2d)


def parameters(depth, widen, num_classes=10):
    with torch.device("meta"):
        net = WideResNet(depth, widen, num_classes, 32, 0.0)
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("depth", "widen", "millions"),
    [
        *[(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (40, 8, 35.7)],
        *[(28, 10, 36.5), (28, 12, 52.5), (22, 8, 17.2), (22, 10, 26.8), (16, 8, 11.0), (16, 10, 17.1)],
    ],
)
def test_numbers_of_parameters_are_those_of_the_paper(depth, widen, millions):
    assert round(parameters(depth, widen) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("depth", "widen", "classes"), [(10, 1, 2), (16, 2, 10), (16, 2, 100), (22, 2, 10), (28, 3, 7)]
)
def test_numbers_of_parameters_counted_by_hand(depth, widen, classes):
    n = (depth - 4) // 6
    count = 3 * 9 * 16
    before = 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        count += 9 * before * width + (2 * n - 1) * 9 * width**2  # 3x3
        count += before * width if before != width else 0  # shortcut
        count += 2 * before + (2 * n - 1) * 2 * width  # BatchNorm
        before = width
    count += 2 * before + before * classes + classes
    assert parameters(depth, widen, classes) == count


@pytest.mark.parametrize(("file", "count"), [("student/wrn22_2", 1_079_642), ("student/wrn16_8", 10_961_370)])
def test_numbers_of_parameters_that_the_files_claim(file, count):
    text = (CONF / f"{file}.yaml").read_text()
    settings = yaml.safe_load(text)
    assert parameters(settings["depth"], settings["widen"]) == count
    assert f" {count / 1e6:.2f} M parameters at 10 classes" in text.splitlines()[0]
    assert f"{count:,}" in WideResNet.__doc__


@pytest.mark.parametrize("depth", [10, 22])
def test_depth_is_the_number_of_convolutions(depth):
    assert sum(isinstance(m, nn.Conv2d) for m in small(depth=depth).modules()) == depth


@pytest.mark.parametrize(
    ("depth", "widen", "num_classes", "size", "sizes"),
    [(10, 1, 2, 4, (4, 2, 1)), (16, 3, 10, 8, (8, 4, 2)), (10, 2, 100, 30, (30, 15, 8))],
)
def test_shapes_follow_from_width_classes_and_image_size(depth, widen, num_classes, size, sizes):
    output = probe(small(depth=depth, widen=widen, num_classes=num_classes, image_size=size), size)
    assert output.logits.shape == (2, num_classes)
    widths = (16 * widen, 32 * widen, 64 * widen)
    assert [f.shape[1:] for f in output.features] == [(w, s, s) for w, s in zip(widths, sizes, strict=True)]
    assert output.embedding.shape == (2, widths[-1])


def textbook(net, x, n):
    """The paper's network with this one's weights, every block written out with a BN-ReLU of its own in front."""
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = iter([m for m in net.modules() if is_bn(m)])
    convs = iter([m.weight for m in layers if m.kernel_size == (3, 3)])
    shortcuts = iter([m.weight for m in layers if m.kernel_size == (1, 1)])

    def bn_relu(x):
        m = next(norms)
        return F.relu(F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias))

    x, features = F.conv2d(x, next(convs), padding=1), []
    for group in range(3):
        for block in range(n):
            stride = 2 if group and not block else 1
            active = bn_relu(x)
            features += [active] if group and not block else []
            first = next(convs)
            y = bn_relu(F.conv2d(active, first, stride=stride, padding=1))
            y = F.conv2d(y, next(convs), padding=1)
            x = y + (x if first.shape[0] == first.shape[1] else F.conv2d(active, next(shortcuts), stride=stride))
    features.append(bn_relu(x))
    assert [*norms, *convs, *shortcuts] == []
    return features, F.linear(features[-1].mean((2, 3)), net.classifier.weight, net.classifier.bias)


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (16, 1), (16, 2)])
def test_it_is_the_network_of_the_paper(depth, widen):
    net = seasoned(depth=depth, widen=widen)
    features, logits = textbook(net, noise(), (depth - 4) // 6)
    output = net(noise())
    torch.testing.assert_close(output.logits, logits)
    for mine, theirs in zip(output.features, features, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_features_come_after_the_activation_and_the_embedding_is_what_the_classifier_reads(training):
    net = small().train(training)
    output = net(noise())
    assert all(feature.min() == 0 < feature.max() for feature in output.features)
    torch.testing.assert_close(output.embedding, F.adaptive_avg_pool2d(output.features[-1], 1).flatten(1))
    assert torch.equal(net.classifier(output.embedding), output.logits)


@pytest.mark.parametrize("widen", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_features_are_the_activated_preacts(widen, training):
    output = small(widen=widen).train(training)(noise())
    assert len(output.preacts) == len(output.features) == 3
    for preact, feature in zip(output.preacts, output.features, strict=True):
        assert preact.min() < -1  # what a ReLU in place would have overwritten
        assert torch.equal(F.relu(preact), feature)


@pytest.mark.parametrize("widen", [1, 2])
def test_every_parameter_is_reached_by_the_gradient(widen):
    net = small(widen=widen, depth=16, dropout=0.1)
    F.cross_entropy(net(noise()).logits, torch.arange(6) % 5).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_weights_start_so_that_signals_keep_their_size():
    net = WideResNet(10, 8, 10, 32, 0.0)
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d) and m.out_channels >= 128):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert not net.classifier.bias.any()


def test_dropout_acts_in_training_only_once_in_each_block():
    net = small(dropout=0.3, depth=16)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.3] * 6
    assert not torch.equal(net(noise()).logits, net(noise()).logits)
    net.eval()
    assert torch.equal(net(noise()).logits, net(noise()).logits)


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (16, 1), (16, 2)])
def test_the_frozen_copy_answers_as_the_network_it_was_made_of(depth, widen):
    net, n = seasoned(depth=depth, widen=widen), (depth - 4) // 6
    frozen = fast().prepare_teacher(net, half=False)
    # Folded are those that follow a convolution which nothing else reads: the second in each block, and the stem's.
    assert sum(map(is_bn, net.modules())) - sum(map(is_bn, frozen.modules())) == 3 * n + (widen > 1)
    theirs, ours = net(noise()), frozen(noise())
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.embedding, theirs.embedding, rtol=1e-4, atol=1e-4)
    for mine, other in zip(ours.features + ours.preacts, theirs.features + theirs.preacts, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    rounded = fast().prepare_teacher(net, half=True)(noise().bfloat16()).logits.float()
    assert (rounded - theirs.logits).abs().max() < 0.05 * theirs.logits.abs().max()


def test_made_ready_to_be_trained_it_has_the_same_weights_and_gradients():
    plain = small(depth=16)
    ready = fast().prepare_student(copy.deepcopy(plain))
    assert plain.state_dict().keys() == ready.state_dict().keys()
    assert sum(type(m) is PackedDropout for m in ready.modules()) == 6
    for net in (plain, ready):
        net(noise().contiguous(memory_format=torch.channels_last)).logits.square().mean().backward()
    for mine, other in zip(ready.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, r"depth must be 6n \+ 4 with n at least 1, such as 10, 16 or 22, got 4"),
        ({"depth": 20}, r"depth must be 6n \+ 4 with n at least 1, such as 10, 16 or 22, got 20"),
        ({"depth": 0}, r"depth must be a whole number in \[1, 1000\], got 0"),
        ({"widen": 0}, r"widen must be a whole number in \[1, 1000\], got 0"),
        ({"widen": 1.5}, r"widen must be a whole number in \[1, 1000\], got 1.5"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"image_size": 0}, r"image_size must be a whole number in \[1, 4096\], got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), got nan"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        small(**changes)
