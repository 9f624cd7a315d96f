"""Trainings side by side: each is to be what it would have been alone."""

import random
import signal
import threading
import time
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch

from kd.data.augment import Augment
from kd.data.batch import Batch
from kd.data.module import DataModule
from kd.models.output import Output
from kd.sweeps.cohort import SETTLED, Cohort, Memory, SharedDataModule, SharedTeacher
from kd.training.modules import Classifier
from kd.training.optim import one_cycle


def loaded(images, member=None):
    data = DataModule(images, 0.25, 0, Augment(2, True, 0), 8, 0)
    return data if member is None else SharedDataModule(data, member)


def training(seed, images, steps=None):
    """A work that looks at its batches and draws random numbers of every kind."""

    def work(member=None):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        loader = loaded(images, member).train_dataloader()
        seen = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            for step, batch in enumerate(loader):
                if steps is not None and (epoch, step) == steps:
                    raise RuntimeError("broken")
                noise = (torch.rand(1).item(), np.random.rand(), random.random())
                seen.append((batch.x.sum().item(), batch.index.tolist(), noise))
        return seen

    return work


def of_labels(batch):
    """What a teacher returns that knows the labels."""
    return Output(batch.y.float(), (), torch.zeros(len(batch.y), 1))


def test_cohort_members_are_as_if_alone(noise):
    images = noise()
    works = [training(seed, images) for seed in range(3)]
    alone = [work() for work in works]
    assert len({str(outcome) for outcome in alone}) == 3
    assert Cohort().run(works) == alone


def test_cohort_leaves_the_random_numbers_outside_alone(noise):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = torch.rand(1)
    Cohort().run([training(0, noise())])
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_cohort_makes_a_batch_and_a_teachers_output_once(noise, monkeypatch):
    images, made, asked = noise(160), [], []
    monkeypatch.setattr(Augment, "apply", lambda self, x, view: made.append(1) or x)

    def teacher(batch):
        asked.append(1)
        return of_labels(batch)

    def work(member):
        shared = member.shared_teacher(teacher)
        seen = []
        for batch in loaded(images, member).train_dataloader():
            seen.append(shared(Batch(*batch)).logits.tolist())  # the Trainer makes a new tuple of it
            assert seen[-1] == batch.y.tolist()
        return seen

    one, *others = Cohort().run([work] * 5)
    assert all(other == one for other in others)
    steps = len(one)
    # The first goes ahead until it is known how much memory it takes; the others ask for those batches again.
    again = (SETTLED - 1) * 4
    assert len(made) == len(asked) <= steps + again
    assert steps > SETTLED


def test_member_shared_is_made_once():
    made = []
    assert Cohort().run([lambda member: member.shared("data", lambda: made.append(1) or len(made))] * 3) == [1, 1, 1]


def test_cohort_goes_on_when_a_member_fails(noise):
    images = noise()
    good, bad = training(0, images), training(1, images, steps=(1, 0))
    outcomes = Cohort().run([good, bad, good])
    assert outcomes[0] == outcomes[2] == good()
    assert str(outcomes[1]) == "broken"


def test_cohort_interruption_reaches_all_members(noise, monkeypatch):
    images, ended, steps = noise(160), [], []

    def work(number):
        def work(member):
            try:
                for _ in loaded(images, member).train_dataloader():
                    steps.append(number)
            except SystemExit:
                ended.append(number)
                raise

        return work

    put, interrupted = Cohort.put, []

    def interrupt_once(self, values):
        if len(steps) == 20 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        put(self, values)

    monkeypatch.setattr(Cohort, "put", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        Cohort().run([work(number) for number in range(4)])
    assert ended == [0, 1, 2, 3]
    assert len(steps) == 20


def test_error_of_the_process_ends_all_members(noise, monkeypatch):
    """Else each would hold the lock of its directory, for which the launcher that tries again would wait for good."""
    images, started, ended, start = noise(160), [], [], threading.Thread.start

    def work(member):
        try:
            for _ in loaded(images, member).train_dataloader():
                pass
        finally:
            ended.append(member)

    def start_two(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Cohort().run([work] * 3)
    assert len(ended) == 2


def test_cohort_interruption_passes_through_lightning(noise, tiny_net, trainer, monkeypatch):
    """As an interruption: a run that says that it failed would be taken for one with a mistake in it."""
    ended, put = [], Cohort.put

    def work(member):
        module = Classifier(tiny_net(), 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0), 0.0)
        try:
            trainer(max_epochs=100).fit(module, loaded(noise(), member))
        except BaseException as error:
            ended.append(type(error))
            raise

    calls = []

    def interrupt_once(self, values):
        calls.append(values)
        if len(calls) == 30:
            raise KeyboardInterrupt
        put(self, values)

    monkeypatch.setattr(Cohort, "put", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        Cohort().run([work, work])
    assert ended == [SystemExit, SystemExit]


def test_cohort_interruption_ends_what_shares_nothing(noise, tiny_net, trainer, request):
    """As a teacher, whom the others wait for: Ctrl-C ends it after the batch that it is at."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    ended = []

    class CtrlC(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                deadline = time.monotonic() + 60
                while not cohort.interrupted and time.monotonic() < deadline:
                    time.sleep(0.01)

    cohort = Cohort()

    def work(member):
        module = Classifier(tiny_net(), 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0), 0.0)
        training = trainer(max_epochs=200, callbacks=[CtrlC(), *member.callbacks()])
        try:
            training.fit(module, loaded(noise()))
        except SystemExit:
            ended.append(training.global_step)
            raise

    with pytest.raises(KeyboardInterrupt):
        cohort.run([work])
    assert ended == [3]


@pytest.mark.parametrize(("step", "together"), [(0, 3), (1, 2), (4, 1)])
def test_cohort_runs_as_many_members_as_memory_allows(noise, step, together):
    """Each keeps one of five, and needs a number for the time of a step."""
    images, at_work, most = noise(160), set(), []

    class Five(Memory):
        def free(self):
            return 5 - len(at_work)

        of_before = 100  # as a teacher's training has left it

        def peak(self):
            return max(step, self.of_before)

        def reset_peak(self):
            self.of_before = 0

    def work(number):
        def work(member):
            for _ in loaded(images, member).train_dataloader():
                at_work.add(number)
                most.append(len(at_work))
            at_work.discard(number)
            return number

        return work

    # The next is begun while more is left than a step and two trainings take.
    outcomes = Cohort(memory=Five(torch.device("cpu"))).run([work(number) for number in range(7)])
    assert outcomes == list(range(7))
    assert max(most) == together


def test_shared_teacher_repeats_the_same_images_only(labelled):
    shared = SharedTeacher(of_labels)
    first, second = labelled(1, 2), labelled(3, 4)
    assert shared(first) is (output := shared(first))
    assert torch.equal(output.logits, first.y.float())
    assert torch.equal(shared(second).logits, second.y.float())
    assert torch.equal(shared(first).logits, first.y.float())


@pytest.mark.parametrize("place", ["logits", "embedding", "x", "y"])
def test_shared_teacher_computes_again_what_a_training_changed_in_place(labelled, place):
    shared, batch = SharedTeacher(of_labels), labelled(1, 2)
    output = shared(batch)
    assert shared(batch) is output
    getattr(output if place in output._fields else batch, place).add_(1)
    again = shared(batch)
    assert again is not output
    assert torch.equal(again.logits, batch.y.float())
    with torch.inference_mode():  # in which a Trainer validates, and torch counts no changes of what is made
        assert torch.equal(shared(labelled(3, 4)).logits, torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("when", ["before the teacher", "after it"])
def test_training_that_changes_its_batch_in_place_changes_no_other(noise, when):
    images = noise()

    def work(changes, taught):
        def run(member):
            teacher, seen = member.shared_teacher(of_labels), []
            for batch in loaded(images, member).train_dataloader():
                if changes and when == "before the teacher":
                    batch.x.add_(1)
                seen.append((batch.x.sum().item(), teacher(batch).logits.tolist() if taught else None))
                if changes and when == "after it":
                    batch.x.add_(1)
            return seen

        return run

    works = [work(True, True), work(False, True), work(False, False)]
    assert Cohort().run(works) == [Cohort().run([one])[0] for one in works]


def test_evaluation_that_changes_its_batch_in_place_changes_no_other(noise):
    images = noise()

    def work(changes):
        @torch.inference_mode()
        def run(member):
            seen = []
            for batch in loaded(images, member).val_dataloader():
                seen.append(batch.x.sum().item())
                if changes:
                    batch.x.add_(1)
            return seen

        return run

    changed, read = Cohort().run([work(True), work(False)])
    assert changed == read
