"""Rows of a report: one per configuration, over its seeds."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from statistics import fmean, median, stdev
from typing import NamedTuple

from kd.report.knobs import knob_names, knob_text, natural, sort_key
from kd.report.statistics import Interval, t_interval
from kd.runs.results import Result, start_of

TELLING = 0.005
"""Difference from the accuracy from which on the mean of the classes' accuracies is shown."""
MOST_PIECES = 12
"""Pieces of a row's name."""


class Role(IntEnum):
    """The network that a record describes, in the order of the rows."""

    TEACHER = 0
    ALONE = 1
    """A student trained on labels alone."""
    DISTILLED = 2
    """A student taught by a method: by a teacher, or without one, as in mutual learning."""


ORDER_SEED = "data.order_seed"
"""The setting by which seeds have the order of the images in common."""


def role(result: Result) -> Role:
    """Return the role by what the record counts and says of teaching; no method is known here by its name."""
    if result.teacher_params is not None and result.student_params is None:
        return Role.TEACHER
    taught = result.teacher_params is not None if result.taught is None else result.taught
    return Role.DISTILLED if taught else Role.ALONE


def teacher_name(network: str | None) -> str:
    """Return what a teacher is called beside single ones: "3 x cnn32" is the "ensemble of 3 teachers"."""
    parts = (network or "").rpartition(" > ")[2].split(" + ")  # of a chain the last, which taught
    count = sum(int(found[1]) if (found := re.match(r"(\d+) x ", part)) else 1 for part in parts)
    return f"ensemble of {count} teachers" if count > 1 else "teacher"


class Spread(NamedTuple):
    """Mean and spread over n seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None with n = 1."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Return mean and spread of values; None without any, or if one is unknown."""
        every = _complete(values)
        return cls(fmean(every), stdev(every) if len(every) > 1 else None) if every else None


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed only. A figure that some of the runs lack is None: never a mean over the rest."""

    pieces: tuple[str, ...]
    """What distinguishes the row from others of its method on the data set: "T=4", "student.scale=8"."""
    runs: tuple[Result, ...]
    """Finished runs, one per seed, by seed."""
    teacher_acc: float | None
    """Test accuracy of the teacher that the row's retention refers to."""
    diverged: int = 0
    """Further runs of these settings, which diverged and are in no figure."""

    def of(self, seeds: Iterable[int]) -> "Row":
        """Return the row with the runs of these seeds alone."""
        chosen = set(seeds)
        return replace(self, runs=tuple(run for run in self.runs if run.seed in chosen))

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

    @property
    def multiply_adds(self) -> int | None:
        return self.first.multiply_adds

    @cached_property
    def test_acc(self) -> Spread | None:
        return Spread.of(run.test_acc for run in self.runs)

    @cached_property
    def test_interval(self) -> Interval | None:
        """The 95 % interval of the mean test accuracy over seeds; None of fewer seeds than it needs."""
        interval = t_interval(_complete(run.test_acc for run in self.runs))
        return interval and interval.clipped(0.0, 1.0)

    @cached_property
    def val_acc(self) -> Spread | None:
        return Spread.of(run.val_acc for run in self.runs)

    @property
    def test_nll(self) -> float | None:
        return _mean(run.test_nll for run in self.runs)

    @property
    def test_ece(self) -> float | None:
        return _mean(run.test_ece for run in self.runs)

    @cached_property
    def balanced_acc(self) -> Spread | None:
        """The mean of the classes' accuracies."""
        return Spread.of(run.test_balanced_acc for run in self.runs)

    @property
    def also_tested(self) -> list[str]:
        """Names of the further test sets that all runs were tested on, without those of parts."""
        return [name for name in self.first.also_test_acc if "/" not in name and self.also_test_acc(name)]

    def also_test_acc(self, name: str) -> Spread | None:
        return Spread.of(run.also_test_acc.get(name) for run in self.runs)

    def also_test_nll(self, name: str) -> float | None:
        return _mean(run.also_test_nll.get(name) for run in self.runs)

    @property
    def agreement(self) -> float | None:
        return _mean(run.agreement for run in self.runs)

    @property
    def train_seconds(self) -> float | None:
        """The median: what only one of the runs does, such as storing the teacher's logits, is not in it."""
        every = _complete(run.train_seconds for run in self.runs)
        return median(every) if every else None

    @property
    def own_teacher(self) -> str | None:
        """Name of the teacher that taught these runs, as in "ensemble of 3 teachers"; None where none did."""
        if self.role is Role.TEACHER or all(run.teacher_test_acc is None for run in self.runs):
            return None
        return teacher_name(self.first.teacher)

    @property
    def trial(self) -> str | None:
        """Why its runs are no whole ones; None for whole ones."""
        return self.first.trial

    @property
    def retention(self) -> float | None:
        """Mean test accuracy divided by the teacher's."""
        return self.test_acc.mean / self.teacher_acc if self.test_acc and self.teacher_acc else None


def titled(rows: Sequence[Row]) -> str:
    """Name the data of rows of one data set in a title, with what makes trials of them."""
    trials = list(dict.fromkeys(row.trial for row in rows if row.trial))
    more = f" and {len(trials) - 1} other kinds of trial" if len(trials) > 1 else ""
    return ", ".join(dict.fromkeys(row.first.dataset for row in rows)) + (
        f" (trial: {trials[0]}{more})" if trials else ""
    )


def also_tested(rows: Iterable[Row]) -> list[str]:
    """Return the names of the further test sets of some rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.also_tested))


OWN = ("test", "val", "balanced", "teacher")
"""What tables call figures of the data set's own: a further test set of such a name would stand in their place."""


def also_named(name: str) -> str:
    """Return what tables call a further test set: its name; "also test" for one that has a name of `OWN`."""
    return f"also {name}" if name in OWN else name


def show_balanced(rows: Iterable[Row]) -> bool:
    """Return whether the mean of the classes' accuracies tells something else than the accuracy: by `TELLING`."""
    known = [(row.balanced_acc.mean, row.test_acc.mean) for row in rows if row.balanced_acc and row.test_acc]
    return any(abs(balanced - acc) >= TELLING for balanced, acc in known)


def in_rows(done: Iterable[Result], diverged: Iterable[Result] = ()) -> list[Row]:
    """Put finished runs into rows: by data set, teachers, students alone, distilled ones, then by method and knobs.

    Args:
        done: runs that count.
        diverged: runs, finished or not, that count in no figure, only in their row's number of such. Of runs with the
            same seed the latest counts, whichever it is.
    """
    # A repeated seed is one run, whatever the rest of its record: it must not count twice towards n.
    # Not by the text alone: machines may be in other time zones, and clocks are put back in autumn.
    by_date = sorted([*done, *diverged], key=lambda run: (start_of(run) or 0.0, run.date))
    latest = {(_kind(run), run.seed): run for run in by_date}
    lost = Counter(kind for (kind, _), run in latest.items() if run.diverged)
    groups = _groups(run for run in latest.values() if not run.diverged)
    firsts = [runs[0] for runs in groups]
    pieces: dict[int, tuple[str, ...]] = {}
    kinds = [(first.dataset, first.method) for first in firsts]
    for kind in set(kinds):
        places = [i for i, other in enumerate(kinds) if other == kind]
        pieces.update(zip(places, _pieces([firsts[i] for i in places]), strict=True))
    known = {dataset: _known_teacher(groups, dataset) for dataset in {first.dataset for first in firsts}}
    return [
        Row(pieces[i], runs, _teacher_acc(runs, known[runs[0].dataset]), lost[_kind(runs[0])])
        for i, runs in enumerate(groups)
    ]


def _groups(done: Iterable[Result]) -> list[tuple[Result, ...]]:
    """Group runs that differ by their seed only, each seed once, in the rows' order."""
    groups: dict[object, dict[int, Result]] = defaultdict(dict)
    for run in done:
        groups[_kind(run)][run.seed] = run
    by_seed = [tuple(runs[seed] for seed in sorted(runs)) for runs in groups.values()]
    names = knob_names(runs[0] for runs in by_seed)
    return sorted(by_seed, key=lambda runs: _order(runs[0], names))


def _kind(run: Result) -> object:
    """What the runs of a row have in common."""
    # A group's hash is that of seed 0, which an order of seed 0 that was typed does not tell from one of its own.
    typed = any(override.startswith(f"{ORDER_SEED}=") for override in overrides(run))
    return run.dataset, run.trial, run.group or settings(run), typed


def settings(run: Result) -> tuple[object, ...]:
    """Return the settings of a run without its seed, such that equal ones can be compared and hashed."""
    knobs = frozenset((name, tuple(value) if isinstance(value, list) else value) for name, value in run.knobs.items())
    return (run.method, knobs, run.student, run.teacher, run.dataset, run.epochs, run.variant)


def _order(run: Result, names: Sequence[str]) -> tuple[object, ...]:
    knobs = [sort_key(run.knobs.get(name)) for name in names]
    nets = (run.student or "", run.teacher or "")
    return (run.dataset, role(run), natural(run.method), *knobs, natural(run.variant), *nets, run.epochs)


def _pieces(firsts: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return what distinguishes rows of one method and data set: no more than knobs and overrides, if possible."""
    described: list[list[str]] = [[] for _ in firsts]
    for describe in (knobs_and_overrides, _context, _hash):
        described = [so_far + describe(first) for so_far, first in zip(described, firsts, strict=True)]
        common = set(described[0]).intersection(*described)
        apart = [tuple(piece for piece in pieces if piece not in common) for pieces in described]
        if len(set(apart)) == len(apart):
            break
    # The last may be the hash, which no other row has.
    return [p if len(p) <= MOST_PIECES else (*p[: MOST_PIECES - 2], "...", p[-1]) for p in apart]


def knobs_and_overrides(run: Result) -> list[str]:
    """Return the knobs and overrides of a run, each as on a command line: "T=4"."""
    return [f"{name}={knob_text(run.knobs[name])}" for name in knob_names([run])] + overrides(run)


def overrides(run: Result) -> list[str]:
    """Return the overrides of a run that are no knobs; a value in brackets may have blanks: "chain=[{scale: 8}]"."""
    found: list[str] = []
    for word in run.variant.split():
        if found and sum(map(found[-1].count, "[{")) > sum(map(found[-1].count, "]}")):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def _context(run: Result) -> list[str]:
    trial = [f"trial={run.trial}"] if run.trial else []
    return [f"student={run.student}", f"teacher={run.teacher}", f"epochs={run.epochs}", *trial]


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


def _complete(values: Iterable[float | None]) -> list[float]:
    """Return all values, or none if one is unknown."""
    every = list(values)
    known = [value for value in every if value is not None]
    return known if len(known) == len(every) else []
