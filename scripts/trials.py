"""The trials of a search in Optuna's study: the next one, those that count, the best."""

from typing import Any

from kd.hashing import derive


def next_trial(study: Any, seed: int) -> Any:
    """Take up the trial that a killed process left, or begin another one. It may be killed anywhere in this, too."""
    import optuna
    from optuna.trial import TrialState

    begun = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
    number = number_of(begun[0]) if begun else len(counted(study))
    # Anew for every trial: a search that was interrupted in between draws what it would have drawn.
    study.sampler = optuna.samplers.TPESampler(seed=derive("trial", seed, number))
    if begun:
        take_up(study, begun[0])
    else:
        study.enqueue_trial({}, user_attrs={"number": number})
    trial = study.ask()
    for epoch, accuracy in seen(trial).items():
        trial.report(accuracy, epoch)
    return trial


def take_up(study: Any, left: Any) -> None:
    """Put a trial that a killed process left running into the queue again, as nobody else can be at work on it."""
    from optuna.trial import TrialState

    if left.state is TrialState.WAITING:
        return
    study.set_user_attr("taken_up", [*study.user_attrs.get("taken_up", []), left.number])
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # there is, if it was killed right here
        study.enqueue_trial(left.params, user_attrs={"number": number_of(left), "seen": seen(left)})
    study.tell(left.number, state=TrialState.FAIL)


def seen(trial: Any) -> dict[int, float]:
    """The validation accuracies by epoch that a trial has reported, or the one whose place it has taken."""
    before = trial.user_attrs.get("seen", {})
    own = getattr(trial, "intermediate_values", {})
    return {int(epoch): accuracy for epoch, accuracy in before.items()} | own


def counted(study: Any) -> list[Any]:
    """All trials, less those whose place another has taken."""
    from optuna.trial import TrialState

    taken_up = study.user_attrs.get("taken_up", [])
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.number not in taken_up and trial.state is not TrialState.WAITING]


def finished(study: Any) -> list[Any]:
    return [trial for trial in counted(study) if trial.state.is_finished()]


def number_of(trial: Any) -> int:
    """The trial's number in the search, which names its directory; it keeps it when it is taken up again."""
    return int(trial.user_attrs.get("number", trial.number))


def ranked(study: Any) -> list[Any]:
    """The trials that ran to their end, the best by validation accuracy first, the earlier one of equals."""
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(done, key=lambda trial: (-trial.value, trial.number))
