import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import tensor

from kd.data.augment import Augment
from kd.data.batch import Batch
from kd.data.module import DataModule
from kd.methods.crd import CRD
from kd.models.output import Output
from kd.runs.results import read
from kd.teachers.frozen import freeze
from kd.training.modules import Distiller
from kd.training.optim import one_cycle
from tests.common import QUICK, pair, pair_of

LABELS = tensor([0, 1, -1, 2, 0, 1, 2, -1, 0, 0])


def outputs(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return Output(torch.randn(count, 3, generator=generator), (), torch.randn(count, width, generator=generator))


def batch_of(*index):
    return Batch(torch.zeros(len(index), 3, 4, 4), LABELS[list(index)], tensor(index), torch.zeros(len(index)).long())


def built(labels=LABELS, seed=0, **knobs):
    torch.manual_seed(seed)
    method = CRD(**{"K": 4, "dim": 5, **knobs})
    method.setup(pair_of(outputs(2, 6, 0), outputs(2, 7, 1))._replace(labels=labels))
    return method


STUDENT, TEACHER, BATCH = outputs(3, 6, 2), outputs(3, 7, 3), batch_of(3, 0, 5)


def test_crd_term_by_hand():
    """Two images of two classes, so that each has the other as its negative; embeddings of one number, 1 or -1."""
    method = CRD(K=1, dim=1, tau=0.5, beta=0.5)
    here = Output(torch.zeros(2, 2), (), tensor([[2.0], [-3.0]]))
    method.setup(pair_of(here, here)._replace(labels=tensor([0, 1])))
    for layer in (method.student_layer, method.teacher_layer):
        torch.nn.init.constant_(layer.weight, 1.0)
        torch.nn.init.zeros_(layer.bias)
    for bank in (method.student_bank, method.teacher_bank):
        bank.copy_(tensor([[1.0], [-1.0]]))
    nothing = tensor([0, 0])
    terms = method(here, here, Batch(torch.zeros(2, 3, 4, 4), tensor([0, 1]), tensor([0, 1]), nothing))
    # Scores are 2 for each positive and -2 for each negative; Z / N = (e^2 + e^-2) / 2 = cosh 2, K = 1.
    # ln(1 + cosh 2 / e^2) + ln(1 + e^-2 / cosh 2) = 0.411552 + 0.035340, twice, times beta.
    assert terms["crd"].item() == pytest.approx(0.446892, rel=1e-5)
    assert method.student_log_mean.item() == pytest.approx(math.log(math.cosh(2)), rel=1e-6)


def reference(method, student, teacher, batch):
    """The same image by image, from the paper's formula, and what the banks become."""
    negatives = method._draw(batch.y)
    n = len(method.student_bank)
    loss, banks, constants = 0.0, [], []
    for layer, ours, other, own in (
        (method.student_layer, student.embedding, method.teacher_bank, method.student_bank),
        (method.teacher_layer, teacher.embedding, method.student_bank, method.teacher_bank),
    ):
        vectors = [layer(embedding) / layer(embedding).norm() for embedding in ours]
        exp = [
            [torch.exp(vector @ other[j] / method.tau) for j in [int(i), *row.tolist()]]
            for vector, i, row in zip(vectors, batch.index, negatives, strict=True)
        ]
        z = n * sum(sum(row) for row in exp).item() / sum(len(row) for row in exp)
        constants.append(z)
        noise = negatives.shape[1] / n
        for positive, *rest in exp:
            loss = loss - torch.log(positive / z / (positive / z + noise)) / len(batch.y)
            loss = loss - sum(torch.log(noise / (value / z + noise)) for value in rest) / len(batch.y)
        bank = own.clone()
        for vector, i in zip(vectors, batch.index, strict=True):
            row = method.momentum * bank[i] + (1 - method.momentum) * vector.detach()
            bank[i] = row / row.norm()
        banks.append(bank)
    return loss, banks, constants


def test_crd_term_like_the_papers_formula_image_by_image():
    fast, slow = built(tau=0.3, momentum=0.6), built(tau=0.3, momentum=0.6)
    torch.manual_seed(1)
    expected, banks, constants = reference(slow, STUDENT, TEACHER, BATCH)
    expected.backward()
    torch.manual_seed(1)
    loss = fast.term(STUDENT, TEACHER, BATCH)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    torch.testing.assert_close([fast.student_bank, fast.teacher_bank], banks)
    found = [math.exp(mean) * len(LABELS) for mean in (fast.student_log_mean, fast.teacher_log_mean)]
    assert found == pytest.approx(constants, rel=1e-5)


def test_terms_are_weighted(labelled):
    method = built(T=2.0, alpha=0.25, beta=0.5)
    torch.manual_seed(1)
    expected = 0.5 * copy.deepcopy(method).term(STUDENT, TEACHER, BATCH)
    torch.manual_seed(1)
    terms = method(STUDENT, TEACHER, BATCH)
    assert list(terms) == ["hard", "crd", "soft"]
    assert torch.equal(terms["crd"], expected)
    assert terms["hard"].item() == pytest.approx(0.25 * F.cross_entropy(STUDENT.logits, BATCH.y).item())


def test_banks_change_in_the_rows_of_the_batch_only():
    method = built()
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    method.term(STUDENT, TEACHER, BATCH)
    for name in ("student_bank", "teacher_bank"):
        changed = (method.get_buffer(name) != before[name]).any(dim=1)
        assert changed.nonzero()[:, 0].tolist() == [0, 3, 5]
        torch.testing.assert_close(method.get_buffer(name).norm(dim=1), torch.ones(10))


def test_banks_keep_what_every_rank_saw(monkeypatch):
    """Another rank has seen images 1 and 6, and their embeddings point the other way."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)

    def all_gather(parts, part):
        parts[0].copy_(part)
        parts[1].copy_(-part if part.is_floating_point() else tensor([1, 6]))

    monkeypatch.setattr("torch.distributed.all_gather", all_gather)
    method = built(momentum=0.0)
    method.term(outputs(2, 6, 2), outputs(2, 7, 3), batch_of(3, 0))
    for bank in (method.student_bank, method.teacher_bank):
        torch.testing.assert_close(bank[[1, 6]], -bank[[3, 0]])


def test_constants_are_those_of_the_first_batch():
    method = built()
    assert method.student_log_mean.isnan()
    method.term(STUDENT, TEACHER, BATCH)
    first = method.student_log_mean.item(), method.teacher_log_mean.item()
    method.term(outputs(3, 6, 8), outputs(3, 7, 9), BATCH)
    assert (method.student_log_mean.item(), method.teacher_log_mean.item()) == first


def test_negatives_are_training_images_of_other_classes_equally_often():
    torch.manual_seed(0)
    method = built(K=4)
    assert method.negatives == 4
    drawn = torch.cat([method._draw(tensor([0, 1, 2])) for _ in range(3000)], dim=1)
    for label in range(3):
        others = ((LABELS >= 0) & (label != LABELS)).nonzero()[:, 0]
        found, counts = drawn[label].unique(return_counts=True)
        assert torch.equal(found, others)
        assert counts.double() / 12_000 == pytest.approx(torch.full((len(others),), 1 / len(others)), abs=0.02)


def test_negatives_are_no_more_than_there_are_images_of_other_classes():
    assert built(K=16384).negatives == 4  # of 8 training images, 4 are of the largest class
    with pytest.raises(ValueError, match=r"^crd needs training images of at least two classes; .*labels=...\)$"):
        built(tensor([1, 1, -1]))


def test_images_without_an_index_are_refused():
    with pytest.raises(ValueError, match=r"crd needs to know each image by Batch.index, and it is -1"):
        built().term(STUDENT, TEACHER, Batch.of(BATCH.x, BATCH.y))


def test_saved_state_gives_the_same_next_step():
    method = built()
    method.term(STUDENT, TEACHER, BATCH)
    resumed = built(seed=7)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    after, again = outputs(3, 6, 8), outputs(3, 7, 9)
    results = []
    for one in (method, resumed):
        torch.manual_seed(3)
        loss = one.term(after, again, batch_of(6, 3, 8))
        loss.backward()
        results.append([loss.detach(), *one.state_dict().values(), *(p.grad for p in one.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_state_from_before_the_first_batch_begins_anew():
    """As a loop of one's own loads it for the next seed, and Lightning's search for a learning rate."""
    method = built()
    before = copy.deepcopy(method.state_dict())
    losses = []
    for _ in range(2):
        method.load_state_dict(before)
        torch.manual_seed(0)
        losses.append(method.term(STUDENT, TEACHER, BATCH).item())
    assert math.isfinite(losses[0])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_in_half_precision_are_compared_in_single(dtype):
    exact, coarse = built(), built()
    torch.manual_seed(1)
    expected = exact.term(STUDENT, TEACHER, BATCH)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=dtype):
        loss = coarse.term(STUDENT, TEACHER._replace(embedding=TEACHER.embedding.to(dtype)), BATCH)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)


def test_evaluation_does_not_touch_the_banks(tiny_net, noise, trainer):
    images = noise()
    data = DataModule(images, 0.25, 0, Augment(1, True, 0), batch_size=10, seed=3)
    labels = images.train_y.clone()
    labels[data.val_index] = -1
    student, teacher = tiny_net(), tiny_net(width=6, seed=1)
    method = CRD(dim=5)
    method.setup(pair(student, teacher, labels=labels))
    before = method.student_bank.clone()
    recipe = (partial(torch.optim.SGD, lr=0.01), partial(one_cycle, warmup=0.25))
    module, lightning = Distiller(student, 10, *recipe, method, freeze(teacher)), trainer(max_epochs=1)
    lightning.fit(module, data)
    kept = (method.student_bank == before).all(dim=1)
    assert torch.equal(kept, labels == -1)
    state = {name: buffer.clone() for name, buffer in method.named_buffers()}
    lightning.validate(module, data, verbose=False)
    lightning.test(module, data, verbose=False)
    assert all(torch.equal(buffer, state[name]) for name, buffer in method.named_buffers())


def test_runs_side_by_side_are_the_same_as_alone(run, tmp_path, cohorts):
    shared = ("-m", *QUICK, "method=crd", "epochs=1", "seed=0,1", "data.order_seed=7")
    assert run(*shared, "hydra.sweep.dir=alone")[0] == 0
    assert run(*shared, "hydra/launcher=cohort", "hydra.sweep.dir=together")[0] == 0
    assert cohorts == [2]
    timing = {"date": "", "train_seconds": None, "images_per_second": None, "command": "", "variant": ""}
    for job in "01":
        alone, together = (tmp_path / kind / job for kind in ("alone", "together"))
        left, right = (load_file(where / "student.safetensors") for where in (alone, together))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert replace(read(alone / "result.json"), **timing) == replace(read(together / "result.json"), **timing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -1}, r"beta must be in \[0, inf\), got -1"),
        ({"K": 0}, r"K must be a whole number in \[1, inf\), got 0"),
        ({"K": 1.5}, r"K must be a whole number in \[1, inf\), got 1.5"),
        ({"tau": 0}, r"tau must be in \(0, inf\), got 0"),
        ({"momentum": 1}, r"method\.momentum must be in \[0, 1\), got 1"),
        ({"dim": 0}, r"method\.dim must be a whole number in \[1, inf\), got 0"),
    ],
)
def test_knobs_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        CRD(**changes)
