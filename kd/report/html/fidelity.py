"""What the page shows of predictions: teacher and students, image by image, for a few rows of one data set."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from kd.errors import UserError
from kd.report.comparison import Comparison
from kd.report.fidelity.measures import Labels, Logits, Outputs, pooled, spread
from kd.report.fidelity.page import Pixels, named
from kd.report.fidelity.study import MOST, Student, Study, collect, study
from kd.report.html.view import Json, percent, rounded
from kd.report.prepare import prepared
from kd.report.ranking import leaders
from kd.report.rows import Row
from kd.report.summary import summarize
from kd.runs import predictions, results
from kd.runs.predictions import class_accuracy, confusion
from kd.runs.results import Result

MOST_RUNS = 48
"""Runs whose predictions are read; each takes a tenth of a second."""
MOST_CLASSES = 24
"""Classes of a confusion matrix: of more, those with the most errors."""
MOST_IMAGES = {"differ": 16, "fixed": 8, "broken": 8}
"""Images of a kind for each student."""
SIDE = 96
"""Pixels of the longer side of an image on the page."""
FIGURES = {
    "agreement": "agreement with the teacher, %",
    "agreement_wrong": "agreement where the teacher is wrong, %",
    "kl": "KL(teacher ‖ student), nats",
    "kl_scaled": "KL after temperature scaling of both, nats",
    "nll": "negative log-likelihood, nats",
}
"""Figures of a student by their titles; those in percent end so."""


def fidelity(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    dirs: Iterable[Path],
    pixels: Callable[[Study], Pixels] | None = None,
) -> Json:
    """Return the views of predictions; or, under "why", the reason why there are none.

    Args:
        rows: those of the report.
        comparisons: theirs; the baseline of the first is that of the study.
        dirs: where the runs are.
        pixels: a function that reads the test images of a study; None for predictions alone.

    Raises:
        UserError: if the images cannot be read, or are not those of the runs.
    """
    ids = {id(row): f"r{place}" for place, row in enumerate(rows)}
    try:
        chosen, remark = _chosen(rows, comparisons, _with_predictions(dirs))
        runs = collect(chosen)
        if len(runs.results) < len(chosen):
            return {"why": " ".join(runs.notes)}
        # Found by its runs: in a study of a few rows, fewer settings tell these apart, and labels are shorter.
        baseline = _key(comparisons[0].baseline.first)
        label = next(row.label for row in summarize(runs.results).rows if _key(row.first) == baseline)
        found = study(runs, label)
    except UserError as error:
        return {"why": str(error)}
    known = {_key(row.first): row for row in rows}
    chosen_rows = [known[_key(student.row.first)] for student in found.students]
    names = [(ids[id(row)], row.label) for row in chosen_rows]
    read = named(found) if pixels is None else pixels(found)
    return _view(found, names, chosen_rows[0].first.dataset, remark, read)


# Which runs


def _key(run: Result) -> str:
    """Return what tells a run from others, of a record as a report shows it."""
    named = (run.method, run.knobs, run.variant, run.student, run.teacher, run.epochs, run.seed)
    return repr((*named, run.fingerprint, run.date, run.test_acc))


def _with_predictions(dirs: Iterable[Path]) -> dict[str, Path]:
    """Return the directories of the runs that have predictions."""
    found = {}
    for path in results.records(dirs).paths:
        if (path.parent / predictions.FILE).exists():
            try:
                found[_key(*prepared([results.read(path)]))] = path.parent
            except UserError:
                continue  # the report names it
    return found


def _chosen(rows: Sequence[Row], comparisons: Sequence[Comparison], where: dict[str, Path]) -> tuple[list[Path], str]:
    """Return the directories of the baseline's runs and of those compared with it, as many as a page has room for."""
    if not where:
        raise UserError(f"no run has its {predictions.FILE} beside its record")
    if not comparisons:
        raise UserError("nothing is compared, so there is no student to look at image by image")
    baseline = comparisons[0].baseline
    compared = [comparison.row for comparison in comparisons if comparison.baseline is baseline]
    whole = [row for row in compared if all(_key(run) in where for run in row.runs)]
    most = min(MOST - 1, max(1, MOST_RUNS // max(row.n for row in [baseline, *whole]) - 1))
    places, remark = leaders(whole, most)
    chosen = [baseline, *(whole[place] for place in places)]
    if not whole or not all(_key(run) in where for run in baseline.runs):
        raise UserError(f"not all runs of {baseline.label}, and of a row that is compared with it, have predictions")
    return [where[_key(run)] for row in chosen for run in row.runs], remark


# What is shown


def _view(found: Study, names: Sequence[tuple[str, str]], data: str, remark: str, pixels: Pixels) -> Json:
    wrong = found.teacher_figures.errors
    shown = _shown_classes(found)
    networks = [_network(found.labels, [found.teacher_outputs], shown) | {"id": "teacher", "label": found.teacher_name}]
    for student, (name, label) in zip(found.students, names, strict=True):
        of_student = _network(found.labels, student.outputs, shown)
        networks.append(of_student | {"id": name, "label": label, "figures": _figures(student)})
    for network, figures in zip(networks, [[found.teacher_figures], *(s.figures for s in found.students)], strict=True):
        scaled = spread(figures, "ece_scaled")
        network["ece"] = [percent(fmean(seed.ece for seed in figures)), percent(scaled.mean) if scaled else None]
    base = names[0][1]
    images = {
        name: _images(found, student, label, base) for (name, label), student in zip(names, found.students, strict=True)
    }
    places = sorted({image["place"] for of_one in images.values() for kind in of_one for image in kind["images"]})
    less = "" if len(shown) == len(pixels.classes) else f" Confusion: the {len(shown)} classes with the most errors."
    return {
        "data": data,
        "note": f"{found.dataset}, {len(found.labels):,} test images; teacher: {found.teacher}, wrong on {wrong:,} of "
        + (f"them. Shown: {remark}." if remark else "them."),
        "remark": f"Means over the seeds.{less}",
        "classes": list(pixels.classes),
        "shown": shown,
        "figures": FIGURES,
        "networks": networks,
        "images": images,
        "pixels": {} if pixels.images is None else {str(place): _uri(pixels.images[place]) for place in places},
    }


def _shown_classes(found: Study) -> list[int]:
    """Return the labels of a confusion matrix, in order."""
    count = found.teacher_outputs.logits.shape[1]
    errors = sum(np.bincount(found.labels[~right], minlength=count) for right in found.baseline.correct)
    return sorted(map(int, np.argsort(-np.asarray(errors), kind="stable")[:MOST_CLASSES]))


def _network(labels: Labels, outputs: Sequence[Outputs], shown: Sequence[int]) -> Json:
    """Return accuracies by class, confusion and bins of n networks."""
    logits: list[Logits] = [seed.logits for seed in outputs]
    by_class = np.mean([class_accuracy(labels, seed) for seed in logits], axis=0)
    bins = pooled(labels, logits)
    enough = bins.drawn(len(labels))
    return {
        "n": len(outputs),
        "classes": [percent(acc) if acc == acc else None for acc in by_class],
        "confusion": _confusion(labels, logits, shown),
        "bins": [
            [rounded(confidence), rounded(accuracy), rounded(100 * share)]
            for confidence, accuracy, share, some in zip(
                bins.confidence, bins.accuracy, bins.share, enough, strict=True
            )
            if some
        ],
    }


def _confusion(labels: Labels, logits: Sequence[Logits], shown: Sequence[int]) -> list[list[float]]:
    """Return the share of each true class by prediction, in percent, mean over the networks; 0 without images."""
    matrix = np.mean([confusion(labels, seed) for seed in logits], axis=0)
    shares = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    return [[round(float(shares[true, predicted]), 2) for predicted in shown] for true in shown]


def _figures(student: Student) -> Json:
    found: Json = {}
    for name, title in FIGURES.items():
        of_seeds = spread(student.figures, name)
        if of_seeds:
            scale = 100 if title.endswith("%") else 1
            found[name] = [rounded(scale * of_seeds.mean), of_seeds.std and rounded(scale * of_seeds.std)]
    return found


# Images


def _images(found: Study, student: Student, label: str, base: str) -> list[Json]:
    """Return the images of a student by kind: where it differs from the teacher, fixed and broken."""
    ours = _probabilities(student.logits)
    teacher = _probabilities([found.teacher_outputs.logits])
    predicted, taught = ours.argmax(axis=1), teacher.argmax(axis=1)
    confidence = np.minimum(ours.max(axis=1), teacher.max(axis=1))
    differ = np.flatnonzero(predicted != taught)
    ordered = differ[np.argsort(-confidence[differ], kind="stable")]
    kinds: list[tuple[str, str, NDArray[np.intp]]] = [
        ("differ", "Different answers, the most confident of both first", ordered)
    ]
    for compared in found.compared:
        if compared.student is student:
            fixed, broken = compared.changes.fixed, compared.changes.broken
            kinds.append(("fixed", f"Fixed: wrong in most seeds of {base}, right in most of this", fixed))
            kinds.append(("broken", f"Broken: right in most seeds of {base}, wrong in most of this", broken))
    by_base = _probabilities(found.baseline.logits)

    def described(image: int) -> Json:
        answers = [("teacher", teacher), (label, ours)]
        answers += [] if student is found.baseline else [(base, by_base)]
        return {
            "place": image,
            "true": int(found.labels[image]),
            "answers": [[name, int(p[image].argmax()), round(100 * float(p[image].max()))] for name, p in answers],
        }

    return [
        {"title": title, "count": len(places), "images": [described(int(i)) for i in places[: MOST_IMAGES[kind]]]}
        for kind, title, places in kinds
    ]


def _probabilities(logits: Sequence[Logits]) -> NDArray[np.float64]:
    """Return probabilities, (M, C), mean over the networks."""
    total: Any = sum(scipy.special.softmax(seed.astype(np.float64), axis=1) for seed in logits)
    mean: NDArray[np.float64] = total / len(logits)
    return mean


def _uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image of at most `SIDE` pixels a side: as PNG if it is that small already, else as JPEG."""
    image = Image.fromarray(pixels)
    kind = "png" if max(image.size) <= SIDE else "jpeg"
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
