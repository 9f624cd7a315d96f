import math

import pytest
import torch
from torch import tensor

from kd.data.batch import Batch
from kd.methods.funmatch import FunMatch, mixed
from kd.models.output import Output


def output(*rows):
    return Output(tensor(rows), (), torch.empty(0))


@pytest.mark.parametrize(("T", "soft"), [(1, 0.130812), (2, 0.523248)])
def test_terms_by_hand(labelled, T, soft):
    """As in tests/test_losses.py, whatever the label is."""
    for label in (0, 1):
        terms = FunMatch(T)(output([0.0, 0.0]), output([T * math.log(3), 0.0]), labelled(label))
        assert list(terms) == ["soft"]
        assert terms["soft"].item() == pytest.approx(soft, rel=1e-5)


def unit_images(count):
    """A batch in which image i is 1 at place i and 0 elsewhere, so that a mixture shows what it is made of."""
    x = torch.eye(count).reshape(count, 1, 1, count).expand(-1, 3, -1, -1)
    return Batch(x, torch.arange(count) % 10, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def test_mixture_is_of_two_images_with_the_larger_share_its_labels():
    torch.manual_seed(0)
    count = 400
    batch = mixed(unit_images(count))
    shares = batch.x[:, 0, 0]
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(count))
    assert shares.count_nonzero(dim=1).max() == 2
    own = shares.diagonal()
    assert own.min() >= 0.5
    assert torch.equal(shares.argmax(dim=1), torch.arange(count))
    assert torch.equal(batch.y, torch.arange(count) % 10)
    # The larger of s and 1 - s for s uniform in [0, 1] is uniform in [1/2, 1]; an image mixed with itself has 1.
    apart = own[own < 1]
    assert len(apart) >= count - 10
    assert apart.mean().item() == pytest.approx(0.75, abs=0.025)
    assert apart.std().item() == pytest.approx(0.25 / math.sqrt(3), abs=0.015)
    assert (shares > 0).sum(dim=0).max() == 2  # each is a second image once


def test_mixture_has_a_share_of_its_own_for_each_image_and_batch():
    torch.manual_seed(0)
    first, second = (mixed(unit_images(8)).x for _ in range(2))
    assert len({share.item() for share in first[:, 0, 0].diagonal()}) > 4
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(mixed(unit_images(8)).x, first)


def test_both_networks_see_the_same_mixed_images(tiny_net):
    batch, seen = unit_images(8), []
    student = tiny_net()
    student.register_forward_pre_hook(lambda net, args: seen.append(args[0]))

    def teacher(shown):
        seen.append(shown.x)
        assert torch.equal(shown.y, batch.y)
        assert torch.equal(shown.index, torch.full((8,), -1))  # no stored logits are of these images
        assert torch.equal(shown.view, torch.full((8,), -1))
        return Output(torch.zeros(8, 10), (), torch.empty(0))

    step = FunMatch().step(student, teacher, batch)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], batch.x)
    assert step.output.logits.shape == (8, 10)


def test_logits_that_were_stored_are_not_its_teachers():
    assert not FunMatch().stored_logits_suffice


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixture_keeps_precision_and_layout(dtype):
    x = torch.randn(4, 3, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    shown = mixed(Batch.of(x, torch.arange(4))).x
    assert shown.dtype == dtype
    assert shown.is_contiguous(memory_format=torch.channels_last)


def test_knobs_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"^T must be in \[0.001, 1e6\], got 0$"):
        FunMatch(0)
