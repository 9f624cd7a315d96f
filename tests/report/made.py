"""Records that the tests of rows and tables have in common."""

from dataclasses import fields, replace

from kd.runs.results import Result

_FIELDS = {field.name for field in fields(Result)}


def changed(run, **changes):
    """Return a copy of `run` with some fields and, by their names, some knobs replaced; a knob of None is removed."""
    knobs = run.knobs | {name: value for name, value in changes.items() if name not in _FIELDS}
    known = {name: value for name, value in knobs.items() if value is not None}
    return replace(run, **{"knobs": known} | {name: value for name, value in changes.items() if name in _FIELDS})


ALONE = Result(
    method="standard",
    seed=0,
    student="cnn",
    student_params=21_350,
    dataset="CIFAR-10",
    epochs=30,
    test_acc=0.8,
    test_nll=0.6,
    test_ece=0.03,
    val_acc=0.81,
    train_seconds=100.0,
    status="done",
)
DISTILLED = changed(
    ALONE,
    method="logits",
    T=4.0,
    alpha=0.1,
    teacher="resnet20",
    teacher_params=1_070_000,
    teacher_test_acc=0.9,
    agreement=0.85,
)
MUTUAL = changed(ALONE, method="dml", taught=True, test_acc=0.83)
"""Taught by a peer; no teacher takes part."""
TEACHER = Result(
    method="teacher",
    seed=0,
    teacher="resnet20",
    teacher_params=1_070_000,
    dataset="CIFAR-10",
    epochs=30,
    test_acc=0.9,
    status="done",
)


def seeds(run, *accuracies, **changes):
    return [changed(run, seed=seed, test_acc=acc, **changes) for seed, acc in enumerate(accuracies)]
