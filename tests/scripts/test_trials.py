"""Trials of a search, taken up wherever its process was killed."""

import contextlib
import itertools

import pytest

from scripts import trials


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


def test_trial_keeps_its_number_and_values_wherever_the_process_is_killed(optuna, monkeypatch):
    """At each call that changes the study, in turn; the run of trial 1 was killed after its second epoch."""
    storage = optuna.storages.InMemoryStorage
    changes = [name for name in vars(storage) if name.startswith(("create_new_trial", "set_", "check_and_set"))]

    class Killed(BaseException):
        pass

    def taken_up(stop):
        study = optuna.create_study(direction="maximize")
        study.tell(trials.next_trial(study, 0), 0.5)
        trial = trials.next_trial(study, 0)
        value = trial.suggest_float("lr", 0, 1)
        for epoch in (0, 1):
            trial.report(0.1 * epoch, epoch)
        made = itertools.count()
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for name in changes:
                patch.setattr(storage, name, counted(getattr(storage, name), made, stop))
            trials.next_trial(study, 0)
        last = trials.next_trial(study, 0)
        assert [trials.number_of(trial) for trial in trials.counted(study)] == [0, 1]
        assert last.suggest_float("lr", 0, 1) == value
        assert study.trials[last.number].intermediate_values == {0: 0.0, 1: 0.1}
        study.tell(last, 0.6)
        assert trials.number_of(trials.next_trial(study, 0)) == 2
        return next(made)

    def counted(change, made, stop):
        def changed(*arguments, **more):
            if next(made) == stop:
                raise Killed
            return change(*arguments, **more)

        return changed

    stop = 0
    while taken_up(stop) > stop:
        stop += 1
    assert stop > 4
