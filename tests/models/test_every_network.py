"""What every network of conf/student keeps, whichever family it is of; and each family against another's code."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import SqueezeExcitation

from kd.app.compose import compose, plain
from kd.methods.maps import classifier_head
from kd.models.output import probe
from kd.training.performance import Speed
from scripts.networks import build, names
from tests.common import CONF

DIGITS = ("data=digits", "data.source.image_size=16", "trainer=cpu", "logger=none", "trainer.enable_progress_bar=false")
NAMES = names()
SMALL = {
    "cnn16": {"scale": 4},
    "densenet_bc_100_12": {"depth": 16},
    "mobilenetv2": {},
    "resnet9": {"scale": 8},
    "resnet8": {},
    "resnet14": {},
    "resnet18": {"scale": 8},
    "resnet50": {"scale": 8},
    "se_resnet56": {"depth": 8},
    "shufflenetv1": {},
    "shufflenetv2": {"width": 0.5},
    "vgg8": {},
    "wrn16_1": {},
}
"""A small network of every family, as changes of its settings."""


@cache
def made(name):
    """The small network of a family with statistics, scales and shifts as if it was trained; to be read only."""
    torch.manual_seed(0)
    net = build(name, 10, image_size=16, **SMALL[name])
    return randomized(net).eval()


def randomized(net):
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return net


def noise(size=16, n=4):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def maps(output):
    return *output.features, *output.preacts, output.embedding, output.logits


def count_bn(net):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())


def test_small_networks_are_one_of_every_family():
    def families(names):
        return {yaml.safe_load((CONF / "student" / f"{name}.yaml").read_text())["_target_"] for name in names}

    assert families(SMALL) == families(NAMES)


def test_every_network_is_student_and_teacher_with_its_settings_in_one_file():
    students, teachers = ({path.stem for path in (CONF / role).glob("*.yaml")} for role in ("student", "teacher"))
    assert students == teachers
    for name in NAMES:
        described = (CONF / "student" / f"{name}.yaml").read_text().splitlines()[0]
        file = (CONF / "teacher" / f"{name}.yaml").read_text()
        assert file == f"{described}\ndefaults:\n  - /student/{name}@_here_\n"
    settings = plain(compose(["data=digits", "student=resnet8x4", "teacher=resnet8x4"]).cfg)
    assert settings["student"] == settings["teacher"]
    assert settings["student"] == {"_target_": "kd.models.resnet.ResNet", "depth": 8, "stem": 32, "scale": 64}


@pytest.mark.parametrize("name", SMALL)
def test_embedding_is_what_the_head_reads(name):
    net = made(name)
    assert classifier_head(net, probe(net, noise())) is net.classifier


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_features_are_the_activated_preacts(name, training):
    output = copy.deepcopy(made(name)).train(training)(noise())
    if name == "resnet9":
        assert output.preacts == ()
    for preact, feature in zip(output.preacts, output.features, strict=name != "resnet9"):
        assert preact.min() < 0  # what a ReLU in place would have overwritten
        assert torch.equal(feature, preact if name == "mobilenetv2" else F.relu(preact))


@pytest.mark.parametrize("name", SMALL)
def test_folded_copy_makes_the_same_maps(name):
    settings = yaml.safe_load((CONF / "speed" / "fast.yaml").read_text())
    del settings["_target_"]
    net, speed = made(name), Speed(**settings)
    folded = speed.prepare_teacher(net, half=False)
    for mine, other in zip(maps(folded(noise())), maps(net(noise())), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * max(1, other.abs().max().item()))
    left = count_bn(folded)
    # Networks that normalise before they convolve keep a BatchNorm for each convolution that cannot take it.
    assert 0 < left < count_bn(net) if name in ("wrn16_1", "densenet_bc_100_12") else left == 0
    rounded = speed.prepare_teacher(net, half=True)(noise().bfloat16()).logits
    assert rounded.dtype == torch.bfloat16
    assert torch.isfinite(rounded).all()


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter_in_bf16_and_channels_last(name):
    net = copy.deepcopy(made(name)).train().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(noise().to(memory_format=torch.channels_last))
        loss = F.cross_entropy(output.logits.float(), torch.arange(4))
    loss.backward()
    assert torch.isfinite(loss)
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    # In this layout convolutions are fastest; a map in another one would be converted at each.
    assert all(feature.is_contiguous(memory_format=torch.channels_last) for feature in output.features)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        *[("resnet8", 4), ("se_resnet56", 4), ("densenet_bc_100_12", 4), ("resnet18", 8), ("vgg8", 8)],
        *[("shufflenetv1", 8), ("shufflenetv2", 8), ("resnet9", 8), ("mobilenetv2", 16)],
    ],
)
def test_smallest_images_fit_and_smaller_ones_are_refused(name, least):
    net = build(name, 3, image_size=least, **SMALL[name]).eval()
    assert net(noise(least)).features[-1].shape[2] >= 1
    halvings = least.bit_length() - 1
    message = f"image_size must be at least {least} for a network that halves it {halvings} times, got {least - 1}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(name, 3, "meta", image_size=least - 1, **SMALL[name])
    with pytest.raises(ValueError, match=r"^num_classes must be at least 2, got 1$"):
        build(name, 1, "meta", **SMALL[name])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet8", {"depth": 10}, r"depth must be 6n \+ 2 with n at least 1, such as 8, 20 or 56, got 10"),
        ("resnet8", {"stem": 0}, r"stem must be a whole number in \[1, 4096\], got 0"),
        ("se_resnet56", {"reduction": 17}, "reduction must be at most scale=16, so that a unit is left, got 17"),
        ("resnet18", {"depth": 101}, "depth must be one of 18, 34, 50, got 101"),
        ("vgg8", {"depth": 9}, "depth must be one of 8, 11, 13, 16, 19, got 9"),
        ("mobilenetv2", {"width": 0.05}, "width must be at least 0.0625, so that every layer has a channel, got 0.05"),
        ("mobilenetv2", {"width": 0}, r"width must be a number in \(0, 16\], got 0|width must be in \(0, 16\], got 0"),
        ("shufflenetv1", {"groups": 4}, "groups must be one of 1, 2, 3, got 4"),
        ("shufflenetv2", {"width": 0.75}, "width must be one of 0.5, 1.0, 1.5, 2.0, got 0.75"),
        ("densenet_bc_100_12", {"depth": 99}, r"depth must be 6n \+ 4 .*, got 99"),
        ("densenet_bc_100_12", {"growth": 0}, r"growth must be a whole number in \[1, 1000\], got 0"),
        ("resnet9", {"scale": 0}, r"scale must be a whole number in \[1, 512\], got 0"),
    ],
)
def test_settings_without_a_network_are_named(name, changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(name, 10, "meta", **changes)


def same_weights(net, reference):
    """Give a network's weights to one of another's code, which has them in the same order."""
    theirs = reference.state_dict()
    assert len(theirs) == len(net.state_dict())
    reference.load_state_dict(dict(zip(theirs, net.state_dict().values(), strict=True)))
    return reference.eval()


def plain_resnet(depth, stem, scale, reduction=None):
    """The network for small images, made of torchvision's blocks."""
    layers = [nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    before = stem
    for width in (scale, 2 * scale, 4 * scale):
        for stride in (1 if width == scale else 2, *(1,) * ((depth - 2) // 6 - 1)):
            shortcut = None
            if (before, stride) != (width, 1):
                shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            block = BasicBlock(before, width, stride, shortcut)
            if reduction:  # after the second BatchNorm, before the sum
                block.bn2 = nn.Sequential(block.bn2, SqueezeExcitation(width, width // reduction))
            layers.append(block)
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def small_stem(reference, channels):
    """An ImageNet network of torchvision with the stem that is usual on CIFAR."""
    reference.conv1, reference.maxpool = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.Identity()
    return reference


def resnet_of_torchvision(block, layers):
    return small_stem(torchvision.models.ResNet(block, layers, num_classes=10), 64)


def vgg_of_torchvision(config):
    layers = torchvision.models.vgg.make_layers(config, batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def densenet_of_torchvision():
    net = torchvision.models.DenseNet(12, (2, 2, 2), 24, bn_size=4, num_classes=10)
    net.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    net.features.norm0 = net.features.relu0 = net.features.pool0 = nn.Identity()
    return net


def shufflenet_v2_of_torchvision():
    net = torchvision.models.ShuffleNetV2([4, 8, 4], [24, 48, 96, 192, 1024], 10)
    net.conv1[0], net.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    return net


def mobilenet_v2_of_torchvision():
    rows = [
        (1.001, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    net = torchvision.models.MobileNetV2(10, 0.5, rows, round_nearest=1)  # 1.001: 1, with the first 1x1 convolution
    for layer in net.modules():
        for name, child in layer.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(layer, name, nn.ReLU())
    return net


@pytest.mark.parametrize(
    ("name", "changes", "reference"),
    [
        ("resnet14", {}, lambda: plain_resnet(14, 16, 16)),
        ("resnet8x4", {"scale": 8, "stem": 4}, lambda: plain_resnet(8, 4, 8)),
        ("se_resnet56", {"depth": 14}, lambda: plain_resnet(14, 16, 16, reduction=16)),
        ("resnet18", {}, lambda: resnet_of_torchvision(BasicBlock, [2, 2, 2, 2])),
        ("resnet50", {}, lambda: resnet_of_torchvision(Bottleneck, [3, 4, 6, 3])),
        ("vgg8", {}, lambda: vgg_of_torchvision([64, "M", 128, "M", 256, "M", 512, 512])),
        (
            "vgg13",
            {},
            lambda: vgg_of_torchvision([64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, 512, 512]),
        ),
        ("densenet_bc_100_12", {"depth": 16}, densenet_of_torchvision),
        ("shufflenetv2", {"width": 0.5}, shufflenet_v2_of_torchvision),
        ("mobilenetv2", {}, mobilenet_v2_of_torchvision),
    ],
)
def test_network_is_that_of_torchvision_but_for_its_stem(name, changes, reference):
    torch.manual_seed(0)
    net = randomized(build(name, 10, image_size=16, **changes)).eval()
    expected = same_weights(net, reference())(noise())
    torch.testing.assert_close(net(noise()).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def convolutions(net, kind=nn.Conv2d):
    """Run the network's convolutions with what follows them, one a call, in the order in which they are defined."""
    layers = [layer for layer in net.modules() if isinstance(layer, kind | nn.BatchNorm2d)]
    pairs = iter(list(zip(layers[::2], layers[1::2], strict=True)))

    def step(x):
        conv, norm = next(pairs)
        x = F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding, groups=conv.groups)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    return step


def test_shufflenet_v1_is_the_one_of_the_tables():
    net, x = made("shufflenetv1"), noise()
    step = convolutions(net)
    x = F.relu(step(x))
    for stage, count in enumerate((4, 8, 4)):
        for block in range(count):
            inner = F.relu(step(x))
            if stage or block:  # in three groups: what was at g * k + i comes to 3 * i + g
                k = inner.shape[1] // 3
                inner = inner[:, [g * k + i for i in range(k) for g in range(3)]]
            inner = step(F.relu(step(inner)))
            x = F.relu(inner + x if block else torch.cat([inner, F.avg_pool2d(x, 3, 2, 1)], dim=1))
        torch.testing.assert_close(net(noise()).features[stage], x, rtol=1e-4, atol=1e-4)


def test_resnet9_is_the_one_of_dawnbench():
    net = made("resnet9")
    step = convolutions(net)

    def layer(x):
        return F.relu(step(x))

    x = F.max_pool2d(layer(layer(noise())), 2)
    x = x + layer(layer(x))
    x = F.max_pool2d(layer(F.max_pool2d(layer(x), 2)), 2)
    x = x + layer(layer(x))
    logits = 0.125 * F.linear(x.amax(dim=(2, 3)), net.classifier.weight)
    torch.testing.assert_close(net(noise()).logits, logits, rtol=1e-4, atol=1e-5)


def test_vgg_pools_before_its_last_stage_from_64_pixels_on():
    heights = {
        size: [f.shape[2] for f in build("vgg8", 10, "meta", image_size=size)(noise(size).to("meta")).features]
        for size in (32, 64)
    }
    assert heights == {32: [16, 8, 4, 4], 64: [32, 16, 8, 4]}


@pytest.mark.parametrize("name", ["resnet8x4", "resnet18", "vgg8", "mobilenetv2", "densenet_bc_100_12"])
def test_convolutions_start_as_published(name):
    torch.manual_seed(0)
    net = build(name, 100, **{**SMALL.get(name, {}), **({"scale": 64} if name == "resnet18" else {})})
    for conv in (layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 4000):
        std = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(std, rel=0.1)
        assert conv.bias is None or not conv.bias.any()
    if name in ("vgg8", "mobilenetv2"):
        assert net.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not net.classifier.bias.any()


def test_network_compiles_in_one_graph():
    net = copy.deepcopy(made("shufflenetv2"))  # of all families the one that cuts and turns its maps the most
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for mine, other in zip(maps(compiled(noise())), maps(net(noise())), strict=True):
        assert torch.equal(mine, other)


def test_run_teaches_a_network_by_one_of_another_family(run):
    code, printed = run(*DIGITS, "student=mobilenetv2", "teacher=resnet8", "method=ofd", "debug=fast_dev_run")
    assert code == 0, printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("student=mobilenetv2", "data.source.image_size=8"),
            "image_size must be at least 16 for a network that halves it 4 times, got 8",
        ),
        (
            ("student=resnet20", "student.depth=21"),
            "depth must be 6n + 2 with n at least 1, such as 8, 20 or 56, got 21",
        ),
        (("student=resnet20", "student.stem=0"), "student.stem must be a whole number in [1, 4096], got 0"),
        (("student=resnet20", "student.widen=2"), "student.widen"),
    ],
)
def test_run_refuses_a_network_in_one_line(run, arguments, message):
    code, printed = run(*DIGITS, *arguments)
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("size", "channels"), [([16, 40], 1), ([24, 16], 5)])
def test_networks_take_wide_images_of_any_number_of_channels(name, size, channels):
    net = build(name, 3, image_size=size, in_channels=channels, **SMALL[name]).eval()
    output = probe(net, size, channels)
    assert output.logits.shape == (2, 3)
    for feature in output.features:
        assert feature.shape[2] / feature.shape[3] == pytest.approx(size[0] / size[1], rel=0.35)
    assert classifier_head(net, output) is net.classifier


@pytest.mark.parametrize(("name", "message"), [("resnet18", "at least 8 .* it 3 times"), ("cnn16", "a multiple")])
def test_networks_refuse_a_side_that_is_too_short(name, message):
    with pytest.raises(ValueError, match=rf"^image_size must be {message}.*, got \[6, 32\]$"):
        build(name, 3, "meta", image_size=[6, 32])
