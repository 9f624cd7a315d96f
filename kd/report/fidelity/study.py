"""Students and their teacher, compared image by image: runs with their predictions, made into one study."""

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
from kd.report.comparison import compare
from kd.report.fidelity.measures import (
    Answers,
    Figures,
    Floats,
    Labels,
    Logits,
    Mask,
    agreement,
    class_accuracy,
    correct,
    cross_fitted,
    expected_flips,
    flipped,
    flips_by_seed,
    measure,
    spread,
)
from kd.report.rows import Role, Row, Spread, role, summarize
from kd.report.statistics import Difference, corrected, difference, holm, mcnemar
from kd.runs import predictions, results
from kd.runs.predictions import Predictions
from kd.runs.results import Result

MOST = 8
"""Students that a page compares; it is for the final few, not for a sweep."""
TIES = 3
"""Images of which rounding may change the answer, beside one in a thousand."""
FAMILIES = (
    ("accuracy",),
    ("agreement", "kl"),
    ("agreement_wrong", "kl_scaled", "nll", "nll_scaled", "ece", "ece_scaled"),
)
"""The figures of which differences are tested. Those of a family are corrected together, as the page says.

Does the student gain, does it follow its teacher: these were asked first, and each has a family of its own, so that the
many figures of the third, which only look closer, do not hide the answer.
"""
COMPARED = tuple(name for family in FAMILIES for name in family)


# Reading


class Found(NamedTuple):
    """Finished runs and what their networks said."""

    results: list[Result]
    predictions: dict[int, Predictions]
    """By the identity of the result."""
    notes: list[str]
    """On what was left out."""


def collect(dirs: Iterable[Path]) -> Found:
    """Every finished run of a student below the directories that left its predictions, at any depth, links followed.

    As `kd.runs.results.collect` does, each file counts once, and directories called "report" are not searched. Raises
    UserError if a directory does not exist, or if no such run is found.
    """
    done: list[Result] = []
    said: dict[int, Predictions] = {}
    skipped: list[str] = []
    others: Counter[str] = Counter()
    for path in results.records(dirs):
        directory = path.parent
        try:
            result = results.read(path)
            if role(result) is Role.TEACHER:
                continue  # its students know what it said
            if result.status != "done":
                others[result.status] += 1
            elif not (directory / predictions.FILE).exists():
                others[f"without {predictions.FILE}"] += 1
            else:
                found = predictions.read(directory / predictions.FILE)
                _require_same(found, result)
                done.append(result)
                said[id(result)] = found
        except UserError as error:
            skipped.append(f"{directory}: {error}" if str(directory) not in str(error) else str(error))
    listed = ", ".join(f"{count} {what}" for what, count in sorted(others.items()))
    if not done:
        raise UserError(
            f"no finished run with its {predictions.FILE}: {'; '.join([listed or 'no runs', *skipped[:1]])}"
        )
    notes = [f"Runs left out: {listed}."] if listed else []
    return Found(done, said, [*notes, *(f"Skipped {reason}." for reason in skipped)])


def _require_same(found: Predictions, result: Result) -> None:
    right = float(found.correct.mean())
    if result.test_acc is not None and abs(right - result.test_acc) > 0.001 + TIES / len(found.labels):
        raise UserError(
            f"{100 * right:.2f} % of the predictions are right, the record says {100 * result.test_acc:.2f} %"
        )


# Students


class Student:
    """A row and what its networks said; all by seed, in the row's order."""

    def __init__(self, row: Row, said: Sequence[Answers], labels: Labels, teacher: Answers) -> None:
        self.row, self.said = row, said
        self.logits: list[Logits] = [one.logits for one in said]
        self.figures: list[Figures] = [measure(labels, one, teacher) for one in said]
        self.correct: Mask = np.array([correct(labels, one) for one in self.logits])
        self.class_accuracy: Floats = np.array([class_accuracy(labels, one) for one in self.logits])
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
        """One figure of each seed that has it."""
        values = {seed: getattr(one, name) for seed, one in zip(self.row.seeds, self.figures, strict=True)}
        return {seed: value for seed, value in values.items() if value is not None}

    @cached_property
    def between_seeds(self) -> float | None:
        """Mean agreement of two of its own seeds; None with one seed."""
        pairs = [(i, j) for i in range(self.n) for j in range(i)]
        return fmean(agreement(self.logits[i], self.logits[j]) or 0.0 for i, j in pairs) if pairs else None

    def answers(self, image: int) -> tuple[int, int]:
        """The class that most seeds name for an image, and how many do."""
        ((answer, times),) = Counter(int(one[image].argmax()) for one in self.logits).most_common(1)
        return answer, times

    def confidence(self, images: NDArray[np.intp], labels: Labels) -> Floats:
        """(len(images),), the probability of the true class, mean over seeds."""
        chosen = np.array([one[images] for one in self.logits], dtype=np.float64)
        mean: Floats = scipy.special.softmax(chosen, axis=2).mean(axis=0)
        return mean[np.arange(len(images)), labels[images]]


class Changes(NamedTuple):
    """Images of which a student and the baseline differ."""

    fixed: NDArray[np.intp]
    """Wrong in most seeds of the baseline, right in most of the student; the greatest change of confidence first."""
    broken: NDArray[np.intp]
    """The reverse."""
    k: int
    """Number of seeds in each of the sets that the next three compare; 0 where the baseline has but one."""
    fixed_k: float
    """Mean number fixed between k seeds of the baseline and k of the student."""
    broken_k: float
    by_seed_k: float
    """Between k seeds of the baseline and k others of it, either way."""
    p: list[float | None]
    """McNemar's of each common seed, corrected by Holm's method for all pairs of the study."""
    better: list[bool]
    """Whether the student has more images right than the baseline, by common seed."""


class Compared(NamedTuple):
    """A student, measured against the baseline."""

    student: Student
    differences: dict[str, Difference]
    """By figure, those of `COMPARED`."""
    classes: list[Difference]
    """In accuracy, by class."""
    changes: Changes


class Study(NamedTuple):
    """All that the page tells."""

    dataset: str
    labels: Labels
    teacher: str
    """What its network is called."""
    taught: Answers
    """By the teacher."""
    teacher_figures: Figures
    baseline: Student
    compared: list[Compared]
    notes: list[str]

    @property
    def students(self) -> list[Student]:
        """The baseline first."""
        return [self.baseline, *(one.student for one in self.compared)]


def study(found: Found, baseline: str | None = None) -> Study:
    """The students compared with a baseline, and all of them with the one teacher.

    Args:
        baseline: label or method of a row; None for the only student trained on labels alone.

    Raises:
        UserError: if there is not one data set, one teacher and one baseline, or nothing to compare with it, or more
            than a page can show.
    """
    summary = summarize(found.results)
    rows = [row for row in summary.rows if row.role is not Role.TEACHER]
    if len({row.first.dataset for row in rows}) > 1:
        raise UserError(f"runs on several data sets, {summary.datasets}: give the directories of one")
    if len(rows) > MOST:
        raise UserError(f"{len(rows)} rows, too many to look at one by one: give the directories of at most {MOST}")
    base, others = _against(rows, baseline)
    labels, name, logits = _teacher(rows, found)
    taught = cross_fitted(labels, logits)

    def student(row: Row) -> Student:
        said = [cross_fitted(labels, found.predictions[id(run)].logits) for run in row.runs]
        return Student(row, said, labels, taught)

    reference = student(base)
    compared = _compared(reference, [student(row) for row in others], labels)
    notes = [*found.notes, *summary.left_out]
    return Study(base.first.dataset, labels, name, taught, measure(labels, taught), reference, compared, notes)


def _against(rows: Sequence[Row], name: str | None) -> tuple[Row, list[Row]]:
    compared = compare(rows, name)
    if compared:
        return compared[0].baseline, [one.row for one in compared]
    alone = [row.label for row in rows if row.role is Role.ALONE]
    if name is None and len(alone) != 1:
        raise UserError(
            f"{', '.join(alone)}: name the one to compare with by --baseline"
            if alone
            else "no student trained on labels alone to compare with; train one (method=standard) or name a --baseline"
        )
    raise UserError("only one row of students: nothing to compare it with")


def _teacher(rows: Sequence[Row], found: Found) -> tuple[Labels, str, Logits]:
    """The test labels, and the one teacher's name and logits."""
    runs = [run for row in rows for run in row.runs]
    first = found.predictions[id(runs[0])]
    for run in runs:
        said = found.predictions[id(run)]
        if said.logits.shape != first.logits.shape or not np.array_equal(said.labels, first.labels):
            raise UserError(f"the runs were not tested on the same images: {run.method} seed={run.seed} differs")
    taught = [run for run in runs if found.predictions[id(run)].teacher_logits is not None]
    if not taught:
        raise UserError("no run with a teacher: none of the predictions hold those of one")
    ids = {run.teacher_id for run in taught}
    if len(ids) > 1:
        raise UserError(f"{len(ids)} different teachers: give the directories of one teacher's students")
    logits = found.predictions[id(taught[0])].teacher_logits
    if logits is None or logits.shape != first.logits.shape:
        raise UserError("the teacher's predictions are not of the same images as the students'")
    return first.labels, taught[0].teacher or "teacher", logits


def _compared(base: Student, students: Sequence[Student], labels: Labels) -> list[Compared]:
    """Of all students; figures corrected by family, classes together, seeds together."""
    figures = {name: found for family in FAMILIES for name, found in _by_figure(students, base, family).items()}
    classes = corrected([one for s in students for one in _by_class(s, base)])
    changes = [_changes(base, s, labels) for s in students]
    p_values = holm([p for one in changes for p in one.p])
    found = []
    for i, (one, change) in enumerate(zip(students, changes, strict=True)):
        p_values, here = p_values[len(change.p) :], p_values[: len(change.p)]
        C = base.class_accuracy.shape[1]
        named = {name: figures[name][i] for name in COMPARED}
        found.append(Compared(one, named, classes[i * C : (i + 1) * C], change._replace(p=here)))
    return found


def _by_figure(students: Sequence[Student], base: Student, names: Sequence[str]) -> dict[str, list[Difference]]:
    """By name, for each student; all of them corrected together."""
    pairs = corrected([difference(s.by_seed(name), base.by_seed(name)) for name in names for s in students])
    return {name: pairs[i * len(students) : (i + 1) * len(students)] for i, name in enumerate(names)}


def _by_class(student: Student, base: Student) -> list[Difference]:
    ours, theirs = (
        [dict(zip(one.row.seeds, map(float, column), strict=True)) for column in one.class_accuracy.T]
        for one in (student, base)
    )
    return [
        difference({s: v for s, v in o.items() if v == v}, {s: v for s, v in t.items() if v == v})
        for o, t in zip(ours, theirs, strict=True)
    ]


def _changes(base: Student, student: Student, labels: Labels) -> Changes:
    fixed, broken = flipped(base.correct, student.correct), flipped(student.correct, base.correct)
    k = min(base.n // 2, student.n, 4)  # of so many, all are most of them, as in `flipped`
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
        [mcnemar(one.tolist(), other.tolist()) for one, other in pairs],
        [bool(one.sum() > other.sum()) for one, other in pairs],
    )
