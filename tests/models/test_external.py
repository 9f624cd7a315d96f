import copy
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer

from kd.methods.maps import classifier_head
from kd.models.cnn import CNN
from kd.models.external import bind, custom, timm, torchvision
from kd.models.output import probe

DEFAULTS = {
    **dict.fromkeys(("stages", "head", "pretrained", "size", "mean", "std", "classes")),
    "num_classes": 5,
    "image_size": 16,
    "preacts": False,
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OF_DATA = ((0.2, 0.3, 0.4), (0.1, 0.25, 0.5))
NAMES = tuple("abcde")


class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Masked(Net):
    def forward(self, x, mask, scale=1):
        return super().forward(x * mask)


class Fixed(Net):
    def __init__(self):
        super().__init__(7)


class Five(Net):
    def __init__(self):
        super().__init__(5)


class Volume(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.lifted = nn.Unflatten(1, (2, 3))

    def forward(self, x):
        return self.fc(self.lifted(self.layer2(self.layer1(x))).flatten(1, 2).mean((2, 3)))


class Typo(Net):
    def forward(self, x):
        return self.fcc(x)


@pytest.fixture(autouse=True)
def my_pkg(monkeypatch):
    """A package on the import path."""
    package = types.ModuleType("my_pkg")
    for made in (Net, Masked, Fixed, Volume, Typo):
        setattr(package, made.__name__, made)
    package.CNN, package.number = CNN, lambda num_classes: num_classes
    package.handed_on, package.kept = (lambda **given: Net(**given)), (lambda **given: Five(**given))
    monkeypatch.setitem(sys.modules, "my_pkg", package)


def own(target="my_pkg.Net", settings=None, **changes):
    torch.manual_seed(0)
    return custom(target, settings, **{**DEFAULTS, **changes})


def noise(n=3, size=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_custom_makes_the_network_with_its_settings_and_the_datas_classes():
    net = own(settings={"width": 7}, stages=["layer1"])
    output = net.eval()(noise())
    assert (output.logits.shape, output.features[0].shape, output.embedding.shape) == ((3, 5), (3, 7, 8, 8), (3, 6))
    assert torch.equal(output.logits, net.net.module(noise()))
    assert net.head == "net.module.fc."


@pytest.mark.parametrize("target", ["my_pkg.handed_on", "my_pkg.kept"])
def test_function_of_any_keywords_gets_the_number_of_classes_if_its_network_takes_it(target):
    """As other projects have it: `def resnet32x4(**kwargs)`, whose class has ten classes by default, or its own."""
    assert own(target).eval()(noise()).logits.shape == (3, 5)


def test_stages_are_found_by_themselves():
    assert own().net.stages == ("layer1", "layer2")


def test_network_that_returns_output_is_taken_as_it_is():
    settings = {"scale": 2, "activation": "relu", "conv_dropout": 0.0, "head_dropout": 0.0}
    net = own("my_pkg.CNN", settings).eval()
    assert isinstance(net.net, CNN)
    assert torch.equal(net(noise()).features[1], net.net(noise()).features[1])


def test_torchvision_makes_a_network_by_name_with_initial_weights():
    name = "shufflenet_v2_x0_5"
    net = torchvision(name, **{**DEFAULTS, "image_size": 32, "stages": ["conv1", "stage3"]})
    assert net.net.module.state_dict().keys() == get_model(name, num_classes=5).state_dict().keys()
    assert [map.shape[-1] for map in probe(net, 32).features] == [16, 2]


def test_transformer_is_made_for_the_size_of_its_images(monkeypatch):
    def small(name, weights, num_classes, image_size):
        return VisionTransformer(image_size, 8, 1, 2, 16, 32, num_classes=num_classes)

    monkeypatch.setattr("torchvision.models.get_model", small)
    assert torchvision("vit_b_16", **DEFAULTS).net.module.image_size == 16
    assert torchvision("vit_b_16", **{**DEFAULTS, "size": 24}).net.module.image_size == 24


def test_timm_makes_a_network_by_name():
    pytest.importorskip("timm", exc_type=ImportError)
    net = timm("test_resnet", **{**DEFAULTS, "image_size": 32})
    output = net(noise(size=32))
    assert output.logits.shape == (3, 5)
    assert len(output.features) > 1
    with pytest.raises(ValueError, match="timm has no network 'resnet19'; did you mean resnet1"):
        timm("resnet19", **DEFAULTS)
    with pytest.raises(ValueError, match="timm has no network 'hf-hub:someone/resnet18'"):  # which would be downloaded
        timm("hf-hub:someone/resnet18", **DEFAULTS)


def test_timm_that_is_missing_is_an_import_error_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm"):
        timm("resnet18", **DEFAULTS)


@pytest.mark.parametrize("size", [None, 24, 8])
def test_images_are_resized_and_normalised_as_the_network_is_used_to(size):
    net = bind(own(size=size, **IMAGENET), NAMES, *OF_DATA).eval()
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(v)[:, None, None] for v in OF_DATA)
    theirs = [torch.tensor(v)[:, None, None] for v in IMAGENET.values()]
    resized = pixels if size is None else F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    expected = net.net((resized - theirs[0]) / theirs[1])
    output = net((pixels - mean) / std)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert output.features[0].shape[-1] == (size or 16) // 2


def test_channel_without_contrast_is_normalised_as_batches_are():
    net = bind(own(**IMAGENET), NAMES, (0.5, 0.5, 0.5), (0.0, 0.1, 0.1))
    assert net.scale[0].item() == pytest.approx(1 / 255 / 0.229)


def test_logits_are_in_the_order_of_the_datas_classes():
    theirs = ("x", "d", "a", "y", "b")
    net = bind(own(classes=theirs), ("a", "b", "d"), *OF_DATA).eval()
    assert torch.equal(net(noise()).logits, net.net(noise()).logits[:, [2, 4, 1]])
    with pytest.raises(ValueError, match=r"^classes lacks 'cat', a class of the data; .*got x, d, a, y, b$"):
        bind(own(classes=theirs), ("a", "cat"), *OF_DATA)


@pytest.mark.parametrize("theirs", [NAMES[::-1], ("x", *NAMES, "y")])
def test_classifier_head_has_the_rows_of_the_datas_classes(theirs):
    """In another order, or among others: what srrl and simkd give to the student."""
    net = bind(own(classes=theirs), NAMES, *OF_DATA).eval()
    output = net(noise(8))
    head = classifier_head(net, output)
    torch.testing.assert_close(head(output.embedding), output.logits)
    assert torch.equal(head.weight, net.net.module.fc.weight[[theirs.index(name) for name in NAMES]])


def test_state_dict_is_the_networks_own():
    """So that weights of the same network fit however it is shown its images."""
    plain = own().state_dict()
    shown = bind(own(size=8, classes=NAMES[::-1], **IMAGENET), NAMES, *OF_DATA).state_dict()
    assert plain.keys() == shown.keys() == {f"net.module.{name}" for name in Net(5).state_dict()}


def test_copy_is_shown_the_same():
    net = bind(own(size=8, classes=NAMES[::-1], **IMAGENET), NAMES, *OF_DATA).eval()
    assert torch.equal(copy.deepcopy(net)(noise()).logits, net(noise()).logits)
    half = copy.deepcopy(net).to(torch.bfloat16)(noise().to(torch.bfloat16)).logits
    torch.testing.assert_close(half.float(), net(noise()).logits, rtol=0.05, atol=0.05)


def test_network_that_has_not_been_told_what_it_is_shown_does_not_run():
    for net in (own(**IMAGENET), own(classes=NAMES)):
        with pytest.raises(ValueError, match="call bind first"):
            net(noise())


def test_bind_leaves_other_networks_alone(tiny_net):
    net = tiny_net()
    assert bind(net, NAMES, *OF_DATA) is net


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        (None, {}, "target must be the full name of a class or function, such as my_pkg.Net, got None"),
        ("Net", {}, "target must be the full name of a class or function, such as my_pkg.Net, got Net"),
        ("no_pkg.Net", {}, "target=no_pkg.Net: there is no module no_pkg on the import path; add its folder to PYTHON"),
        ("my_pkg.Nett", {}, "target=my_pkg.Nett: my_pkg has no class or function Nett; did you mean Net"),
        ("my_pkg.number", {}, "target=my_pkg.number makes a int and not an nn.Module"),
        ("my_pkg.Masked", {}, "my_pkg.Masked needs more than images: its forward takes x, mask; wrap it in a module"),
        ("my_pkg.Typo", {}, r"my_pkg.Typo does not run: AttributeError: .*'fcc'.* \(test_external.py:\d+\)"),
        ("my_pkg.Fixed", {}, "my_pkg.Fixed returns 7 logits for 5 classes"),
        (
            "my_pkg.Net",
            {"stages": ["layer3"]},
            "Net has no module 'layer3'; did you mean .*Its parts are layer1, layer2",
        ),
        ("my_pkg.Net", {"head": "classifier"}, "Net has no module 'classifier'; did you mean .*Its parts are layer1, "),
        ("my_pkg.Net", {"stages": ["fc"], "preacts": True}, "stage 'fc' has no activation among its modules"),
        ("my_pkg.Volume", {"stages": ["lifted"]}, r"stage 'lifted' returned \(2, 2, 3, 4, 4\), which is no map of 2"),
        ("my_pkg.Net", {"settings": {"num_classes": 3}}, "settings.num_classes comes from the data; leave it out"),
        ("my_pkg.Net", {"mean": (0.5, 0.5, 0.5)}, "mean and std belong together; give both, or neither"),
        ("my_pkg.Net", {"mean": "half", "std": "half"}, "mean must be a list of numbers, one a channel, got half"),
        ("my_pkg.Net", {"mean": (0.5,) * 3, "std": (0.5, 0.0, 1)}, "std must be above 0, got"),
        ("my_pkg.Net", {"size": 0}, "size must be a whole number in .1, 4096., got 0"),
        ("my_pkg.Net", {"classes": ("a", "b", "a")}, "classes must name each output once, got a, b, a"),
    ],
)
def test_wrong_settings_are_named_in_one_line(target, changes, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        own(target, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "torchvision has no network 'resnet19'; did you mean resnet1"),
        (None, "the name of a network of torchvision is missing; give name=, such as name=resnet18"),
        ("maskrcnn_resnet50_fpn", "torchvision has no network 'maskrcnn_resnet50_fpn'; did you mean "),
        (
            "vit_b_16",
            "torchvision's vit_b_16 cannot be made for images of 20 pixels: .*; give size= to have them resized",
        ),
    ],
)
def test_network_of_torchvision_that_cannot_be_made_is_named(name, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        torchvision(name, **{**DEFAULTS, "image_size": 20})


def test_mean_of_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"^mean must have 3 numbers, one a channel, got 1$"):
        bind(own(mean=(0.5,), std=(0.5,)), NAMES, *OF_DATA)


def test_grey_images_are_repeated_for_a_network_on_rgb_images():
    """As the teacher of grey images: the figures are those of the same images in three channels."""
    grey, in_three = own(in_channels=1, **IMAGENET).eval(), own(**IMAGENET).eval()
    bind(grey, NAMES, (0.4,), (0.2,))
    bind(in_three, NAMES, (0.4,) * 3, (0.2,) * 3)
    x = noise()[:, :1]
    torch.testing.assert_close(grey(x).logits, in_three(x.expand(-1, 3, -1, -1)).logits)
    assert grey.state_dict().keys() == in_three.state_dict().keys()
    assert torchvision("resnet18", **{**DEFAULTS, "image_size": 32, "in_channels": 1}).in_channels == 3


def test_network_that_takes_in_channels_gets_those_of_the_data():
    net = own("my_pkg.CNN", {"scale": 2, "activation": "relu", "conv_dropout": 0.0, "head_dropout": 0.0}, in_channels=1)
    assert net.net.stages[0][0].in_channels == net.in_channels == 1
    assert net(noise()[:, :1]).logits.shape == (3, 5)


def test_network_on_rgb_images_refuses_other_channels():
    with pytest.raises(ValueError, match=r"^my_pkg.Net does not run on images of 13 channels and 16 pixels.*for RGB"):
        own(in_channels=13)


def test_network_is_shown_wide_images_at_a_size_of_its_own():
    net = own(image_size=[16, 24], size=[12, 32]).eval()
    x = torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(x, (12, 32), mode="bilinear", antialias=True)
    assert torch.equal(net(x).logits, net.net.module(expected))
    assert net.view == {"image_size": [12, 32]}
    assert [tuple(map.shape[2:]) for map in net(x).features] == [(6, 16), (3, 8)]
    with pytest.raises(ValueError, match=r"vit_b_16 cannot be made for images of 32x16 pixels.*give size= one number"):
        torchvision("vit_b_16", **{**DEFAULTS, "image_size": [16, 32]})
