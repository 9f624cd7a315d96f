"""Figures of a trained network on labelled images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.stored import Pixels
from kd.deploy.check import places
from kd.deploy.export import batches
from kd.errors import UserError
from kd.files import replaced
from kd.inference import Predictor, temperature_file
from kd.report.fidelity import measures
from kd.report.statistics import Interval, binomial_interval
from kd.runs.predictions import class_accuracy, confusion, correct


@dataclass(frozen=True)
class Evaluation:
    """What a network makes of M labelled images in C classes."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """(M,)."""
    logits: NDArray[np.float32]
    """(M, C), divided by the network's temperature."""

    @property
    def accuracy(self) -> float:
        return measures.accuracy(self.labels, self.logits)

    @property
    def interval(self) -> Interval:
        """Wilson's interval of the accuracy, on the population that the images were drawn from."""
        right = correct(self.labels, self.logits)
        return binomial_interval(int(right.sum()), len(right))

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the classes' accuracies."""
        return float(np.nanmean(class_accuracy(self.labels, self.logits)))

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return measures.nll(self.labels, self.logits)

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]."""
        return measures.ece(self.labels, self.logits)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C): images of the row's class that are taken for the column's."""
        return confusion(self.labels, self.logits)

    def to_json(self) -> dict[str, Any]:
        """Return all figures for programs, as fractions of 1 and nats."""
        shares = class_accuracy(self.labels, self.logits)
        return {
            "images": len(self.labels),
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "nll": self.nll,
            "ece": self.ece,
            "classes": list(self.classes),
            "class_accuracy": [None if np.isnan(share) else float(share) for share in shares],
            "confusion": self.confusion.tolist(),
        }


def evaluate(predictor: Predictor, images: Pixels, labels: Tensor, classes: Sequence[str]) -> Evaluation:
    """Classify labelled images.

    Args:
        predictor: the network.
        images: (M, channels, H, W), uint8.
        labels: (M,), int64.
        classes: the C class names of the labels; the network may have them in another order.

    Raises:
        UserError: if these are not the network's classes.
    """
    columns = places(classes, predictor)
    with torch.inference_mode():
        parts = [
            predictor(predictor.preprocess(pixels)).logits.float().cpu() for pixels in batches(images, "classifying")
        ]
    logits = (torch.cat(parts) / predictor.temperature).numpy()
    return Evaluation(tuple(classes), labels.numpy(), logits[:, columns])


def most_confused(evaluation: Evaluation) -> list[tuple[str, float] | None]:
    """Return for each class the other one that its images are most often taken for, and their share; None for none."""
    counts = evaluation.confusion
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    favourites = counts.argmax(axis=1)
    return [
        (evaluation.classes[place], float(row[place] / total)) if row[place] else None
        for row, place, total in zip(counts, favourites, totals, strict=True)
    ]


def store_temperature(weights: Path, evaluation: Evaluation, images: str) -> float:
    """Fit a temperature on validation images, and store it beside the weights, where `kd.load` finds it.

    Args:
        weights: the file of weights.
        evaluation: of the validation images, at temperature 1.
        images: which these are, for the record.

    Returns:
        The temperature: above 1 for an overconfident network.

    Raises:
        UserError: if fewer than `FEWEST_ERRORS` of the images are classified wrong. That of a network without errors is
            near 0, whatever it does on other images.
    """
    wrong = int((~correct(evaluation.labels, evaluation.logits)).sum())
    if wrong < measures.FEWEST_ERRORS:
        raise UserError(
            f"no temperature can be fitted on {len(evaluation.labels):,} images of which {wrong} are classified wrong; "
            f"it takes {measures.FEWEST_ERRORS}: a network trained with a larger data.val_fraction has more"
        )
    value = measures.temperature(evaluation.labels, evaluation.logits)
    facts = {"temperature": value, "fitted_on": images, "images": len(evaluation.labels)}
    with replaced(temperature_file(weights)) as temporary:
        temporary.write_text(json.dumps(facts, indent=2))
    return value
