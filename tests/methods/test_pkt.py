import math

import pytest
import torch
from torch import tensor

from kd.methods.pkt import PKT, pkt_loss
from kd.models.output import Output


def embeddings(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = embeddings(5, 3), embeddings(5, 7, seed=1)


def test_pkt_loss_by_hand():
    # The student's two embeddings have cosine 1: both probabilities are 1/2. The teacher's have cosine 0: (1 + 1) / 2
    # and (0 + 1) / 2 make 2/3 and 1/3. Two rows of 2/3 ln 4/3 + 1/3 ln 2/3 = 0.056633, over B^2 = 4.
    student, teacher = tensor([[1.0], [4.0]]), tensor([[0.0, 2.0], [3.0, 0.0]])
    assert pkt_loss(student, teacher).item() == pytest.approx(0.028317, rel=1e-4)


def reference(student, teacher):
    """Image by image in float64."""
    total = 0.0
    for i in range(len(student)):
        rows = []
        for x in (student.double().tolist(), teacher.double().tolist()):
            cosines = [
                sum(a * b for a, b in zip(x[i], other, strict=True)) / (math.hypot(*x[i]) * math.hypot(*other))
                for other in x
            ]
            rows.append([(cosine + 1) / sum(c + 1 for c in cosines) for cosine in cosines])
        total += sum(q * math.log(q / p) for p, q in zip(*rows, strict=True))
    return total / len(student) ** 2


def test_pkt_loss_like_the_papers_formula_image_by_image():
    assert pkt_loss(STUDENT, TEACHER).item() == pytest.approx(reference(STUDENT, TEACHER), rel=1e-4)


def test_pkt_loss_sees_nothing_but_directions():
    order = tensor([3, 0, 4, 1, 2])
    expected, turn = pkt_loss(STUDENT, TEACHER), torch.linalg.qr(embeddings(3, 3, seed=2)).Q
    torch.testing.assert_close(pkt_loss(STUDENT[order], TEACHER[order]), expected)
    torch.testing.assert_close(pkt_loss(3 * STUDENT @ turn, TEACHER), expected)
    assert pkt_loss(STUDENT, STUDENT).item() == 0
    assert pkt_loss(STUDENT[:1], TEACHER[:1]).item() == 0


@pytest.mark.parametrize("student", [torch.zeros(3, 2), torch.ones(3, 2), tensor([[1.0, 2.0], [-1.0, -2.0], [0, 0]])])
def test_pkt_loss_of_degenerate_embeddings_has_a_finite_gradient(student):
    """Zeros, equal ones and opposite ones, whose probability is 0."""
    student = student.clone().requires_grad_()
    loss = pkt_loss(student, embeddings(3, 4))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_pkt_loss_falls_as_1_over_the_batch_and_rescaling_undoes_it(labelled):
    student, teacher = (embeddings(256, 8, seed=seed) for seed in (0, 1))
    plain = [pkt_loss(student[:count], teacher[:count]).item() for count in (64, 256)]
    assert plain[0] / plain[1] == pytest.approx(4, rel=0.1)
    outputs = [Output(torch.zeros(256, 2), (), embedding) for embedding in (student, teacher)]
    for rescale, factor in ((True, 4), (False, 1)):
        terms = PKT(beta=2.0, rescale=rescale)(*outputs, labelled(*[0] * 256))
        assert terms["pkt"].item() == pytest.approx(2 * factor * plain[1], rel=1e-5)
        assert list(terms) == ["hard", "pkt", "soft"]


def test_pkt_loss_changes_no_input():
    student, teacher = torch.zeros(2, 3), TEACHER[:2].clone()
    pkt_loss(student, teacher)
    assert torch.equal(student, torch.zeros(2, 3))
    assert torch.equal(teacher, TEACHER[:2])


def test_rescale_is_a_switch():
    with pytest.raises(ValueError, match=r"^method.rescale must be true or false, got 1$"):
        PKT(rescale=1)
