"""Study of students and their teacher, compared image by image, from runs with their predictions."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from kd.errors import UserError
from kd.report.comparison import compare, refusal
from kd.report.fidelity import metadata
from kd.report.fidelity.measures import (
    FEWEST_ERRORS,
    Figures,
    Floats,
    Labels,
    Logits,
    Mask,
    Outputs,
    agreement,
    cross_fitted,
    expected_flips,
    flipped,
    flips_by_seed,
    measure,
    missing,
    spread,
    too_few,
)
from kd.report.notes import skipped_notes
from kd.report.prepare import prepared
from kd.report.rows import Role, Row, Spread, role, teacher_name, titled
from kd.report.statistics import Difference, corrected, difference, holm, mcnemar
from kd.report.summary import summarize
from kd.runs import predictions, results
from kd.runs.given import STUDENT_WEIGHTS
from kd.runs.predictions import Predictions, class_accuracy, correct
from kd.runs.results import Result
from kd.terminal import with_progress

MOST = 8
"""Students on a page, which is for the final few, not for a sweep."""
MOST_BYTES = 2 << 30
"""Size of all predictions together."""
TIES = 3
"""Number of images whose predicted class rounding may change, besides one in a thousand."""
FAMILIES = (
    ("accuracy",),
    ("agreement", "kl"),
    ("agreement_wrong", "kl_scaled", "nll", "nll_scaled", "ece", "ece_scaled"),
)
"""The figures of which differences are tested. Those of a family are corrected together, as the page says.

Gain in accuracy and fidelity are the main questions and have families of their own, so that the many figures of the
third, which are details, do not hide the answers.
"""
COMPARED = tuple(name for family in FAMILIES for name in family)
BOUNDED = ("accuracy", "agreement", "agreement_wrong", "ece", "ece_scaled")
"""Those that are fractions of 1, so that no difference is greater than 1."""


# Reading


class Runs(NamedTuple):
    """Finished runs and their predictions."""

    results: list[Result]
    predictions: dict[int, Predictions]
    """Predictions by the identity of the result."""
    data: dict[int, metadata.Data]
    """Classes and image size by the identity of the result, as far as the weights beside it tell."""
    notes: list[str]
    """Runs that were left out."""


def collect(dirs: Iterable[Path]) -> Runs:
    """Read every finished run of a student with its predictions below the directories; see `kd.runs.results.collect`.

    Raises:
        UserError: if a directory does not exist, if no such run is found, or if the predictions of all are larger than
            `MOST_BYTES`.
    """
    done: list[Result] = []
    lost: list[Result] = []
    found: list[Predictions] = []
    described: list[metadata.Data | None] = []
    left_out: Counter[str] = Counter()
    paths, skipped = results.records(dirs)
    size = 0
    for path in with_progress(paths, "reading predictions"):
        directory = path.parent
        try:
            result = results.read(path)
            if role(result) is Role.TEACHER:
                continue  # its students' files have its logits
            if result.diverged:
                lost.append(result)  # in no figure, but nothing is said of the differences of its row
            elif result.status != "done":
                left_out[result.status] += 1
            elif not (directory / predictions.FILE).exists():
                left_out[f"without {predictions.FILE}"] += 1
            else:
                read = predictions.read(directory / predictions.FILE, result.test_images)
                _require_same(read, result)
                size += sum(array.nbytes for array in read if array is not None)
                done.append(result)
                found.append(read)
                described.append(metadata.read(directory / STUDENT_WEIGHTS))
        except UserError as error:
            skipped.append(f"{directory}: {error}" if str(directory) not in str(error) else str(error))
        if size > MOST_BYTES:
            raise UserError(
                f"the predictions take more than {MOST_BYTES >> 30} GB of memory: give the directories of fewer runs"
            )
    listed = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
    if not done:
        raise UserError(
            f"no finished run with its {predictions.FILE}: {'; '.join([listed or 'no runs', *skipped[:1]])}"
        )
    notes = [f"Runs left out: {listed}."] if listed else []
    notes += skipped_notes(skipped)
    runs = prepared([*done, *lost])
    measured = runs[: len(done)]
    data = {id(run): told for run, told in zip(measured, described, strict=True) if told}
    return Runs(runs, {id(run): read for run, read in zip(measured, found, strict=True)}, data, notes)


def _require_same(found: Predictions, result: Result) -> None:
    right = float(found.correct.mean())
    if result.test_acc is not None and abs(right - result.test_acc) > 0.001 + TIES / len(found.labels):
        raise UserError(
            f"{100 * right:.2f} % of the predictions are right, the record says {100 * result.test_acc:.2f} %"
        )


# Students


class Student:
    """A row with the outputs of its networks and their figures, by seed, in the row's order."""

    def __init__(self, row: Row, outputs: Sequence[Outputs], labels: Labels, teacher: Outputs) -> None:
        self.row, self.outputs = row, outputs
        self.logits: list[Logits] = [seed.logits for seed in outputs]
        self.figures: list[Figures] = [measure(labels, seed, teacher) for seed in outputs]
        self.correct: Mask = np.array([correct(labels, logits) for logits in self.logits])
        """(n, M)."""
        self.class_accuracy: Floats = np.array([class_accuracy(labels, logits) for logits in self.logits])
        """(n, C)."""

    @property
    def label(self) -> str:
        return self.row.label

    @property
    def n(self) -> int:
        return self.row.n

    def spread(self, name: str) -> Spread | None:
        return spread(self.figures, name)

    def by_seed(self, name: str) -> dict[int, float]:
        """Return one figure of each seed that has it."""
        values = {seed: getattr(figures, name) for seed, figures in zip(self.row.seeds, self.figures, strict=True)}
        return {seed: value for seed, value in values.items() if value is not None}

    @cached_property
    def between_seeds(self) -> float | None:
        """Mean agreement of two of its seeds; None with one seed."""
        pairs = [(i, j) for i in range(self.n) for j in range(i)]
        return fmean(agreement(self.logits[i], self.logits[j]) or 0.0 for i, j in pairs) if pairs else None

    def vote(self, image: int) -> tuple[int, int]:
        """Return the class that most seeds predict for an image, and the number of these seeds."""
        ((predicted, votes),) = Counter(int(logits[image].argmax()) for logits in self.logits).most_common(1)
        return predicted, votes

    def confidence(self, images: NDArray[np.intp], labels: Labels) -> Floats:
        """Return the probability of the true class, mean over seeds, (len(images),)."""
        chosen = np.array([logits[images] for logits in self.logits], dtype=np.float64)
        mean: Floats = scipy.special.softmax(chosen, axis=2).mean(axis=0)
        return mean[np.arange(len(images)), labels[images]]


class Changes(NamedTuple):
    """Images on which a student and the baseline differ."""

    fixed: NDArray[np.intp]
    """Wrong in most seeds of the baseline, right in most of the student; the greatest change of confidence first."""
    broken: NDArray[np.intp]
    """The reverse."""
    k: int
    """Number of seeds in each of the sets that the next three compare; 0 where the baseline has only one."""
    fixed_k: float
    """Mean number fixed between k seeds of the baseline and k of the student."""
    broken_k: float
    by_seed_k: float
    """Mean number that flips between two disjoint sets of k seeds of the baseline."""
    p: list[float | None]
    """McNemar's p value of each common seed, corrected by Holm's method for all pairs of the study."""
    better: list[bool]
    """Whether the student has more images right than the baseline, by common seed."""


class Compared(NamedTuple):
    """A student compared with the baseline."""

    student: Student
    differences: dict[str, Difference]
    """Differences by figure, those of `COMPARED`."""
    classes: list[Difference]
    """Differences in accuracy by class."""
    changes: Changes


class Study(NamedTuple):
    """Everything that the page shows."""

    dataset: str
    """Its name, with what makes trials of the runs."""
    data: metadata.Data | None
    """Classes and image size, if the weights of some run tell."""
    labels: Labels
    teacher: str
    """Name of its network."""
    teacher_outputs: Outputs
    teacher_figures: Figures
    baseline: Student
    compared: list[Compared]
    notes: list[str]

    @property
    def teacher_name(self) -> str:
        """ "teacher", or what an ensemble of them is called."""
        return teacher_name(self.teacher)

    @property
    def students(self) -> list[Student]:
        """The baseline first."""
        return [self.baseline, *(compared.student for compared in self.compared)]


def study(runs: Runs, baseline: str | None = None) -> Study:
    """Compare the students with a baseline, and all of them with the one teacher.

    Args:
        runs: finished runs of students with their predictions.
        baseline: label or method of a row; None for the only student trained on labels alone.

    Raises:
        UserError: if there is not one data set, one teacher and one baseline, or nothing to compare with it, or more
            than a page can show.
    """
    summary = summarize(runs.results)
    rows = [row for row in summary.rows if row.role is not Role.TEACHER]
    if len({row.first.dataset for row in rows}) > 1:
        raise UserError(f"runs on several data sets, {summary.datasets}: give the directories of one")
    if len(rows) > MOST:
        raise UserError(f"{len(rows)} rows, too many to look at one by one: give the directories of at most {MOST}")
    baseline_row, compared_rows = _split(rows, baseline)
    labels, name, logits = _teacher(rows, runs)
    teacher = cross_fitted(labels, logits)

    def student(row: Row) -> Student:
        outputs = [cross_fitted(labels, runs.predictions[id(run)].logits) for run in row.runs]
        return Student(row, outputs, labels, teacher)

    base = student(baseline_row)
    teacher_figures = measure(labels, teacher)
    compared = _compared(base, [student(row) for row in compared_rows], labels, teacher_figures)
    notes = [*runs.notes, *summary.left_out, *summary.warnings]
    data = _data(rows, runs, logits.shape[1])
    return Study(titled([baseline_row]), data, labels, name, teacher, teacher_figures, base, compared, notes)


def _data(rows: Sequence[Row], runs: Runs, count: int) -> metadata.Data | None:
    """Return what the weights tell of the one data set of all runs."""
    known = [runs.data[id(run)] for row in rows for run in row.runs if id(run) in runs.data]
    if len({data.classes for data in known}) > 1:
        a, b = list(dict.fromkeys(data.classes for data in known))[:2]
        differ = next((f"{x!r} and {y!r}" for x, y in zip(a, b, strict=False) if x != y), f"{len(a)} and {len(b)}")
        raise UserError(f"the runs were tested on different classes, {differ}: give the directories of one data set")
    return known[0] if known and len(known[0].classes) == count else None


def _split(rows: Sequence[Row], name: str | None) -> tuple[Row, list[Row]]:
    """Return the baseline and the rows to compare with it."""
    comparisons = compare(rows, name)
    baselines = list(dict.fromkeys(comparison.baseline.label for comparison in comparisons))
    if len(baselines) > 1:
        raise UserError(f"{', '.join(baselines)}: name the one to compare with by --baseline")
    if comparisons:
        return comparisons[0].baseline, [comparison.row for comparison in comparisons]
    alone = [row.label for row in rows if row.role is Role.ALONE]
    if name is None and len(alone) != 1:
        raise UserError(
            f"{', '.join(alone)}: name the one to compare with by --baseline"
            if alone
            else "no student trained on labels alone to compare with; train one (method=standard) or name a --baseline"
        )
    raise UserError("only one row of students: nothing to compare it with")


def _teacher(rows: Sequence[Row], runs: Runs) -> tuple[Labels, str, Logits]:
    """Return the test labels, and the one teacher's name and logits."""
    results = [run for row in rows for run in row.runs]
    first = runs.predictions[id(results[0])]
    for run in results:
        found = runs.predictions[id(run)]
        if found.logits.shape != first.logits.shape or not np.array_equal(found.labels, first.labels):
            raise UserError(f"the runs were not tested on the same images: {run.method} seed={run.seed} differs")
    distilled = [run for run in results if runs.predictions[id(run)].teacher_logits is not None]
    if not distilled:
        raise UserError("no run with a teacher: none of the predictions hold those of one")
    ids = {run.teacher_id for run in distilled}
    if len(ids) > 1:
        raise UserError(f"{len(ids)} different teachers: give the directories of one teacher's students")
    logits = runs.predictions[id(distilled[0])].teacher_logits
    if logits is None or logits.shape != first.logits.shape:
        raise UserError("the teacher's predictions are not of the same images as the students'")
    return first.labels, distilled[0].teacher or "teacher", logits


def _compared(base: Student, students: Sequence[Student], labels: Labels, teacher: Figures) -> list[Compared]:
    """Compare all students; correct figures by family, all classes together, all seeds together."""
    figures: dict[str, list[Difference]] = {}
    for family in FAMILIES:
        figures |= _by_figure(students, base, family, teacher)
    classes = corrected([d for student in students for d in _by_class(student, base, labels)])
    changes = [_changes(base, student, labels) for student in students]
    p_values = holm([p for change in changes for p in change.p])
    compared = []
    for i, (student, change) in enumerate(zip(students, changes, strict=True)):
        p_values, own = p_values[len(change.p) :], p_values[: len(change.p)]
        C = base.class_accuracy.shape[1]
        differences = {name: figures[name][i] for name in COMPARED}
        compared.append(Compared(student, differences, classes[i * C : (i + 1) * C], change._replace(p=own)))
    return compared


def _by_figure(
    students: Sequence[Student], base: Student, names: Sequence[str], teacher: Figures
) -> dict[str, list[Difference]]:
    """Return the differences by figure, for each student; all of them corrected together."""

    def compared(name: str, student: Student) -> Difference:
        gaps = [missing(each.figures, name, teacher) for each in (student, base)]
        refused = next(filter(None, [*gaps, refusal((student.row, base.row))]), "")
        if refused:
            return Difference(None, None, None, 0, refused)
        return difference(student.by_seed(name), base.by_seed(name), 1.0 if name in BOUNDED else math.inf)

    pairs = corrected([compared(name, student) for name in names for student in students])
    return {name: pairs[i * len(students) : (i + 1) * len(students)] for i, name in enumerate(names)}


def _by_class(student: Student, base: Student, labels: Labels) -> list[Difference]:
    """Return the differences in accuracy by class, not corrected, over the common seeds.

    A class is refused where fewer than `FEWEST_ERRORS` of its images are wrong in some seed of either.
    """
    lost = refusal((student.row, base.row))
    wrong = ~np.concatenate([student.correct, base.correct]).all(axis=0)
    errors = np.bincount(labels[wrong], minlength=base.class_accuracy.shape[1])
    ours, theirs = (
        [dict(zip(network.row.seeds, map(float, column), strict=True)) for column in network.class_accuracy.T]
        for network in (student, base)
    )
    return [
        difference(o, t, limit=1.0)
        if few >= FEWEST_ERRORS and not lost
        else Difference(None, None, None, 0, lost or too_few(int(few)))
        for o, t, few in zip(ours, theirs, errors, strict=True)
    ]


def _changes(base: Student, student: Student, labels: Labels) -> Changes:
    fixed, broken = flipped(base.correct, student.correct), flipped(student.correct, base.correct)
    k = min(base.n // 2, student.n, 4)  # `most` of up to four seeds are all of them
    ours = dict(zip(student.row.seeds, student.correct, strict=True))
    theirs = dict(zip(base.row.seeds, base.correct, strict=True))
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]

    def ordered(images: NDArray[np.intp]) -> NDArray[np.intp]:
        gain = student.confidence(images, labels) - base.confidence(images, labels)
        return images[np.argsort(-np.abs(gain), kind="stable")]

    return Changes(
        ordered(fixed),
        ordered(broken),
        k,
        expected_flips(base.correct, student.correct, k) if k else 0.0,
        expected_flips(student.correct, base.correct, k) if k else 0.0,
        flips_by_seed(base.correct, k) if k else 0.0,
        [mcnemar(a.tolist(), b.tolist()) for a, b in pairs],
        [bool(a.sum() > b.sum()) for a, b in pairs],
    )
