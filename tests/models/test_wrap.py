import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2, vgg11_bn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from kd.models.cnn import CNN
from kd.models.output import Output, probe
from kd.models.wrap import wrap
from kd.training.performance import Speed


def resnet():
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def vit():
    torch.manual_seed(0)
    net = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(net.heads.head.weight)  # torchvision's is 0
    return net


def swin():
    torch.manual_seed(0)
    return SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=5)


class Own(nn.Module):
    """Two stages, of which the second ends without an activation; `result` shapes what it returns."""

    def __init__(self, result=lambda logits: logits):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(6))
        self.unused = nn.ReLU()
        self.fc = nn.Linear(6, 5)
        self.auxiliary = nn.Linear(4, 2)
        self.result = result

    def forward(self, x):
        return self.result(self.fc(self.second(self.first(x)).mean((2, 3))))


def noise(size=32, n=2, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def same(one, two):
    tensors = [(o.logits, *o.features, o.embedding, *o.preacts) for o in (one, two)]
    return len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))


def manual_resnet(net, x):
    """Logits, and per layer the map before and after the last ReLU, computed from the network's parts."""
    x = net.maxpool(F.relu(net.bn1(net.conv1(x))))
    preacts, features = [], []
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        block = layer[0]
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        preacts.append(y + (x if block.downsample is None else block.downsample(x)))
        x = F.relu(preacts[-1])
        features.append(x)
    embedding = x.mean((2, 3))
    return net.fc(embedding), features, embedding, preacts


@pytest.mark.parametrize("training", [True, False])
def test_wrap_returns_what_a_resnet_computes(training):
    net = resnet().train(training)
    plain = copy.deepcopy(net)
    output = wrap(net, preacts=True)(noise())
    logits, features, embedding, preacts = manual_resnet(plain, noise())
    assert torch.equal(output.logits, logits)
    torch.testing.assert_close(output.embedding, embedding)
    for mine, expected in zip(output.features + output.preacts, features + preacts, strict=True):
        assert torch.equal(mine, expected)
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in net.state_dict().items())


def test_gradients_flow_through_everything_that_wrap_returns():
    net = resnet()
    output = wrap(net, preacts=True)(noise())
    sum(t.square().mean() for t in (output.logits, *output.features, output.embedding, *output.preacts)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "stages", "head"),
    [
        (resnet, ["layer1", "layer2", "layer3", "layer4"], "fc"),
        (mobilenet_v2, ["features.1", "features.3", "features.6", "features.13", "features"], "classifier.1"),
        (swin, ["features.1", "features"], "head"),
        (vit, ["encoder"], "heads.head"),
        # The layers before each pooling, as this one has no blocks.
        (vgg11_bn, ["features.2", "features.6", "features.13", "features.20", "features.27"], "classifier.6"),
    ],
)
def test_stages_and_head_are_found(make, stages, head):
    wrapped = wrap(make())
    assert (list(wrapped.stages), wrapped.head) == (stages, head)


def test_stages_of_a_flat_network_are_the_layers_before_each_pooling():
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout()]
    layers += [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 10)]
    wrapped = wrap(nn.Sequential(*layers), preacts=True)  # runs with 28 pixels and one channel only
    assert wrapped.stages == ("1", "5")
    output = wrapped(torch.randn(3, 1, 28, 28))
    assert [tuple(map.shape) for map in output.features] == [(3, 4, 28, 28), (3, 6, 14, 14)]
    assert output.preacts[0].min() < 0 == output.features[0].min()


def test_gate_over_pooled_maps_is_no_stage():
    class Gated(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.conv = nn.Conv2d(before, after, 3, 2, 1)
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(after, after, 1), nn.Sigmoid())

        def forward(self, x):
            x = self.conv(x)
            return x * self.gate(x)

    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert wrap(nn.Sequential(Gated(3, 4), Gated(4, 5), pooled, nn.Linear(5, 2))).stages == ("0", "1")


def test_token_maps_become_grids_without_the_class_token():
    net = vit().eval()
    stages = ["encoder.layers.encoder_layer_0", "encoder"]
    output = wrap(net, stages)(noise())
    with torch.no_grad():
        tokens = torch.cat([net.class_token.expand(2, -1, -1), net._process_input(noise())], dim=1)
        first = net.encoder.layers[0](tokens + net.encoder.pos_embedding)
        last = net.encoder.ln(net.encoder.layers[1](first))
    for feature, expected in zip(output.features, (first, last), strict=True):
        assert feature.shape == (2, 16, 4, 4)
        for row, column in [(0, 0), (1, 2), (3, 1)]:
            torch.testing.assert_close(feature[:, :, row, column], expected[:, 1 + 4 * row + column])
    torch.testing.assert_close(output.embedding, last[:, 0])
    torch.testing.assert_close(output.logits, net.heads(last[:, 0]))


@pytest.mark.parametrize(
    ("size", "tokens", "shape"),
    [
        ((8, 8), (2, 16, 5), (2, 5, 4, 4)),
        ((8, 8), (2, 21, 5), (2, 5, 4, 4)),  # a class token and four registers
        ((8, 16), (2, 9, 5), (2, 5, 2, 4)),
        ((8, 8), (2, 12, 5), (2, 5, 12, 1)),  # 9 and three more would be a grid as well, but 12 - 3 is none of ours
        ((8, 8), (2, 31, 5), (2, 5, 31, 1)),
        ((8, 8), (2, 5), (2, 5, 1, 1)),
        ((8, 8), (2, 5, 4, 4), (2, 5, 4, 4)),
        ((8, 8), (2, 4, 4, 5), (2, 5, 4, 4)),
        ((8, 8), (2, 4, 4, 4), (2, 4, 4, 4)),
        ((9, 13), (2, 5, 5, 7), (2, 5, 5, 7)),  # halved and rounded up
        ((9, 13), (2, 5, 7, 8), (2, 8, 5, 7)),
    ],
)
def test_features_are_maps_whatever_a_stage_returns(size, tokens, shape):
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.arange(torch.tensor(tokens).prod()).reshape(tokens).float()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage, self.fc = Fixed(), nn.Linear(3, 2)

        def forward(self, x):
            self.stage(x)
            return self.fc(x.mean((2, 3)))

    assert wrap(Net(), ["stage"])(torch.zeros(2, 3, *size)).features[0].shape == shape


def test_maps_with_channels_last_become_channels_first():
    net = swin().eval()
    output = wrap(net, ["features.1", "features.3"])(noise())
    with torch.no_grad():
        first = net.features[1](net.features[0](noise()))
        last = net.features[3](net.features[2](first))
    assert torch.equal(output.features[0], first.permute(0, 3, 1, 2))
    assert torch.equal(output.features[1], last.permute(0, 3, 1, 2))
    torch.testing.assert_close(output.embedding, net.norm(last).mean((1, 2)))


def test_embedding_of_a_convolutional_head_is_the_mean_of_its_input():
    stage = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    net = nn.Sequential(stage, nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wrapped = wrap(net, ["0"])
    output = wrapped(noise(8))
    assert wrapped.head == "1"
    torch.testing.assert_close(output.embedding, stage(noise(8)).mean((2, 3)))
    torch.testing.assert_close(net[1](output.embedding[:, :, None, None]).flatten(1), output.logits)


@pytest.mark.parametrize(
    "result",
    [
        lambda logits: (logits, "more"),
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: Output(logits, (), logits),
    ],
    ids=["tuple", "dict", "named"],
)
def test_logits_are_found_in_what_the_module_returns(result):
    torch.manual_seed(0)
    net = Own(result).eval()
    output = wrap(net, ["first"], "fc")(noise(8))
    assert torch.equal(output.logits, net.fc(output.embedding))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda logits: None, "Own returned NoneType; it should return logits (B, C)"),
        (lambda logits: logits[..., None], "Own returned a Tensor (2, 5, 1); it should return logits (B, C)"),
    ],
)
def test_module_without_logits_is_named(result, message):
    with pytest.raises(TypeError) as error:
        wrap(Own(result), [], "fc")(noise(8))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ["layer11"]}, "ResNet has no module 'layer11'; did you mean layer1 or"),
        ({"stages": [], "head": "fcc"}, "ResNet has no module 'fcc'; did you mean fc"),
        ({"stages": ["zzz"]}, "ResNet has no module 'zzz'; did you mean conv1 or bn1 or relu"),
        ({"stages": ["conv1"], "preacts": True}, "stage 'conv1' has no activation among its modules, so it has no"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        wrap(resnet(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ["unused"], "head": "fc"}, "'unused' did not run in this pass of Own; name another"),
        ({"stages": [], "head": "auxiliary"}, "'auxiliary' did not run in this pass of Own; name another"),
        (
            {"stages": ["first", "second"], "head": "fc", "preacts": True},
            r"stage 'second' does not end with an activation \(its last one is 'second.1'\), so it has no preact; "
            "choose another stage or preacts=False",
        ),
    ],
)
def test_pass_that_lacks_something_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        wrap(Own(), **arguments)(noise(8))


def test_head_that_does_not_make_the_logits_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5), nn.Unflatten(1, (5, 1)), nn.Linear(1, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"^'3', taken for the head, has 1 outputs, but there are 5 logits; name the"):
        wrap(net, [])(noise(8))
    assert wrap(net, [], head="1")(noise(8)).embedding.shape == (2, 3 * 64)


def test_network_of_unknown_image_size_is_told_how_to_give_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.Linear(100, 2))
    with pytest.raises(ValueError, match=r"^stages of Sequential cannot be found.* 64 or 32 or .*give image_size=, or"):
        wrap(net)
    assert wrap(net, image_size=24).stages == ("1", "2")
    assert wrap(net, stages=[])(noise(24)).features == ()


def test_wrap_leaves_the_module_as_it_was():
    net = resnet()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    wrapped = wrap(net)
    assert wrapped.module is net
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert wrapped.module.state_dict().keys() == before.keys()
    assert torch.is_tensor(net(noise()))


def test_copies_have_hooks_of_their_own():
    original = wrap(resnet().eval(), preacts=True)
    duplicate = copy.deepcopy(original)
    expected = original(noise())
    assert same(duplicate(noise()), expected)
    with torch.no_grad():
        for p in original.parameters():
            p.zero_()
    assert same(duplicate(noise()), expected)
    assert same(probe(duplicate, noise()), expected)


def test_pickled_copy_returns_the_same():
    original = wrap(resnet().eval(), preacts=True)
    assert same(pickle.loads(pickle.dumps(original))(noise()), original(noise()))
    buffer = io.BytesIO()
    torch.save(original, buffer)
    buffer.seek(0)
    assert same(torch.load(buffer, weights_only=False)(noise()), original(noise()))


@pytest.mark.parametrize(("make", "preacts"), [(resnet, True), (vit, False)])
def test_compiled_network_returns_the_same(make, preacts):
    net = wrap(make().eval(), preacts=preacts)
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    assert same(compiled(noise()), net(noise()))
    assert same(compiled(noise(seed=2)), net(noise(seed=2)))


def test_two_wraps_of_one_module_do_not_interfere():
    net = resnet().eval()
    shallow, deep = wrap(net, ["layer1"]), wrap(net, ["layer4"])
    assert shallow(noise()).features[0].shape[1] == 64
    assert deep(noise()).features[0].shape[1] == 512


def test_threads_do_not_mix_up_their_maps():
    """Both are inside of the network at the same time, as under nn.DataParallel."""
    meeting = threading.Barrier(2, timeout=20)

    class Meet(nn.Module):
        def forward(self, x):
            meeting.wait()
            return x

    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), Meet(), nn.Sequential(nn.Conv2d(4, 4, 3))]
    net = wrap(nn.Sequential(*stages, Meet(), nn.Flatten(), nn.Linear(4 * 36, 5)), ["0", "2"])
    outputs = {}
    threads = [
        threading.Thread(target=lambda seed=seed: outputs.update({seed: net(noise(8, seed=seed))})) for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        first = stages[0](noise(8, seed=seed))
        assert torch.equal(outputs[seed].features[0], first)
        assert torch.equal(outputs[seed].features[1], stages[2](first))


def test_pass_leaves_no_maps_behind():
    net = wrap(Own(), ["first"], "fc")
    net(noise(8))
    assert net._pass.calls is None
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 7, 8, 8))
    assert net._pass.calls is None


def test_wrapped_teacher_is_prepared_without_folding():
    """torch.fx does not run hooks of layers, so tracing must fail and not leave maps out."""
    plain = dict.fromkeys(("channels_last", "packed_dropout", "fused", "compile", "tensor_cores", "keep_memory"), False)
    speed = Speed(**plain, fold_teacher=True, stored_logits=False, stored_logits_gb=0.0)
    net = wrap(resnet().eval())
    assert same(speed.prepare_teacher(net, half=False)(noise()), net(noise()))


def test_network_that_returns_output_can_be_wrapped_again():
    net = CNN(2, 5, 8, "relu", 0.0, 0.0).eval()
    output = wrap(net, ["stages.0.5"], preacts=True)(noise(8))
    assert torch.equal(output.logits, net(noise(8)).logits)
    assert torch.equal(output.embedding, net(noise(8)).embedding)
    assert torch.equal(output.features[0], net(noise(8)).features[0])
    assert torch.equal(output.preacts[0], net(noise(8)).preacts[0])
