"""Rows of a report: one per configuration, over its seeds."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from statistics import fmean, stdev
from typing import NamedTuple

from kd.errors import UserError
from kd.report.knobs import knob_names, knob_text, natural, sort_key
from kd.report.statistics import Interval, binomial_interval, t_interval
from kd.runs.results import Result


class Role(IntEnum):
    """The network that a record describes, in the order of the rows."""

    TEACHER = 0
    ALONE = 1
    """A student trained on labels alone."""
    DISTILLED = 2
    """A student taught by a method: by a teacher, or without one, as in mutual learning."""


def role(result: Result) -> Role:
    """Return the role by what the record counts and says of teaching; no method is known here by its name."""
    if result.teacher_params is not None and result.student_params is None:
        return Role.TEACHER
    taught = result.teacher_params is not None if result.taught is None else result.taught
    return Role.DISTILLED if taught else Role.ALONE


class Spread(NamedTuple):
    """Mean and spread over n seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None with n = 1."""


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed only. A figure that some of the runs lack is None: never a mean over the rest."""

    pieces: tuple[str, ...]
    """What distinguishes the row from other rows of its method: "T=4", "student.scale=8"."""
    runs: tuple[Result, ...]
    """Finished runs, one per seed, by seed."""
    teacher_acc: float | None
    """Test accuracy of the teacher that the row's retention refers to."""

    @property
    def label(self) -> str:
        return " ".join((self.first.method, *self.pieces))

    @property
    def first(self) -> Result:
        """The first run, for all that the runs have in common."""
        return self.runs[0]

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def role(self) -> Role:
        return role(self.first)

    @property
    def network(self) -> str | None:
        return self.first.teacher if self.role is Role.TEACHER else self.first.student

    @property
    def params(self) -> int | None:
        return self.first.teacher_params if self.role is Role.TEACHER else self.first.student_params

    @cached_property
    def test_acc(self) -> Spread | None:
        return _spread(run.test_acc for run in self.runs)

    @cached_property
    def test_interval(self) -> Interval | None:
        """The 95 % interval of the mean test accuracy over seeds."""
        return t_interval(_complete(run.test_acc for run in self.runs))

    @cached_property
    def val_acc(self) -> Spread | None:
        return _spread(run.val_acc for run in self.runs)

    @property
    def test_nll(self) -> float | None:
        return _mean(run.test_nll for run in self.runs)

    @property
    def test_ece(self) -> float | None:
        return _mean(run.test_ece for run in self.runs)

    @property
    def agreement(self) -> float | None:
        return _mean(run.agreement for run in self.runs)

    @property
    def train_seconds(self) -> float | None:
        return _mean(run.train_seconds for run in self.runs)

    @property
    def retention(self) -> float | None:
        """Mean test accuracy divided by the teacher's."""
        return self.test_acc.mean / self.teacher_acc if self.test_acc and self.teacher_acc else None


class Summary(NamedTuple):
    """All rows, and what a reader must know about them."""

    rows: list[Row]
    """By data set; teachers, then students trained on labels alone, then those that a method taught; then by method
    and knobs."""
    explanations: list[str]
    """How the figures are to be read; one sentence or two each."""
    left_out: list[str]
    """What is not in the rows; one sentence each."""

    @property
    def notes(self) -> list[str]:
        return [*self.explanations, *self.left_out]

    @property
    def datasets(self) -> str:
        return ", ".join(dict.fromkeys(row.first.dataset for row in self.rows))


def summarize(results: Iterable[Result], skipped: Sequence[str] = ()) -> Summary:
    """Put the finished runs among `results` into rows; the notes also name the records that were `skipped`.

    Raises:
        UserError: if no run is finished.
    """
    results = list(results)
    done = [result for result in results if result.status == "done"]
    unfinished = Counter(result.status for result in results if result.status != "done")
    listed = ", ".join(f"{count} {status}" for status, count in sorted(unfinished.items()))
    if not done:
        raise UserError(f"no finished run to report on: {listed or 'no runs at all'}")
    groups = _groups(done)
    rows = _rows(groups)
    repeats = len(done) - sum(map(len, groups))
    left_out = _left_out(unfinished.total(), listed, repeats)
    return Summary(rows, _explanations(rows), [*left_out, *(f"Skipped {reason}" for reason in skipped)])


def _groups(done: Iterable[Result]) -> list[tuple[Result, ...]]:
    """Group runs that differ by their seed only, in the rows' order. Of several with one seed, the latest stays.

    A repeated seed is one run, whatever the rest of its record: it must not count twice towards n.
    """
    groups: dict[object, dict[int, Result]] = defaultdict(dict)
    for run in sorted(done, key=lambda run: run.date):
        groups[run.dataset, run.group or _settings(run)][run.seed] = run
    by_seed = [tuple(runs[seed] for seed in sorted(runs)) for runs in groups.values()]
    names = knob_names(runs[0] for runs in by_seed)
    return sorted(by_seed, key=lambda runs: _order(runs[0], names))


def _settings(run: Result) -> tuple[object, ...]:
    knobs = frozenset((name, tuple(value) if isinstance(value, list) else value) for name, value in run.knobs.items())
    return (run.method, knobs, run.student, run.teacher, run.dataset, run.epochs, run.variant)


def _order(run: Result, names: Sequence[str]) -> tuple[object, ...]:
    knobs = [sort_key(run.knobs.get(name)) for name in names]
    nets = (run.student or "", run.teacher or "")
    return (run.dataset, role(run), natural(run.method), *knobs, natural(run.variant), *nets, run.epochs)


def _rows(groups: Sequence[tuple[Result, ...]]) -> list[Row]:
    firsts = [runs[0] for runs in groups]
    pieces: dict[int, tuple[str, ...]] = {}
    for method in {first.method for first in firsts}:
        places = [i for i, first in enumerate(firsts) if first.method == method]
        pieces.update(zip(places, _pieces([firsts[i] for i in places]), strict=True))
    known = {first.dataset: _known_teacher(groups, first.dataset) for first in firsts}
    return [Row(pieces[i], runs, _teacher_acc(runs, known[runs[0].dataset])) for i, runs in enumerate(groups)]


def _pieces(firsts: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return what distinguishes rows of one method: no more than knobs and overrides, if these are enough."""
    described: list[list[str]] = [[] for _ in firsts]
    for describe in (_knobs, _context, _hash):
        described = [so_far + describe(first) for so_far, first in zip(described, firsts, strict=True)]
        common = set(described[0]).intersection(*described)
        apart = [tuple(piece for piece in pieces if piece not in common) for pieces in described]
        if len(set(apart)) == len(apart):
            break
    return apart


def _knobs(run: Result) -> list[str]:
    return [f"{name}={knob_text(run.knobs[name])}" for name in knob_names([run])] + run.variant.split()


def _context(run: Result) -> list[str]:
    return [f"student={run.student}", f"teacher={run.teacher}", f"data={run.dataset}", f"epochs={run.epochs}"]


def _hash(run: Result) -> list[str]:
    return [f"#{run.group[:8]}"]


def _known_teacher(groups: Iterable[tuple[Result, ...]], dataset: str) -> float | None:
    """Return the teacher's accuracy for students that had none of their own; None if there is not exactly one.

    It is that of the distilled students' teacher, so that all retentions of a table mean the same; else of the
    teacher's rows.
    """
    here = [runs for runs in groups if runs[0].dataset == dataset]
    own = [_mean(run.test_acc for run in runs) for runs in here if role(runs[0]) is Role.TEACHER]
    distilled = [run for runs in here for run in runs if role(run) is Role.DISTILLED]
    had = [run.teacher_test_acc for run in distilled if run.teacher_params is not None]
    # Six digits: it is measured anew for each run, in whatever precision the device has.
    known = {round(acc, 6): acc for acc in had or own if acc is not None}
    return next(iter(known.values())) if len(known) == 1 else None


def _teacher_acc(runs: Sequence[Result], known: float | None) -> float | None:
    if role(runs[0]) is Role.TEACHER:
        return None
    if any(run.teacher_test_acc is not None for run in runs):
        return _mean(run.teacher_test_acc for run in runs)
    return known


def _mean(values: Iterable[float | None]) -> float | None:
    every = _complete(values)
    return fmean(every) if every else None


def _spread(values: Iterable[float | None]) -> Spread | None:
    every = _complete(values)
    return Spread(fmean(every), stdev(every) if len(every) > 1 else None) if every else None


def _complete(values: Iterable[float | None]) -> list[float]:
    """Return all values, or none if one is unknown."""
    every = list(values)
    known = [value for value in every if value is not None]
    return known if len(known) == len(every) else []


def _explanations(rows: Sequence[Row]) -> list[str]:
    notes = [
        "Test figures are those of the last epoch's weights; the test split was never used to select anything.",
        "n is the number of seeds; ± is the sample standard deviation over them (n - 1), the rest are means.",
    ]
    if any(row.test_interval for row in rows):
        notes.append("The 95 % interval is that of the mean test accuracy over seeds (Student's t).")
    if any(row.n == 1 for row in rows):
        notes.append("n = 1 is one seed: no ranking can be read from this.")
    precision = _precision_note(rows)
    if precision:
        notes.append(precision)
    if any(row.retention for row in rows):
        notes.append(
            "Retention is the test accuracy divided by the teacher's; a student without a teacher of its own "
            "is measured against the one teacher of the others, where there is exactly one."
        )
    return notes


def _precision_note(rows: Sequence[Row]) -> str:
    """Return a note on the widest binomial interval among the rows; "" if the number of test images is unknown."""
    known = [(row.first.test_images, row.test_acc.mean) for row in rows if row.first.test_images and row.test_acc]
    if not known:
        return ""

    def reach(images: int, acc: float) -> float:
        interval = binomial_interval(round(acc * images), images)
        return (interval.high - interval.low) / 2

    images, acc = max(known, key=lambda pair: reach(*pair))
    return (
        f"{images:,} test images tell an accuracy of {100 * acc:.2f} % to within about ±{100 * reach(images, acc):.2f} "
        "points of what it is on all images of their kind (95 %, binomial); the spreads over seeds do not tell of that."
    )


def _left_out(unfinished: int, listed: str, repeats: int) -> list[str]:
    notes = []
    if unfinished:
        notes.append(f"{_count(unfinished, 'run')} not counted: {listed}.")
    if repeats:
        notes.append(f"{_count(repeats, 'repeat')} of a run (same configuration and seed) left out: the latest counts.")
    return notes


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
