"""The steps that `scripts/gpu_check.py` captures, on the processor, on which there are no graphs."""

import copy

import pytest
import torch
from torch import nn

from kd.losses import hard_loss, soft_loss
from kd.models.cnn import CNN
from kd.teachers.frozen import FrozenTeacher
from scripts.gpu_step import AUGMENT, StackedSteps, Steps, StoredOnDevice, noise, shown

CPU = torch.device("cpu")


def student(seed):
    torch.manual_seed(seed)
    return CNN(2, 10, 32, "relu", 0.0, 0.0)


@pytest.fixture
def teacher():
    return FrozenTeacher(student(7), "")


def trained(kind, students, teacher, count=3, **settings):
    torch.manual_seed(0)
    steps = kind(students, noise(8, CPU), teacher, batch=4, half=False, **settings)
    losses = []
    for _ in range(count):
        steps.step()
        losses.append(steps.losses.tolist())
    return steps, losses


def test_steps_train_every_student_as_alone(teacher):
    alone = [trained(Steps, [student(seed)], teacher)[1] for seed in (1, 2)]
    _, together = trained(Steps, [student(1), student(2)], teacher)
    assert together == [[a, b] for [a], [b] in zip(*alone, strict=True)]
    assert together[0] != together[1]


def test_steps_minimise_the_loss_of_logits_distillation_with_the_schedule(teacher):
    net = student(1)
    steps, losses = trained(Steps, [copy.deepcopy(net)], teacher, count=1)
    torch.manual_seed(0)
    index = torch.randperm(8)[:4]
    batch = shown(noise(8, CPU), index, torch.randint(AUGMENT.views, (4,)))
    logits = net(batch.x).logits
    loss = 0.1 * hard_loss(logits, batch.y) + 0.9 * soft_loss(logits, teacher(batch).logits, 4.0)
    assert losses == [[pytest.approx(loss.item(), rel=1e-5)]]
    rates = steps.rates
    assert rates[0] > 0
    assert rates.max() == pytest.approx(0.1, rel=1e-2)
    assert 0 < rates[-1] < 1e-3
    assert steps.rate == rates[0]
    assert steps.places.tolist() == [4, 5, 6, 7]
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    decayed = net.classifier.weight + 0.0
    step = 1.9 * (net.classifier.weight.grad + 5e-4 * decayed) * rates[0]
    torch.testing.assert_close(steps.students[0].classifier.weight, net.classifier.weight - step)


def test_stacked_steps_train_as_one_student_after_the_other(teacher):
    _, expected = trained(Steps, [student(1), student(2)], teacher)
    _, stacked = trained(StackedSteps, [student(1), student(2)], teacher)
    torch.testing.assert_close(torch.tensor(stacked), torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_stored_logits_are_the_teachers_rounded(teacher):
    pixels = noise(4, CPU)
    stored = StoredOnDevice(teacher, pixels)
    assert stored.computed == 4 * AUGMENT.views
    batch = shown(pixels, torch.tensor([3, 0]), torch.tensor([161, 5]))
    torch.testing.assert_close(stored(batch).logits, teacher(batch).logits.half(), rtol=1e-2, atol=1e-3)
    assert StoredOnDevice(teacher, pixels, share=0.5).computed == 2 * AUGMENT.views
