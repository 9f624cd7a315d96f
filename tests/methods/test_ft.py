import math

import numpy as np
import pytest
import torch
from torch import nn, tensor

from kd.methods.ft import FT, ft_loss
from kd.models.output import Output
from kd.training.optim import parameter_groups
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def output(*maps):
    return Output(torch.zeros(len(maps[0]), 2), maps, torch.empty(0))


def built(student, teacher, **knobs):
    torch.manual_seed(0)
    method = FT(**knobs)
    method.setup(pair_of(student, teacher))
    return method


STUDENT = output(noise(3, 2, 8, 8), noise(3, 3, 4, 4, seed=1))
TEACHER = output(noise(3, 5, 8, 8, seed=2), noise(3, 6, 4, 4, seed=3))


def test_ft_loss_by_hand():
    """Factors (3, 4) / 5 and (0, 7) / 7: (0.6 + 0.2) / 2."""
    assert ft_loss(tensor([[[[3.0]], [[4.0]]]]), tensor([[[[0.0]], [[7.0]]]])).item() == pytest.approx(0.4)


def test_ft_loss_like_the_formula_image_by_image():
    student, teacher = noise(3, 4, 2, 5), noise(3, 4, 2, 5, seed=1)
    total = 0.0
    for a, b in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        total += np.abs(a / np.sqrt((a * a).sum()) - b / np.sqrt((b * b).sum())).sum()
    assert ft_loss(student, teacher).item() == pytest.approx(total / student.numel(), rel=1e-6)


def test_ft_loss_sees_no_scale_and_is_constant_in_the_batch():
    student, teacher = noise(3, 4, 2, 5), noise(3, 4, 2, 5, seed=1)
    loss = ft_loss(student, teacher)
    torch.testing.assert_close(ft_loss(3 * student, 0.1 * teacher), loss)
    torch.testing.assert_close(ft_loss(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1)), loss)
    torch.testing.assert_close(ft_loss(student.repeat(1, 1, 2, 2), teacher.repeat(1, 1, 2, 2)), loss / 2)
    assert ft_loss(student, student).item() == 0


def test_ft_loss_tells_signs_apart():
    """In RepDistiller factors are squared first."""
    factor = noise(3, 4, 2, 5)
    assert ft_loss(factor, -factor) > 0.1


def test_factors_are_of_the_deepest_maps_and_of_one_size(labelled):
    large = STUDENT._replace(features=(noise(3, 3, 8, 8),))
    method = built(large, TEACHER, beta=0.5, rate=0.5)
    assert [layer.out_channels for layer in method.translator[::2]] == [3, 3, 3]
    assert [layer.out_channels for layer in method.encoder[::2]] == [6, 3, 3]
    assert [layer.out_channels for layer in method.decoder[::2]] == [3, 6, 6]
    method.progress = 0.5
    terms = method(large, TEACHER, labelled(0, 1, 0))
    ours = nn.functional.avg_pool2d(method.translator(large.features[0]), 2)
    torch.testing.assert_close(terms["ft"], 0.5 * ft_loss(ours, method.encoder(TEACHER.features[1])))


def test_factor_has_one_channel_at_least():
    assert built(STUDENT, TEACHER, rate=0.01).encoder[2].out_channels == 1


def test_paraphraser_learns_first_and_the_factors_then(labelled):
    method = built(STUDENT, TEACHER, warmup=0.25)
    for method.progress in (0.0, 0.24, 0.25, 0.9):
        terms = method(STUDENT, TEACHER, labelled(0, 1, 0))
        first = method.progress < 0.25
        assert list(terms) == ["hard", "ft", "paraphrase", "soft"]
        assert [terms[name].item() > 0 for name in ("ft", "paraphrase")] == [not first, first]
        assert terms["hard"].item() == pytest.approx(math.log(2))
        method.zero_grad()
        sum(terms.values()).backward()  # also what rests has gradients, of 0
        for part, learns in ((method.encoder, first), (method.decoder, first), (method.translator, not first)):
            assert all((p.grad.abs().max() > 0) == learns for p in part.parameters())


def test_paraphraser_stays_as_it_was_when_its_stage_ended(labelled):
    """Momentum and weight decay go on to move the encoder, and the factors do not follow."""
    method = built(STUDENT, TEACHER, warmup=0.5)
    optimizer = torch.optim.SGD(parameter_groups(method), lr=0.1, momentum=0.9, weight_decay=0.1)
    errors, kept = [], []
    for step in range(40):
        method.progress = step / 40
        terms = method(STUDENT, TEACHER, labelled(0, 1, 0))
        errors.append(nn.functional.mse_loss(method.decoder(method.encoder(TEACHER.features[1])), TEACHER.features[1]))
        kept.append(method.kept[0].weight.clone())
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert errors[19] < errors[0]
    assert not torch.equal(kept[18], kept[19])
    assert all(torch.equal(weight, kept[19]) for weight in kept[19:])
    assert not torch.equal(method.encoder[0].weight, kept[-1])
    assert {name for name in method.state_dict() if name.startswith("kept.")}  # for a resumed run


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"warmup": 0}, r"warmup must be in \(0, 1\), got 0"), ({"rate": 0}, r"method.rate must be in \(0, 16\], got 0")],
)
def test_knobs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        FT(**changes)
