import copy
import itertools
import math

import pytest
import torch
from torch import nn, tensor

from kd.data.batch import Batch
from kd.methods.ofd import OFD, mean_of_negatives, ofd_loss
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.models.output import Output
from kd.models.wide_resnet import WideResNet
from kd.models.wrap import wrap
from kd.teachers.frozen import freeze
from tests.common import pair, pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*preacts):
    return Output(torch.zeros(len(preacts[0]), 2), tuple(map(torch.relu, preacts)), torch.empty(0), preacts)


def built(student, teacher, **knobs):
    torch.manual_seed(0)
    method = OFD(**knobs)
    method.setup(pair_of(student, teacher))
    return method


def test_ofd_loss_by_hand():
    """Margin -1: teacher (2, -0.5, -3, -3) becomes (2, -0.5, -1, -1); the student is (1, -0.7, -2, 0.5)."""
    student, teacher = tensor([[[[1.0, -0.7, -2.0, 0.5]]]]), tensor([[[[2.0, -0.5, -3.0, -3.0]]]])
    # (1 - 2)^2 and (0.5 + 1)^2; the other two are below a target that is not positive
    assert ofd_loss(student, teacher, tensor([-1.0])).item() == pytest.approx(3.25)
    # -0.3 is above -0.5
    assert ofd_loss(tensor([[[[-0.3]]]]), tensor([[[[-0.5]]]]), tensor([-1.0])).item() == pytest.approx(0.04)


def reference(student, teacher, margin):
    total = 0.0
    for b, c, h, w in itertools.product(*map(range, student.shape)):
        value = student[b, c, h, w].item()
        target = max(teacher[b, c, h, w].item(), margin[c].item())
        if not (value <= target and target <= 0):
            total += (value - target) ** 2
    return total / len(student)


def test_ofd_loss_like_the_formula_place_by_place():
    student, teacher, margin = noise(2, 3, 4, 3), noise(2, 3, 4, 3, seed=1), tensor([-0.1, -0.8, -2.0])
    assert ofd_loss(student, teacher, margin).item() == pytest.approx(reference(student, teacher, margin), rel=1e-5)
    assert ofd_loss(teacher, teacher, margin - 9).item() == 0
    repeated = ofd_loss(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1), margin)
    torch.testing.assert_close(repeated, ofd_loss(student, teacher, margin))


def test_mean_of_negatives_is_that_of_many_numbers():
    mean, std = tensor([0.0, 0.5, -1.0, -0.2]), tensor([1.0, 0.4, 2.0, 0.1])
    drawn = mean + std * noise(400_000, 4)
    expected = torch.stack([column[column < 0].mean() for column in drawn.T])
    torch.testing.assert_close(mean_of_negatives(mean, std).float(), expected, rtol=0.02, atol=0)
    # E[x | x < 0] = -sqrt(2 / pi) of the standard normal
    assert mean_of_negatives(mean, std)[0].item() == pytest.approx(-math.sqrt(2 / math.pi), rel=1e-12)


def test_mean_of_negatives_is_finite_and_goes_on_without_a_jump():
    """Far from 0: it nears -std^2 / mean on the one side, and the mean itself on the other."""
    mean = tensor([30.0, 1e4, 1e30, 0.0, -1e4, -50.0])
    found = mean_of_negatives(mean, tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0]))
    assert found.tolist() == pytest.approx([-1 / 30, -1e-4, 0, 0, -1e4, -50], rel=3e-3, abs=1e-5)
    steps = mean_of_negatives(torch.linspace(2.5, 4, 500), torch.ones(500)).diff()
    assert steps.abs().max() < 1e-3
    assert (found <= 0).all()


def test_ofd_weights_the_stages_and_averages_the_larger_map(labelled):
    student = output(noise(3, 2, 8, 8), noise(3, 4, 4, 4, seed=1))
    teacher = output(noise(3, 5, 8, 8, seed=2), noise(3, 6, 2, 2, seed=3))
    method = built(student, teacher, beta=0.5)
    expected = 0.0
    for i, factor in enumerate((0.5, 1.0)):
        target = teacher.preacts[i]
        margin = tensor([column[column < 0].mean() for column in target.transpose(0, 1)])
        connected = method.connectors[i](student.preacts[i])
        connected = connected if i == 0 else nn.functional.avg_pool2d(connected, 2)
        expected += factor * ofd_loss(connected, target, margin)
    terms = method(student, teacher, labelled(0, 1, 0))
    assert list(terms) == ["hard", "ofd", "soft"]
    torch.testing.assert_close(terms["ofd"], 0.5 * expected)


def with_statistics(net):
    """The network with BatchNorm weights as if it had been trained."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return net


class Plain(nn.Sequential):
    """A network of anyone's, with activations in place and any stem; by default one that halves images twice."""

    def __init__(self, *stem):
        stage = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 4, *(stem or (4, 4))), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), stage, head
        )


NETS = {
    "cnn": (lambda: CNN(4, 10, 16, "relu", 0.0, 0.0), 16, lambda net: [stage[4] for stage in net.stages]),
    "wrn": (lambda: WideResNet(10, 1, 10, 15, 0.0), 15, lambda net: [stage[-2] for stage in net.stages]),
    "wrap": (
        lambda: wrap(Plain(), ["0", "1"], preacts=True),
        16,
        lambda net: [net.module[0][1], net.module[1][1]],
    ),
    "without padding": (
        lambda: wrap(Plain(3), ["0", "1"], preacts=True),
        15,
        lambda net: [net.module[0][1], net.module[1][1]],
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_margin_comes_from_the_batchnorm_that_makes_the_map(name):
    make, size, layers = NETS[name]
    teacher = with_statistics(make())
    method = OFD()
    method.setup(pair(teacher, teacher, size)._replace(student=output(noise(2, 2, 8, 8))))
    last = layers(teacher)[-1]
    torch.testing.assert_close(method.margin0, mean_of_negatives(last.bias, last.weight.abs()).float())
    assert (method.margin0 < 0).all()


class Residual(nn.Module):
    """A stage that adds to the output of its BatchNorm in place, as torchvision's do."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x):
        total = self.norm(self.conv(x))
        total += x
        return self.act(total)


def test_batchnorm_before_a_sum_is_not_taken_for_its_maker():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    teacher = wrap(nn.Sequential(Residual(), head), ["0"], preacts=True, image_size=8)
    method = OFD()
    method.setup(pair(CNN(2, 10, 8, "relu", 0.0, 0.0), teacher, 8))
    assert method.margin0 is None


def test_margin_comes_from_the_batch_where_no_batchnorm_makes_the_map(labelled):
    """An ensemble's maps are its networks' side by side."""
    teacher = Ensemble([CNN(2, 10, 16, "relu", 0.0, 0.0), CNN(2, 10, 16, "relu", 0.0, 0.0)])
    student = CNN(2, 10, 16, "relu", 0.0, 0.0)
    method = OFD()
    method.setup(pair(student, teacher, 16))
    assert (method.margin0, method.margin1) == (None, None)
    x = noise(4, 3, 16, 16)
    assert method(student(x), teacher.eval()(x), labelled(0, 1, 2, 3))["ofd"] > 0


def test_teacher_stays_as_it_was():
    """In the authors' code and in mdistiller it is in train mode, and its BatchNorm statistics drift."""
    teacher, student = with_statistics(CNN(4, 10, 16, "relu", 0.3, 0.0)), CNN(2, 10, 16, "relu", 0.0, 0.0)
    teacher.train()
    before, hooks = copy.deepcopy(teacher.state_dict()), [len(m._forward_hooks) for m in teacher.modules()]
    method = OFD()
    method.setup(pair(student, teacher, 16))
    assert teacher.training  # not the method's to change
    frozen = freeze(teacher)
    method.train()
    batch = Batch.of(noise(4, 3, 16, 16), torch.arange(4))
    sum(method.step(student, frozen, batch).terms.values()).backward()
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [len(m._forward_hooks) for m in teacher.modules()] == hooks
    assert all(p.grad is None for p in teacher.parameters())


def test_ofd_names_the_network_without_maps_before_the_activation(tiny_net):
    rich = CNN(2, 10, 8, "relu", 0.0, 0.0)
    with pytest.raises(ValueError, match=r"^ofd needs maps before the activation, and the student has none; .*preacts"):
        OFD().setup(pair(tiny_net(), rich))
    with pytest.raises(ValueError, match=r"^ofd needs maps before the activation, and the teacher has none; .*cnn16"):
        OFD().setup(pair(rich, tiny_net()))
