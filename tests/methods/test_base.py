import pytest
import torch
from torch import nn, tensor

import kd
from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.methods.base import Method, SoftTargets
from kd.models.output import Output


def output(*rows):
    return Output(tensor(rows), (), torch.empty(0))


def test_method_without_terms_cannot_be_used(labelled):
    with pytest.raises(NotImplementedError):
        Method()(None, None, labelled(0))


def test_ramp_rises_over_the_warmup_and_stays():
    method = Method()
    factors = []
    for method.progress in (0.0, 0.1, 0.25, 0.9):
        factors.append(method.ramp(0.25))
    assert factors == [0.0, 0.4, 1.0, 1.0]
    method.progress = 0.0
    assert method.ramp(0.0) == 1


@pytest.mark.parametrize(
    ("reads", "own_images", "suffice"),
    [
        ({"logits"}, False, True),
        ({"logits", "embedding"}, False, False),
        ({"logits"}, True, False),
        (set(), False, True),
    ],
)
def test_stored_logits_suffice_where_nothing_else_is_read_of_the_batchs_images(reads, own_images, suffice):
    class Some(Method):
        pass

    Some.reads, Some.own_images = frozenset(reads), own_images
    assert Some().stored_logits_suffice == suffice


def test_step_without_a_teacher_names_the_method(labelled):
    class Needy(Method):
        pass

    with pytest.raises(ValueError, match=r"^Needy needs a teacher$"):
        Needy().step(nn.Identity(), None, labelled(0))


def test_fields_that_a_method_does_not_name_are_missing_with_every_teacher(tiny_net, noise):
    """Stored logits do not have them: a method that forgets to name one would learn from something else on a CPU."""
    data = DataModule(noise(), 0, 0, Augment(0, False, 0), batch_size=4, seed=0)
    batch, seen = next(iter(data.train_dataloader())), []

    class Forgetful(Method):
        def forward(self, student, teacher, batch):
            seen.append(teacher)
            return {"embedding": teacher.embedding.square().mean()}

    class Named(Forgetful):
        reads = frozenset({"logits", "embedding"})

    for method in (Forgetful(), Named()):
        step = method.step(tiny_net(), kd.freeze(tiny_net()), batch)
        assert step.terms["embedding"].isfinite() == ("embedding" in method.reads)
        assert torch.isfinite(seen[-1].logits).all()


def test_soft_targets_weight_a_term_of_their_own(labelled):
    class Own(SoftTargets):
        term_name = "own"

        def term(self, student, teacher, batch):
            return tensor(3.0)

    terms = Own(2.0, 0.25, 0.5)(output([0.0, 0.0]), output([0.0, 0.0]), labelled(0))
    assert list(terms) == ["hard", "own", "soft"]
    assert terms["own"] == 1.5
