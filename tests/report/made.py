"""Records that the tests of rows, tables and figures have in common."""

import io
import math
import random
from dataclasses import fields, replace

from kd.report.summary import summarize
from kd.runs.results import Result

EPOCHS = 20
"""Of runs with curves."""

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


def runs(method, final, seeds=3, teacher_acc=0.92, **changes):
    """Return finished runs with invented curves that end at `final`."""
    rng = random.Random(f"{method}{final}{changes}")
    results = []
    for seed in range(seeds):
        acc = final + rng.gauss(0, 0.003)
        climb = [acc - (acc - 0.3) * math.exp(-epoch / 4) for epoch in range(EPOCHS)]
        result = Result(
            method=method,
            seed=seed,
            student="cnn",
            student_params=21_350,
            teacher_params=None if teacher_acc is None else 1_070_000,
            teacher_test_acc=teacher_acc,
            dataset="CIFAR-10",
            epochs=EPOCHS,
            test_acc=acc,
            status="done",
            epoch_train_loss=[2 - value for value in climb],
            epoch_train_acc=climb,
            epoch_val_loss=[3 * (1 - value) for value in climb],
            epoch_val_acc=[value - 0.01 for value in climb],
        )
        results.append(changed(result, **changes))
    return results


def teacher():
    return runs("teacher", 0.92, seeds=1, teacher_acc=None, student_params=None, teacher_params=1_070_000)


def few():
    return summarize([*teacher(), *runs("standard", 0.8, teacher_acc=None), *runs("logits", 0.83), *runs("at", 0.84)])


def drawn(figure):
    """Draw the figure: warnings are errors."""
    figure.savefig(io.BytesIO(), dpi=30)
    return figure
