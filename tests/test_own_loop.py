"""kd as a library: its public names, its documented examples, distillation in one's own loop."""

import doctest
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

import kd
from kd.losses import hard_loss, soft_loss
from kd.methods.base import Method
from kd.methods.feature import Feature
from kd.methods.logits import Logits
from kd.methods.pld import PLD
from kd.methods.srd import SRD
from kd.models.wrap import wrap
from tests import processes
from tests.common import ROOT


def python(*arguments):
    """Run a Python program with this kd; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_of_kd_loads_no_torch():
    code = (
        "import kd, sys; dir(kd); kd.UserError; kd.__version__; print({'torch', 'lightning', 'numpy'} & {*sys.modules})"
    )
    assert python("-c", code).strip() == "set()"


def test_three_lines_predict_in_a_fresh_interpreter(tmp_path, finished):
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "image.png")
    code = (
        "import kd\n"
        f"student = kd.load({str(finished / 'run')!r})\n"
        f"print(student.predict({str(tmp_path / 'image.png')!r}))\n"
        "import sys\n"
        "print({'lightning', 'torchmetrics', 'torchvision', 'sklearn', 'scipy', 'hydra', 'pyarrow'} & {*sys.modules})"
    )
    prediction, loaded = python("-W", "error", "-c", code).splitlines()
    assert re.fullmatch(r"\[Prediction\(label='\d', probability=0\.\d+\)\]", prediction)
    assert loaded == "set()"  # what training needs is not loaded


@pytest.mark.parametrize("name", kd.__all__)
def test_every_public_name_can_be_used(name):
    assert name in dir(kd)
    assert getattr(kd, name) is not None


def test_public_names_are_the_objects_themselves():
    assert kd.wrap is wrap
    assert kd.Method is Method
    assert kd.losses.soft_loss is soft_loss
    assert re.fullmatch(r"\d+\.\d+.*", kd.__version__)
    with pytest.raises(AttributeError, match="module 'kd' has no attribute 'distil'"):
        kd.distil  # noqa: B018


def test_documented_examples_of_kd_run():
    failures, attempted = doctest.testmod(kd)
    assert (failures, attempted > 8) == (0, True)


def test_example_fine_tunes_a_trained_student(tmp_path, finished):
    done = processes.run(ROOT / "examples" / "fine_tune.py", finished / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"even or odd: (\d+\.\d)% of 517 images that it was not tuned on\n", done.stdout)
    assert float(found[1]) > 60, done.stdout


@pytest.mark.parametrize("name", ["own_loop", "own_trainer"])
def test_example_trains_a_teacher_and_a_student(tmp_path, name):
    done = processes.run(ROOT / "examples" / f"{name}.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    teacher, student = (re.search(rf"{role} (0\.\d+)", done.stdout) for role in ("teacher", "student"))
    assert float(teacher[1]) > 0.6
    assert float(student[1]) > 0.6


def noise(n=6, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


Y = torch.tensor([0, 1, 2, 3, 4, 5])


def test_distill_returns_the_loss_of_the_method(tiny_net):
    student, teacher = tiny_net(seed=1), tiny_net(seed=2).eval()
    lesson = kd.distill(student, kd.freeze(teacher), Logits(T=3, alpha=0.25), example=noise())
    loss = lesson(noise(), Y)
    logits, target = student(noise()).logits, teacher(noise()).logits
    expected = {"hard": 0.25 * hard_loss(logits, Y), "soft": 0.75 * soft_loss(logits, target, 3)}
    torch.testing.assert_close(lesson.terms, {name: term.detach() for name, term in expected.items()})
    torch.testing.assert_close(loss, sum(expected.values()))
    assert not lesson.terms["soft"].requires_grad


def test_distill_takes_images_without_labels(tiny_net):
    """Their part of the labels' loss is 0, and of the teacher's what it is for images with labels."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 8, 8), torch.tensor([1, 2, 3, 4, 5, 6])
    student, teacher = tiny_net(seed=1).eval(), kd.freeze(tiny_net(seed=2))
    lesson = kd.distill(student, teacher, Logits(T=4, alpha=0.3), example=x)
    shares = nn.functional.one_hot(y, 10).float()
    lesson(x, shares)
    whole = lesson.terms
    shares[2:] = 0
    lesson(x, shares)
    part = lesson.terms
    torch.testing.assert_close(part["soft"], whole["soft"])
    lesson(x[:2], y[:2])
    torch.testing.assert_close(part["hard"], lesson.terms["hard"] / 3)
    lesson(x, torch.zeros(6, 10))
    assert lesson.terms["hard"] == 0


def test_distill_trains_student_and_method_and_not_the_teacher(tiny_net):
    student, teacher = tiny_net(width=4, seed=1), tiny_net(width=6, seed=2)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    lesson = kd.distill(student, teacher, Feature(T=4), example=noise())
    adapter = lesson.method.adapters[0].weight
    assert {*map(id, lesson.parameters())} == {*map(id, [*student.parameters(), *lesson.method.parameters()])}
    assert not any("teacher" in name for name in lesson.state_dict())
    optimizer = torch.optim.SGD(lesson.parameters(), lr=0.1)
    first, weights = lesson(noise(), Y), (student.classifier.weight.clone(), adapter.clone())
    for _ in range(20):
        optimizer.zero_grad()
        loss = lesson.train()(noise(), Y)
        loss.backward()
        optimizer.step()
    assert loss < first
    assert not torch.equal(student.classifier.weight, weights[0])
    assert not torch.equal(adapter, weights[1])
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())
    assert not teacher.training


class Curious(Method):
    """A method that returns what it was given as its term."""

    def setup(self, pair):
        self.pair = pair

    def forward(self, student, teacher, batch):
        return {"progress": student.logits.new_tensor(self.progress), "index": batch.index.float().sum()}


def test_distill_passes_progress_and_index_on(tiny_net):
    lesson = kd.distill(tiny_net(), tiny_net(), Curious(), example=noise())
    assert lesson(noise(), Y, progress=0.25, index=Y) == 0.25 + 15
    assert lesson(noise(), Y) == 1 - 6  # warm-ups are over and no index is known


def test_distill_sets_the_method_up_from_both_networks(tiny_net):
    student, teacher, labels = tiny_net(width=3), tiny_net(width=5), torch.arange(9)
    before = {name: t.clone() for name, t in student.state_dict().items()}
    pair = kd.distill(student, teacher, Curious(), noise(), labels, new_student=tiny_net).method.pair
    assert pair.student.features[0].shape == (6, 3, 8, 8)
    assert pair.teacher_output.features[0].shape == (6, 5, 8, 8)
    assert (pair.num_classes, pair.student_net, pair.teacher_net) == (10, student, teacher)
    assert pair.labels is labels
    assert isinstance(pair.new_student(), nn.Module)
    assert student.training
    assert all(torch.equal(t, before[name]) for name, t in student.state_dict().items())


def test_distill_says_what_a_method_lacks(tiny_net):
    pair = kd.distill(tiny_net(), None, Curious(), noise()).method.pair
    assert pair.labels.shape == (0,)
    with pytest.raises(ValueError, match=r"^Curious trains more networks: give kd\.distill their maker as"):
        pair.new_student()
    with pytest.raises(ValueError, match=r"^this method needs a teacher"):
        kd.distill(tiny_net(), None, Feature(), noise())
    with pytest.raises(TypeError, match=r"^Linear returned a Tensor, not a kd\.Output; wrap it with kd\.wrap\(net\)$"):
        kd.distill(tiny_net(), nn.Linear(8, 10), Logits(), noise())


@pytest.mark.parametrize("method", [Logits, SRD, PLD])
@pytest.mark.parametrize("classes", [5, 20])
def test_logits_of_different_numbers_of_classes_are_not_compared(tiny_net, method, classes):
    lesson = kd.distill(tiny_net(), tiny_net(num_classes=classes), method(), noise())
    with pytest.raises(ValueError, match=f"^the teacher has {classes} classes and the student 10: their logits"):
        lesson(noise(), Y)


def test_method_of_ones_own_may_take_some_of_the_teachers_classes(tiny_net):
    class First(Method):
        def forward(self, student, teacher, batch):
            return {"soft": kd.losses.soft_loss(student.logits, teacher.logits[:, :10], 1.0)}

    assert kd.distill(tiny_net(), tiny_net(num_classes=20), First(), noise())(noise(), Y).isfinite()


def test_distill_gives_the_network_to_keep(tiny_net):
    class Behind(Logits):
        def inference_net(self, student):
            return nn.Sequential(student)

    student = tiny_net()
    assert kd.distill(student, tiny_net(), Logits(), noise()).inference_net is student
    assert kd.distill(student, tiny_net(), Behind(), noise()).inference_net[0] is student
