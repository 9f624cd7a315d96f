import math

import pytest
import torch
from torch import nn, tensor

from kd.data.batch import Batch
from kd.methods.dml import DML
from kd.models.output import Output
from tests.common import pair


def output(*rows):
    return Output(tensor(rows), (), torch.empty(0))


# The peer says 3/4 and 1/4, the student 1/2 and 1/2; as in tests/test_losses.py:
# KL(peer || student) = 0.130812 and KL(student || peer) = 0.143841, each times T^2.
@pytest.mark.parametrize("T", [1, 3])
def test_terms_by_hand(labelled, T):
    terms = DML(T)(output([0.0, 0.0]), output([T * math.log(3), 0.0]), labelled(0))
    assert list(terms) == ["hard", "soft", "peer_hard", "peer_soft"]
    assert terms["hard"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert terms["soft"].item() == pytest.approx(T**2 * 0.130812, rel=1e-5)
    assert terms["peer_hard"].item() == pytest.approx(math.log(1 + 3**-T), rel=1e-5)
    assert terms["peer_soft"].item() == pytest.approx(T**2 * 0.143841, rel=1e-5)


def test_label_smoothing_touches_both_hard_terms_only(labelled):
    certain, unsure = output([math.log(3), 0.0]), output([0.0, 0.0])
    smooth, plain = DML(1.0, 0.2)(certain, unsure, labelled(0)), DML(1.0)(certain, unsure, labelled(0))
    assert smooth["hard"].item() == pytest.approx(0.397543, rel=1e-5)  # worked out in tests/test_losses.py
    assert torch.equal(smooth["soft"], plain["soft"])
    assert torch.equal(smooth["peer_soft"], plain["peer_soft"])
    assert DML(1.0, 0.2)(unsure, certain, labelled(0))["peer_hard"].item() == pytest.approx(0.397543, rel=1e-5)


@pytest.fixture
def mutual(tiny_net):
    """A student, and a method whose peer is another network like it."""
    student, method = tiny_net(seed=1), DML()
    method.setup(pair(student)._replace(new_student=lambda: tiny_net(seed=2)))
    return student, method


BATCH = Batch.of(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6))


@pytest.mark.parametrize("names", [("hard", "soft"), ("peer_hard", "peer_soft")])
def test_gradients_of_each_network_come_from_its_own_terms(mutual, names):
    student, method = mutual
    terms = method.step(student, None, BATCH).terms
    sum(terms[name] for name in names).backward()
    own, other = (student, method.peer) if names[0] == "hard" else (method.peer, student)
    assert all(p.grad.abs().max() > 0 for p in own.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in other.parameters())


def test_networks_differ_and_see_the_same_images(mutual):
    student, method = mutual
    output, terms, _ = method.step(student, None, BATCH)
    peer = method.peer(BATCH.x)
    assert torch.equal(output.logits, student(BATCH.x).logits)
    assert not torch.equal(output.logits, peer.logits)
    assert terms["peer_hard"].item() == pytest.approx(nn.functional.cross_entropy(peer.logits, BATCH.y).item())


def test_accuracy_of_the_peer_is_a_monitor(mutual):
    student, method = mutual
    with torch.no_grad():
        y = method.peer(BATCH.x).logits.argmax(dim=1)
    y[:2] = (y[:2] + 1) % 10
    assert method.step(student, None, BATCH._replace(y=y)).monitors == {"peer_acc": tensor(4 / 6)}


def test_peer_is_saved_with_its_buffers_and_the_student_is_what_is_kept(mutual):
    student, method = mutual
    assert {f"peer.{name}" for name in student.state_dict()} == method.state_dict().keys()
    assert "peer.stage.1.running_mean" in method.state_dict()
    assert method.inference_net(student) is student


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": 0}, r"T must be in \[0.001, 1e6\], got 0"),
        ({"label_smoothing": -1}, r"label_smoothing must be in \[0, 1\], got -1"),
    ],
)
def test_knobs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DML(**changes)
