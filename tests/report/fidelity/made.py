"""Predictions and runs that the tests of fidelity share."""

import numpy as np

from kd.runs.predictions import Predictions, write
from kd.runs.results import Result
from kd.runs.results import write as write_result

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 3000)
LOGITS = (RNG.normal(0, 2, (3000, 5)) + 2.5 * np.eye(5)[LABELS]).astype(np.float32)
TEACHER = (RNG.normal(0, 2, (3000, 5)) + 4 * np.eye(5)[LABELS]).astype(np.float32)

TAUGHT = {"teacher": "cnn32", "teacher_params": 4_000_000, "teacher_id": "a", "knobs": {"T": 4.0}}


def put(directory, method, seed, logits, teacher=None, labels=LABELS, **changes):
    directory.mkdir(parents=True)
    predictions = Predictions(labels, logits.astype(np.float32), teacher)
    write(predictions, directory / "predictions.npz")
    about = {
        **{"student": "cnn16", "student_params": 1_000_000, "dataset": "CIFAR-10", "epochs": 30, "status": "done"},
        **{"test_acc": float(predictions.correct.mean())},
        **(TAUGHT if teacher is not None else {}),
        **changes,
    }
    write_result(Result(method=method, seed=seed, **about), directory / "result.json")


def noisy(seed, towards=0.0):
    rng = np.random.default_rng(seed + 100)
    return LOGITS + rng.normal(0, 0.7, LOGITS.shape) + towards * TEACHER
