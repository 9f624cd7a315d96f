"""The terms of every method in conf/method: gradients, numbers at the edge, precision, order, what they leave alone."""

import copy

import pytest
import torch
from torch import Tensor, nn

from kd.models.cnn import CNN
from tests.methods.every import (
    PROGRESS,
    Changed,
    Leaves,
    Watched,
    case,
    cnn,
    each_method,
    knobs_of,
    networks,
    scales,
)


def assert_finite(found, progress=PROGRESS):
    """Check that terms, and gradients of all that is trained, are finite, early and late in training."""
    for share in progress:
        for _, parameter in found.learned:
            parameter.grad = None
        step = found.step(share)
        values = {name: term.item() for name, term in step.terms.items()}
        assert all(torch.isfinite(term) for term in step.terms.values()), values
        assert {(term.dtype, term.shape) for term in step.terms.values()} == {(torch.float32, ())}
        step.loss.backward()
        bad = [name for name, p in found.learned if p.grad is not None and not p.grad.isfinite().all()]
        assert not bad, f"gradients at progress {share}: {bad}"


def set_maps(net: CNN, value: float | None) -> CNN:
    """Make all maps of a network constant, of that value before the activation; None leaves them as they are."""
    if value is not None:
        for stage in net.stages:
            nn.init.zeros_(stage[4].weight)
            nn.init.constant_(stage[4].bias, value)
    return net


def set_gap(net: CNN, x: Tensor, gap: float) -> CNN:
    """Scale the logits so that the two highest of every image are `gap` apart, or further."""
    with torch.no_grad():
        nn.init.normal_(net.classifier.weight)
        top = copy.deepcopy(net).eval()(x).logits.topk(2, dim=1).values
        factor = gap / (top[:, 0] - top[:, 1]).min()
        net.classifier.weight *= factor
        net.classifier.bias *= factor
    return net


APPROXIMATE = {"ft": 0.02, "kdsvd": 0.02}
"""How far a slope may be from the gradient: ft has kinks, and kdsvd damps what would be infinite, see its page."""
NOT_FOR_THE_STUDENT = {"paraphrase", "peer_hard", "peer_soft"}
"""Terms that teach a layer of the method's own, or a peer."""


@each_method
def test_every_term_teaches_the_student(name):
    """Also those beside the labels, which alone would give all its parameters a gradient."""
    found = case(name)
    leaves = Leaves(found.student.eval()(found.batch.x))
    there, reached = set(), set()
    for share in PROGRESS:
        for key, term in found.step(share, student=leaves).terms.items():
            if term == 0:
                continue  # its stage, or its weight, is 0
            there.add(key)
            parts = torch.autograd.grad(term, list(leaves.parameters()), retain_graph=True, allow_unused=True)
            if any(part is not None and part.abs().max() > 0 for part in parts):
                reached.add(key)
    assert there - reached <= NOT_FOR_THE_STUDENT
    assert reached


@each_method
def test_gradient_reaches_all_that_is_trained_and_none_the_teacher(name):
    """Some stages of a method rest at times, with gradients that are 0 but there: data-parallel training needs them."""
    found = case(name)
    state = {} if found.teacher is None else copy.deepcopy(found.teacher.state_dict())
    magnitude = {}
    for share in (0.01, 0.3, 0.6):
        for _, parameter in found.learned:
            parameter.grad = None
        found.step(share).loss.backward()
        missing = [key for key, parameter in found.learned if parameter.grad is None]
        assert not missing, f"no gradient at progress {share}: {missing}"
        for key, parameter in found.learned:
            magnitude[key] = max(magnitude.get(key, 0.0), parameter.grad.abs().max().item())
    # A bias may cancel, in front of a BatchNorm or between two images; a weight may not, unless its network is kept
    # without it.
    found.student.zero_grad()
    found.method.inference_net(found.student)(found.batch.x).logits.sum().backward()
    idle = {parameter for parameter in found.student.parameters() if parameter.grad is None}
    rests = [key for key, weight in found.learned if weight.ndim > 1 and weight not in idle and not magnitude[key] > 0]
    assert not rests, f"the gradient is 0: {rests}"
    if found.teacher is not None:
        assert not found.teacher.training
        assert all(torch.equal(tensor, state[key]) for key, tensor in found.teacher.state_dict().items())
        assert all(parameter.grad is None for parameter in found.teacher.parameters())


@each_method
def test_inputs_are_not_changed_in_place(name):
    found = case(name)
    student, copies = Watched(found.student), [part.clone() for part in found.batch]
    teacher = None if found.teacher is None else Watched(found.teacher.eval().requires_grad_(False))
    versions = [part._version for part in found.batch]

    @torch.no_grad()
    def taught(batch):
        return teacher(batch.x)

    found.step(student=student, taught=None if teacher is None else taught).loss.backward()
    assert [part._version for part in found.batch] == versions
    assert all(torch.equal(part, before) for part, before in zip(found.batch, copies, strict=True))
    for who, net in (("student", student), ("teacher", teacher)):
        for part, tensor, before, version in net.seen if net is not None else ():
            assert tensor._version == version, f"{who}'s {part}"
            assert torch.equal(tensor, before), f"{who}'s {part}"


@each_method
@pytest.mark.parametrize("gap", [120.0, 1e4])
def test_terms_are_finite_for_extreme_logits(name, gap):
    """At T = 1, where the method has a temperature; both networks are sure, and of different classes."""
    settings = {"T": 1.0} if "T" in knobs_of(name) else {}
    scales(name)  # which draws random numbers the first time
    torch.manual_seed(2)
    x = torch.randn(8, 3, 8, 8)  # as `case` shows them
    torch.manual_seed(3)
    student, teacher = (set_gap(net, x, gap) for net in networks(name))
    assert_finite(case(name, student, teacher, **settings))
    assert_finite(case(name, None, teacher, **settings))


@each_method
@pytest.mark.parametrize(
    ("ours", "theirs"), [(0.7, None), (None, 0.7), (0.7, 0.7), (-1.0, None), (None, -1.0), (-1.0, -1.0), (0.0, 0.0)]
)
def test_terms_are_finite_for_constant_maps(name, ours, theirs):
    """Below 0 the maps after the activation are 0, with all that follows from them equal for every image."""
    torch.manual_seed(3)
    student, teacher = networks(name)
    assert_finite(case(name, set_maps(student, ours), set_maps(teacher, theirs)))


@each_method
@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("theirs", [None, -1.0])
def test_gradients_are_finite_for_constant_outputs(name, value, theirs):
    """With respect to the student's outputs themselves: a ReLU before them would hide what is not a number."""
    student, teacher = networks(name)
    found = case(name, student, set_maps(teacher, theirs))
    leaves = Leaves(student(found.batch.x), value)
    for share in PROGRESS:
        leaves.zero_grad()
        found.step(share, student=leaves).loss.backward()
        bad = [part for part, leaf in leaves.parts.items() if leaf.grad is not None and not leaf.grad.isfinite().all()]
        assert not bad, f"gradients at progress {share}: {bad}"


@each_method
@pytest.mark.parametrize(("images", "classes"), [(1, 10), (2, 10), (8, 2), (1, 2), (8, 100)])
def test_terms_are_finite_for_any_batch_and_number_of_classes(name, images, classes):
    if (name, classes) == ("lskd", 2):
        with pytest.raises(ValueError, match="of 2 classes are constants, of which a student learns nothing"):
            case(name, images=images, classes=classes)
        return
    assert_finite(case(name, images=images, classes=classes))


@each_method
def test_student_like_its_teacher_has_finite_terms(name):
    """Distances of 0, of which a square root has no gradient."""
    torch.manual_seed(3)
    teacher = cnn(2).eval()
    assert_finite(case(name, copy.deepcopy(teacher), teacher))


@each_method
def test_autocast_changes_the_terms_by_rounding_only(name):
    """The same outputs in bf16, by layers and losses under autocast and without."""
    for share in PROGRESS:
        steps = []
        for half in (False, True):
            torch.manual_seed(3)
            student, teacher = networks(name)
            found = case(name, student, teacher.eval())

            def change(tensor, half=half):
                return tensor.bfloat16() if half else tensor.bfloat16().float()

            taught = Changed(teacher.requires_grad_(False), change)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                step = found.step(
                    share,
                    student=Changed(student, change),
                    taught=None if found.teacher is None else lambda batch, taught=taught: taught(batch.x),
                )
            steps.append(step)
            step.loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for _, p in found.learned)
        exact, rounded = (step.terms for step in steps)
        assert exact.keys() == rounded.keys()
        for key, term in rounded.items():
            assert term.dtype == torch.float32, key
            assert term.item() == pytest.approx(exact[key].item(), rel=0.05, abs=0.02), key


@each_method
def test_step_is_deterministic(name):
    results = []
    for _ in range(2):
        found = case(name)
        step = found.step()
        step.loss.backward()
        results.append([*step.terms.values(), *(p.grad for _, p in found.learned if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_method
def test_terms_do_not_depend_on_the_order_of_the_batch(name):
    """Unless random numbers are drawn, which fall to other images then."""
    found = case(name)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    for share in PROGRESS:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        step = found.step(share)
        if not torch.equal(torch.get_rng_state(), before):
            assert name in {"crd", "funmatch", "mlkd"}, f"{name} draws random numbers; if that is meant, name it here"
            return
        moved = found.step(share, batch=type(found.batch)(*(part[order] for part in found.batch)))
        for key, term in step.terms.items():
            assert moved.terms[key].item() == pytest.approx(term.item(), rel=1e-4, abs=1e-5), key


@each_method
def test_gradient_is_the_slope(name, monkeypatch):
    """Of every term, for logits, embedding and maps, along one direction in fp64.

    What a term takes for constant, such as a peer's target, has no gradient, and a term without any is not for the
    student. The student is the wider of the two: what an adapter makes of fewer channels has directions of length 0,
    whose order is arbitrary.
    """
    narrow, wide = scales(name)
    found = case(name, cnn(wide), cnn(narrow))
    student = Leaves(found.student.eval()(found.batch.x)).double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # terms are in fp32, too coarse for differences
    found.method.double()
    if found.teacher is not None:
        found.teacher.double()
    batch = found.batch._replace(x=found.batch.x.double())
    again = found._replace(batch=batch)
    # Constants that the first batch fixes are fixed by it.
    names, compared = list(again.method.step(student, again.taught, batch).terms), 0
    for share in PROGRESS:
        for key in names:
            for part, leaf in student.parts.items():
                student.zero_grad()
                term = again.step(share, student=student).terms[key]
                (gradient,) = torch.autograd.grad(term, leaf, allow_unused=True)
                if gradient is None or not gradient.abs().max() > 0:
                    continue
                torch.manual_seed(5)
                direction = torch.randn_like(leaf) + gradient.sign()
                slope, step = (gradient * direction).sum().item(), 1e-4
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        leaf += sign * step * direction
                        values.append(again.step(share, student=student).terms[key].item())
                        leaf -= sign * step * direction
                exact = 1e-7 if term.dtype == torch.float32 else 1e-11
                rounding = exact * max(abs(value) for value in values) / step
                difference = (values[0] - values[1]) / (2 * step)
                rel = APPROXIMATE.get(name, 1e-4)
                assert difference == pytest.approx(slope, rel=rel, abs=rounding + 1e-7), (key, part, share)
                compared += 1
    assert compared


RANDOM = {"crd", "funmatch"}
"""What they draw, negatives and mixtures, differs with the batch."""
GROWING = {"srd", "skd", "strong_hard", "strong_instance", "strong_batch", "strong_class"}
"""Terms whose size depends on the batch, as their pages say, or on random views."""


@each_method
def test_terms_do_not_depend_on_the_size_of_the_batch(name):
    """The same images twice in one batch: means are as before, and so is what `rescale` brings to a batch of 64."""
    if name in RANDOM:
        pytest.skip("it draws random numbers for each image")
    found = case(name)
    batch = found.batch._replace(**{part: torch.cat([value] * 2) for part, value in found.batch._asdict().items()})
    for share in PROGRESS:
        once, twice = found.step(share).terms, found.step(share, batch=batch).terms
        for key in once.keys() - GROWING:
            assert twice[key].item() == pytest.approx(once[key].item(), rel=1e-3, abs=1e-5), (key, share)
