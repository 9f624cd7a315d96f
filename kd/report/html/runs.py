"""What it takes to make a row's runs again, and where the spread of its accuracy comes from."""

import math
from typing import Any

from kd.report.rows import Row, knobs_and_overrides
from kd.report.text import shortened

MOST_COMMANDS = 6
MOST_CHARACTERS = 600
"""Characters of a command that are shown, at most."""


def details(row: Row) -> dict[str, Any]:
    """Return commands, overrides and versions of a row's runs, and its variance; each without repetition."""
    commands = list(dict.fromkeys(run.command for run in row.runs if run.command is not None))
    more = len(commands) - MOST_COMMANDS
    return {
        "commands": [
            shortened(f"python train.py {command}".strip(), MOST_CHARACTERS) for command in commands[:MOST_COMMANDS]
        ],
        "more": max(0, more),
        "facts": _facts(row),
        "variance": variance(row),
    }


def _facts(row: Row) -> list[list[str]]:
    first = row.first
    named = {
        "settings": " ".join(knobs_and_overrides(first)),
        "student": first.student or "",
        "teacher": first.teacher or "",
        "epochs": str(first.epochs),
        "seeds": _listed(str(run.seed) for run in row.runs),
        "typed in": _listed(run.cwd for run in row.runs),
        "versions": _listed(run.versions for run in row.runs),
        "commit": _listed(run.git for run in row.runs),
        "device": _listed(run.device for run in row.runs),
        "precision": _listed(run.precision for run in row.runs),
        "dates": _listed(run.date[:10] for run in row.runs),
        "configuration": _listed(run.fingerprint for run in row.runs),
    }
    return [[name, shortened(text, MOST_CHARACTERS)] for name, text in named.items() if text]


def _listed(texts: Any) -> str:
    return "; ".join(text for text in dict.fromkeys(texts) if text)


def variance(row: Row) -> dict[str, float] | None:
    """Return the standard deviations of a test accuracy, in points: between seeds, and of the sample of test images.

    The first is that of the n accuracies on the same test images. The second is sqrt(p (1 - p) / M), binomial, for M
    images and the mean accuracy p: what another sample of as many images would change. None with one seed, or where the
    number of images is unknown.
    """
    images = row.first.test_images
    if row.test_acc is None or row.test_acc.std is None or not images:
        return None
    p = row.test_acc.mean
    return {"seeds": round(100 * row.test_acc.std, 3), "images": round(100 * math.sqrt(p * (1 - p) / images), 3)}
