import re

import pytest
import torch
from torch import tensor

from kd.methods.reviewkd import Fusion, ReviewKD, hcl_loss
from kd.models.output import Output
from tests.common import pair_of


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(*shapes, batch=3, width=6, preacts=False, seed=0):
    features = tuple(noise(batch, *shape, seed=seed) for shape in shapes)
    before = tuple(feature - 1 for feature in features) if preacts else ()
    return Output(torch.zeros(batch, 10), features, noise(batch, width, seed=seed + 1), before)


def built(student, teacher, **knobs):
    torch.manual_seed(0)
    method = ReviewKD(**knobs)
    method.setup(pair_of(student, teacher))
    method.progress = 0.9
    return method


def test_hcl_loss_by_hand():
    # 2x2 maps: all errors are 1 and their mean is 0, so (1 * 1 + 1/2 * 0) / 1.5. Of one place: 3^2 = 9.
    student = tensor([[[[1.0, -1.0], [-1.0, 1.0]]]])
    assert hcl_loss(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(2 / 3)
    assert hcl_loss(torch.full((2, 3, 1, 1), 3.0), torch.zeros(2, 3, 1, 1)).item() == 9


def test_hcl_loss_like_the_papers_formula_part_by_part():
    student, teacher = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    total, error = 0.0, (student - teacher).double().numpy()
    for parts, weight in ((8, 1), (4, 1 / 2), (2, 1 / 4), (1, 1 / 8)):
        side = 8 // parts
        means = [
            error[:, :, side * i : side * (i + 1), side * j : side * (j + 1)].mean(axis=(2, 3))
            for i in range(parts)
            for j in range(parts)
        ]
        total += weight * sum((mean**2).mean() for mean in means) / len(means)
    assert hcl_loss(student, teacher).item() == pytest.approx(total / 1.875, rel=1e-5)
    assert hcl_loss(student, student).item() == 0


def test_fusion_like_the_papers_formula_place_by_place():
    torch.manual_seed(0)
    fusion = Fusion(5, 4, 7, deeper=True).double().eval()
    maps, deeper = noise(2, 5, 4, 4).double(), noise(2, 4, 2, 2, seed=1).double()
    out, made = fusion(maps, deeper, (4, 4))
    weight, bias = fusion.attention[0].weight[:, :, 0, 0], fusion.attention[0].bias
    for b, i, j in ((0, 0, 0), (1, 3, 2), (1, 0, 3)):
        mine = fusion.enter[0].weight[:, :, 0, 0] @ maps[b, :, i, j] / (1 + fusion.enter[1].eps) ** 0.5
        other = deeper[b, :, i // 2, j // 2]
        attention = 1 / (1 + torch.exp(-(weight @ torch.cat([mine, other]) + bias)))
        torch.testing.assert_close(made[b, :, i, j], attention[0] * mine + attention[1] * other)
    assert out.shape == (2, 7, 4, 4)
    assert fusion(maps, deeper, (8, 8))[0].shape == (2, 7, 8, 8)


def test_every_map_learns_from_shallower_ones_of_the_teacher(labelled):
    student, teacher = output((4, 8, 8), (5, 4, 4)), output((7, 8, 8), (9, 4, 4), width=11, seed=2)
    deepest = student.features[-1].requires_grad_()
    method = built(student, teacher)
    made = None
    for fusion, maps, side in zip(
        method.fusions, (student.embedding[..., None, None], deepest, student.features[0]), (1, 4, 8), strict=True
    ):
        matched, made = fusion(maps, made, (side, side))
    matched.square().sum().backward()  # the shallowest alone
    assert deepest.grad.abs().max() > 0
    assert list(method(student, teacher, labelled(0, 1, 2))) == ["hard", "reviewkd", "soft"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([(4, 8, 8), (5, 4, 4)], [(3, 16, 16), (6, 8, 8), (7, 4, 4)]),
        ([(4, 8, 8)], [(3, 5, 5), (7, 3, 3)]),
        ([(4, 8, 4), (6, 4, 2)], [(3, 4, 8), (6, 16, 1)]),
        ([(6, 1, 1)], [(8, 1, 1)]),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_maps_of_any_shape_and_number_are_matched(ours, theirs, batch, labelled):
    student, teacher = output(*ours, batch=batch), output(*theirs, batch=batch, width=9, seed=3)
    method = built(student, teacher)
    loss = method(student, teacher, labelled(*[0] * batch))["reviewkd"]
    loss.backward()
    assert len(method.fusions) == 1 + min(len(ours), len(theirs))
    assert loss > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_teacher_is_matched_before_its_activation_where_it_shows_that(labelled):
    student, shown = output((4, 4, 4)), output((5, 4, 4), preacts=True)
    method = built(student, shown).eval()
    hidden = shown._replace(features=shown.preacts, preacts=())
    same = [method(student, teacher, labelled(0, 1, 2))["reviewkd"] for teacher in (shown, hidden)]
    assert same[0] == same[1]
    assert same[0] != method(student, shown._replace(preacts=()), labelled(0, 1, 2))["reviewkd"]


def test_term_is_the_weighted_sum_of_the_losses_of_all_levels(labelled):
    student, teacher = output((4, 8, 8), (5, 4, 4)), output((7, 8, 8), (9, 4, 4), width=11, seed=2)
    method = built(student, teacher, beta=3.0, warmup=0.0).eval()
    made, losses = None, []
    ours = (student.embedding[..., None, None], *student.features[::-1])
    theirs = (teacher.embedding[..., None, None], *teacher.features[::-1])
    for fusion, maps, target in zip(method.fusions, ours, theirs, strict=True):
        matched, made = fusion(maps, made, tuple(target.shape[2:]))
        losses.append(hcl_loss(matched, target).item())
    term = method(student, teacher, labelled(0, 1, 2))["reviewkd"]
    assert term.item() == pytest.approx(3 * sum(losses), rel=1e-5)
    assert len(losses) == 3


def test_warmup_raises_the_term_alone(labelled):
    student = output((4, 4, 4))
    method = built(student, student, warmup=0.2, beta=2.0).eval()
    curve = []
    for method.progress in (0.0, 0.05, 0.2, 0.9):
        curve.append(method(student, student, labelled(0, 1, 2)))
    full = curve[-1]["reviewkd"].item()
    assert [terms["reviewkd"].item() / full for terms in curve] == pytest.approx([0, 0.25, 1, 1])
    assert len({terms["hard"].item() for terms in curve}) == 1


def test_network_without_maps_is_refused():
    with pytest.raises(ValueError, match=re.escape("the student has no such maps; name its stages")):
        built(output(), output((4, 4, 4)))
