import copy
import re
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn, tensor

import kd
from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.methods.simkd import Reused, SimKD, simkd_loss
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.models.output import Output, parameter_count, probe
from kd.models.wide_resnet import WideResNet
from kd.runs.results import read
from kd.teachers.frozen import freeze
from kd.training.modules import Distiller
from kd.training.optim import one_cycle
from tests.common import SMALL, pair

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cnn(scale):
    return CNN(scale, 10, 8, "relu", 0.0, 0.0)


def wrn(widen):
    return WideResNet(10, widen, 10, 8, 0.0)


def built(student, teacher, **knobs):
    torch.manual_seed(0)
    method = SimKD(**knobs)
    method.setup(pair(student, teacher.eval()))
    return method


def test_simkd_loss_by_hand():
    # The teacher's 2x2 map is averaged to 4: (1 - 4)^2 = 9.
    assert simkd_loss(tensor([[[[1.0]]]]), tensor([[[[2.0, 4.0], [4.0, 6.0]]]])).item() == 9


def test_simkd_loss_like_the_papers_formula_number_by_number():
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4)
    total = 0.0
    for index in np.ndindex(2, 3, 2, 2):
        b, c, h, w = index
        block = teacher[b, c, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].double()
        total += (student[index].item() - block.sum().item() / 4) ** 2
    assert simkd_loss(student, teacher).item() == pytest.approx(total / 24, rel=1e-5)
    assert simkd_loss(teacher, teacher).item() == 0


def test_student_that_sees_what_the_teacher_sees_predicts_what_it_predicts(labelled):
    """The teacher itself as student, and a projector that changes nothing."""
    for teacher in (wrn(1), cnn(2)):
        method = built(teacher, teacher, factor=1).eval()
        for layer in method.head.projector:
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
        output = teacher(X)
        assert method(output, output, labelled(0, 1, 2))["simkd"].item() == pytest.approx(0, abs=1e-10)
        torch.testing.assert_close(method.inference_net(teacher)(X).logits, output.logits)


@pytest.mark.parametrize(
    ("student", "teacher", "on_maps"),
    [(wrn(1), wrn(2), True), (cnn(2), cnn(3), False), (cnn(2), wrn(2), False), (wrn(1), cnn(2), False)],
)
def test_inference_net_is_counted_with_projector_and_classifier(student, teacher, on_maps):
    method = built(student, teacher)
    net = method.inference_net(student)
    assert method.head.on_maps == on_maps
    own, projector = parameter_count(student), parameter_count(method.head.projector)
    assert parameter_count(net) == own + projector + parameter_count(teacher.classifier)
    assert net(X).logits.shape == (3, 10)
    assert torch.equal(method.head.classifier.weight, teacher.classifier.weight)
    assert method.head.classifier.weight is not teacher.classifier.weight


def test_only_the_teachers_classifier_is_not_trained(labelled):
    student, teacher = wrn(1), wrn(2)
    method = built(student, teacher)
    step = method.step(student, freeze(teacher), labelled(0, 1, 2)._replace(x=X))
    assert list(step.terms) == ["hard", "simkd"]
    assert step.terms["hard"].item() == 0
    assert not torch.equal(step.output.logits, student(X).logits)
    sum(step.terms.values()).backward()
    assert all(p.grad is not None for p in [*student.parameters(), *method.head.projector.parameters()])
    assert all(p.grad is None for p in method.head.classifier.parameters())
    assert student.classifier.weight.grad.abs().max() == 0
    assert student.stem[0].weight.grad.abs().max() > 0


def test_maps_of_other_sizes_are_averaged_to_the_smaller():
    def output(channels, size):
        feature = torch.rand(2, channels, size, size)
        return Output(torch.zeros(2, 10), (feature,), feature.mean(dim=(2, 3)))

    teacher = wrn(1)
    for ours, theirs in ((8, 2), (2, 8)):
        method = SimKD()
        taught = output(64, theirs)
        taught = taught._replace(logits=teacher.classifier(taught.embedding))
        method.setup(pair(teacher, teacher)._replace(student=output(5, ours), teacher=taught))
        assert method.head(output(5, ours))[1].shape == (2, 64, 2, 2)


@pytest.mark.parametrize(("shift", "last"), [(0.0, nn.ReLU), (-3.0, nn.BatchNorm2d)])
def test_projector_ends_with_a_relu_only_where_the_teachers_embedding_does(shift, last):
    """A teacher with negative numbers could never be matched behind one."""
    teacher, method = cnn(3), SimKD()
    made = pair(cnn(2), teacher)
    embedding = made.teacher.embedding + shift
    with torch.no_grad():
        taught = made.teacher._replace(embedding=embedding, logits=teacher.classifier(embedding))
    method.setup(made._replace(teacher=taught))
    assert type(method.head.projector[-1]) is last


def test_batch_of_one_has_finite_terms(labelled):
    for student, teacher in ((cnn(2), cnn(3)), (wrn(1), wrn(2))):
        method = built(student, teacher)
        loss = sum(method(student(X[:1]), teacher(X[:1]), labelled(0)).values())
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in student.parameters())


def test_student_is_tested_with_the_reused_classifier(tiny_net, noise, trainer):
    """By the trainer, in eval mode, and with what training has made of the projector."""
    student, teacher = tiny_net(), tiny_net(width=6, seed=1)
    method = built(student, teacher)
    recipe = partial(torch.optim.SGD, lr=0.01), partial(one_cycle, warmup=0.25)
    module, lightning = Distiller(student, 10, *recipe, method, freeze(teacher)), trainer(max_epochs=1)
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=10, seed=3)
    before = method.head.projector[0].weight.clone()
    lightning.fit(module, data)
    lightning.test(module, data, verbose=False)
    assert not torch.equal(method.head.projector[0].weight, before)
    assert torch.equal(method.head.classifier.weight, teacher.classifier.weight)
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        accuracy = (module.eval().inference_net(batch.x).logits.argmax(dim=1) == batch.y).float().mean().item()
    assert lightning.callback_metrics["test/acc"].item() == pytest.approx(accuracy)


def test_run_keeps_the_whole_network(run, tmp_path):
    assert run(*SMALL, "method=simkd", "epochs=1", "logger=none", "hydra.run.dir=run")[0] == 0
    tensors = load_file(tmp_path / "run" / "student.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"student", "head"}
    assert {"head.classifier.weight", "head.projector.0.weight"} <= tensors.keys()
    buffers = ("running_mean", "running_var", "num_batches_tracked", "layout")
    count = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(buffers))
    record = read(tmp_path / "run" / "result.json")
    assert record.student_params == count
    assert isinstance(kd.load("run").net, Reused)
    assert len(kd.load("run").predict(np.zeros((2, 16, 16, 3), np.uint8))) == 2


@pytest.mark.parametrize("nets", [(wrn(1), wrn(2)), (cnn(2), cnn(3))])
def test_network_can_be_made_again_of_its_weights(nets):
    method = built(*nets)
    net = method.inference_net(nets[0]).eval()
    again = SimKD.restored_net(copy.deepcopy(nets[0]), net.state_dict()).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(X).logits, net(X).logits)


def test_own_loop_is_given_the_network_to_keep():
    student, teacher = cnn(2), cnn(3)
    loss = kd.distill(student, teacher, SimKD(), X)
    loss(X, tensor([0, 1, 2])).backward()
    net = loss.inference_net.eval()
    assert isinstance(net, Reused)
    assert net(X).embedding.shape == (3, 96)


def test_teacher_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match=re.escape("Ensemble has no linear layer")):
        built(cnn(2), Ensemble([cnn(2), cnn(2)]))
    with pytest.raises(ValueError, match=r"^simkd needs the teacher itself, for its classifier"):
        SimKD().setup(pair(cnn(2))._replace(teacher=probe(cnn(2), 8)))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("layout", tensor([1, 1, -4, 4])),
        ("layout", tensor([1, 1, 0, 4])),
        ("layout", tensor([1.0, 1.0, 4.0, 4.5])),
        ("layout", tensor([1, 1, 4])),
        ("projector.0.weight", torch.zeros(60_000, 1, 1, 1)),
        ("projector.0.weight", torch.zeros(60_000, 0, 1, 1)),
        ("classifier.weight", torch.zeros(2, 60_000)),
    ],
)
def test_network_of_a_file_that_misleads_is_not_made(monkeypatch, name, changed):
    """A small file could describe layers that take all memory."""
    nets = wrn(1), wrn(2)
    tensors = built(*nets).inference_net(nets[0]).state_dict() | {f"head.{name}": changed}
    monkeypatch.setattr(nn.Module, "register_parameter", on_meta_only(nn.Module.register_parameter))
    with pytest.raises(ValueError, match=r"head\.\w+"):
        SimKD.restored_net(nets[0], tensors)


def on_meta_only(register):
    def registered(module, name, parameter):
        assert parameter is None or parameter.is_meta
        register(module, name, parameter)

    return registered


def test_maps_are_never_enlarged():
    """By a size that a file of weights names."""
    nets = wrn(1), wrn(2)
    net = built(*nets).inference_net(nets[0]).eval()
    tensors = net.state_dict() | {"head.layout": tensor([1, 1, 10**6, 10**6])}
    again = SimKD.restored_net(nets[0], tensors).eval()
    again.load_state_dict(tensors)
    assert again(X).logits.shape == net(X).logits.shape
