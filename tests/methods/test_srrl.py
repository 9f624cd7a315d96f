import re

import pytest
import torch
from torch import nn, tensor

from kd.methods.maps import is_mean_of_last_map
from kd.methods.srrl import SRRL, srrl_losses
from kd.models.cnn import CNN
from kd.models.ensemble import Ensemble
from kd.models.output import probe
from kd.models.wide_resnet import WideResNet
from tests.common import pair, pair_of

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cnn(scale):
    return CNN(scale, 10, 8, "relu", 0.0, 0.0)


def built(student, teacher, **knobs):
    method = SRRL(**knobs)
    method.setup(pair(student, teacher.eval()))
    return method


def test_srrl_losses_by_hand():
    # (1 - 3)^2 and (2 - 2)^2: 2. The head makes 1 + 2 * 2 + 1 = 6 of the student's embedding, and the teacher has 3: 9.
    student, teacher, logits = tensor([[1.0, 2.0]]), tensor([[3.0, 2.0]]), tensor([[3.0]])
    losses = srrl_losses(student, teacher, logits, weight=tensor([[1.0, 2.0]]), bias=tensor([1.0]))
    assert [loss.item() for loss in losses] == [2, 9]


@pytest.mark.parametrize("nets", [(WideResNet(10, 1, 10, 8, 0.0), WideResNet(10, 2, 10, 8, 0.0)), (cnn(2), cnn(3))])
def test_terms_like_the_papers_formula_image_by_image(nets, labelled):
    """In float64 and by loops: the mean comes after the connector, where the embedding is the mean of the maps."""
    student, teacher = nets
    method = built(student, teacher, beta=2.0, head_weight=3.0).eval()
    with torch.no_grad():
        ours, theirs = student(X), teacher(X)
        terms = method(ours, theirs, labelled(0, 1, 2))
    maps = ours.features[-1] if isinstance(student, WideResNet) else ours.embedding[:, :, None, None]
    convolution, norm = (layer.double() for layer in list(method.connector)[:2])
    feature = regression = 0.0
    head = teacher.classifier.double()
    for i in range(3):
        places = maps[i].double().flatten(1).T @ convolution.weight[:, :, 0, 0].T  # (H W, D)
        normal = (places - norm.running_mean) / (norm.running_var + norm.eps) ** 0.5 * norm.weight + norm.bias
        mine = normal.clamp(min=0).mean(dim=0)
        feature += ((mine - theirs.embedding[i]) ** 2).mean().item() / 3
        regression += ((head.weight @ mine + head.bias - theirs.logits[i]) ** 2).mean().item() / 3
    teacher.float()
    assert list(terms) == ["hard", "feature", "regression", "soft"]
    assert terms["feature"].item() == pytest.approx(2 * feature, rel=1e-4)
    assert terms["regression"].item() == pytest.approx(6 * regression, rel=1e-4)


def test_gradient_passes_through_the_head_which_is_not_trained():
    student, teacher = cnn(2), cnn(3)
    method = built(student, teacher)
    with torch.no_grad():
        theirs = teacher(X)
    _, regression = srrl_losses(
        method._connected(student(X)), theirs.embedding, theirs.logits, method.weight, method.bias
    )
    regression.backward()
    assert method.connector[0].weight.grad.abs().max() > 0
    assert student.hidden[1].weight.grad.abs().max() > 0
    assert teacher.classifier.weight.grad is None
    assert {name for name, _ in method.named_parameters()} == {
        "connector.0.weight",
        "connector.1.weight",
        "connector.1.bias",
    }
    assert not {"weight", "bias"} & method.state_dict().keys()


def test_connector_has_a_relu_only_for_embeddings_without_negative_numbers():
    teacher = cnn(3)
    assert isinstance(built(cnn(2), teacher).connector[-1], nn.ReLU)
    shifted = nn.Sequential(teacher)
    shifted.forward = lambda x: teacher(x)._replace(embedding=teacher(x).embedding - 1)
    shifted.append(nn.Linear(96, 10))
    with torch.no_grad():
        shifted[1].weight.copy_(teacher.classifier.weight)
        shifted[1].bias.copy_(teacher.classifier.bias + teacher.classifier.weight.sum(dim=1))
    method = SRRL()
    method.setup(pair(cnn(2), teacher)._replace(teacher=shifted.forward(torch.zeros(2, 3, 8, 8)), teacher_net=shifted))
    assert isinstance(method.connector[-1], nn.BatchNorm2d)


def test_batch_of_one_has_finite_terms(labelled):
    for student, teacher in ((cnn(2), cnn(3)), (WideResNet(10, 1, 10, 8, 0.0), WideResNet(10, 2, 10, 8, 0.0))):
        method = built(student, teacher)
        loss = sum(method(student(X[:1]), teacher(X[:1]), labelled(0)).values())
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in [*student.parameters(), *method.parameters()])


def test_mean_of_the_last_map_is_recognised():
    assert is_mean_of_last_map(probe(WideResNet(10, 1, 10, 8, 0.0), 8))
    assert not is_mean_of_last_map(probe(cnn(2), 8))
    assert not is_mean_of_last_map(probe(cnn(2), 8)._replace(features=()))


def test_teacher_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match=re.escape("Ensemble has no linear layer")):
        built(cnn(2), Ensemble([cnn(2), cnn(2)]))
    output = probe(cnn(2), 8)
    with pytest.raises(ValueError, match=r"^srrl needs the teacher itself, for its classifier"):
        SRRL().setup(pair_of(output, output))
