"""Rows of a report: one per configuration, over its seeds."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, NamedTuple

from kd.errors import UserError
from kd.report.knobs import knob_names, knob_text, natural, sort_key
from kd.report.statistics import FEWEST, LEVEL, Interval, binomial_interval, t_interval
from kd.report.text import fewer, shortened, visible
from kd.runs.results import Knob, Result

MOST_NOTES = 5
"""Notes of one kind, such as on records that cannot be read."""
MOST_WARNINGS = 20
MOST_OVERRIDES = 100
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


def role(result: Result) -> Role:
    """Return the role by what the record counts and says of teaching; no method is known here by its name."""
    if result.teacher_params is not None and result.student_params is None:
        return Role.TEACHER
    taught = result.teacher_params is not None if result.taught is None else result.taught
    return Role.DISTILLED if taught else Role.ALONE


def teacher_name(network: str | None) -> str:
    """Return what a teacher is called beside single ones: "3 x cnn32" is the "ensemble of 3 teachers"."""
    ensemble = re.match(r"(\d+) x ", network or "")
    return f"ensemble of {ensemble[1]} teachers" if ensemble else "teacher"


class Spread(NamedTuple):
    """Mean and spread over n seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None with n = 1."""


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed only. A figure that some of the runs lack is None: never a mean over the rest."""

    pieces: tuple[str, ...]
    """What distinguishes the row from others of its method on the data set: "T=4", "student.scale=8"."""
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
        """The 95 % interval of the mean test accuracy over seeds; None of fewer seeds than it needs."""
        interval = t_interval(_complete(run.test_acc for run in self.runs))
        return interval and interval.clipped(0.0, 1.0)

    @cached_property
    def val_acc(self) -> Spread | None:
        return _spread(run.val_acc for run in self.runs)

    @property
    def test_nll(self) -> float | None:
        return _mean(run.test_nll for run in self.runs)

    @property
    def test_ece(self) -> float | None:
        return _mean(run.test_ece for run in self.runs)

    @cached_property
    def balanced_acc(self) -> Spread | None:
        """The mean of the classes' accuracies."""
        return _spread(run.test_balanced_acc for run in self.runs)

    @property
    def also_tested(self) -> list[str]:
        """Names of the further test sets that all runs were tested on, without those of parts."""
        return [name for name in self.first.also_test_acc if "/" not in name and self.also_test_acc(name)]

    def also_test_acc(self, name: str) -> Spread | None:
        return _spread(run.also_test_acc.get(name) for run in self.runs)

    def also_test_nll(self, name: str) -> float | None:
        return _mean(run.also_test_nll.get(name) for run in self.runs)

    @property
    def agreement(self) -> float | None:
        return _mean(run.agreement for run in self.runs)

    @property
    def train_seconds(self) -> float | None:
        return _mean(run.train_seconds for run in self.runs)

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


class Summary(NamedTuple):
    """All rows, and what a reader must know about them."""

    rows: list[Row]
    """By data set; teachers, then students trained on labels alone, then those that a method taught; then by method
    and knobs."""
    explanations: list[str]
    """How the figures are to be read; one sentence or two each."""
    left_out: list[str]
    """What is not in the rows, or that they are trials; one sentence each."""
    warnings: list[str]
    """Warnings of the records, each once, with the runs that they concern."""

    @property
    def notes(self) -> list[str]:
        return [*self.left_out, *self.warnings, *self.explanations]

    @property
    def datasets(self) -> str:
        return _joined(dict.fromkeys(row.first.dataset for row in self.rows), ", ")

    def by_dataset(self) -> "list[Summary]":
        """Return a summary of the rows of each data set, with the notes on all of them."""
        rows: dict[str, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(row.first.dataset, []).append(row)
        return [self._replace(rows=group) for group in rows.values()]


def titled(rows: Sequence[Row]) -> str:
    """Name the data of rows of one data set in a title, with what makes trials of them."""
    trials = list(dict.fromkeys(row.trial for row in rows if row.trial))
    more = f" and {len(trials) - 1} other kinds of trial" if len(trials) > 1 else ""
    return ", ".join(dict.fromkeys(row.first.dataset for row in rows)) + (
        f" (trial: {trials[0]}{more})" if trials else ""
    )


def summarize(results: Iterable[Result], skipped: Sequence[str] = ()) -> Summary:
    """Put the finished runs among `results` into rows; the notes also name the records that were `skipped`.

    Trials are left out unless there is nothing else, and so are runs that diverged: both would spoil means.

    Raises:
        UserError: if no run is finished, or all that are diverged.
    """
    results = prepared(results)
    done = [result for result in results if result.status == "done"]
    unfinished = Counter(result.status for result in results if result.status != "done")
    listed = ", ".join(f"{count} {status}" for status, count in sorted(unfinished.items()))
    if not done:
        raise UserError(f"no finished run to report on: {listed or 'no runs at all'}")
    trials = [run for run in done if run.trial]
    chosen = [run for run in done if not run.trial] or trials
    sound = [run for run in chosen if not run.diverged]
    if not sound:
        raise UserError(f"no run to report on: {_count(len(chosen), 'run')} diverged, {_named(chosen)}; try a lower lr")
    groups = _groups(sound)
    rows = _rows(groups)
    kinds = Counter(run.trial for run in trials)
    if chosen is trials:
        left_out = [f"Trial runs only, whose figures are not those of whole runs: {_joined(map(str, kinds), '; ')}."]
    else:
        left_out = [f"{_count(number, 'trial run')} left out: {why}." for why, number in kinds.items()]
        left_out = fewer(left_out, MOST_NOTES, "kinds of trial left out")
    left_out += _left_out(unfinished.total(), listed, len(sound) - sum(map(len, groups)))
    diverged = [run for run in chosen if run.diverged]
    if diverged:
        left_out.append(f"{_count(len(diverged), 'diverged run')} left out, in no mean: {_named(diverged)}.")
    left_out += skipped_notes(skipped)
    return Summary(rows, _explanations(rows), left_out, _warnings(rows, diverged))


def skipped_notes(reasons: Sequence[str]) -> list[str]:
    """Return a note for each of the first records that cannot be read, and one on how many more there are."""
    notes = [f"Skipped {shortened(visible(reason), 300)}" for reason in reasons]
    return fewer(notes, MOST_NOTES, "records or directories skipped")


def prepared(results: Iterable[Result]) -> list[Result]:
    """Return the records, in order, as a report shows them: texts visible, names shortened, trials marked as such.

    In records of older versions, a trial is a run that was tested on fewer images than another on the same data. A
    record that needs no change is returned as it is.
    """
    results = list(results)
    total: dict[str, int] = {}
    for run in results:
        total[run.data_id] = max(total.get(run.data_id, 0), run.test_images or 0, run.test_total or 0)
    return [_prepared(run, total[run.data_id] if run.data_id else run.test_total or 0) for run in results]


def _prepared(run: Result, total: int) -> Result:
    texts = {name: visible(value) for name, value in vars(run).items() if isinstance(value, str)}
    texts |= {name: shortened(texts[name]) for name in _NAMES if name in texts}
    texts["variant"] = " ".join(map(shortened, texts["variant"].split(" ")[:MOST_OVERRIDES]))
    changes: dict[str, Any] = {name: text for name, text in texts.items() if text != getattr(run, name)}
    knobs = {shortened(visible(name)): _visible(value) for name, value in run.knobs.items()}
    changes |= {"knobs": knobs} if knobs != run.knobs else {}
    for field in ("also_test_acc", "also_test_nll"):
        figures = {shortened(visible(name)): value for name, value in getattr(run, field).items()}
        changes |= {field: figures} if figures != getattr(run, field) else {}
    warnings = [shortened(visible(warning), 500) for warning in run.warnings]
    changes |= {"warnings": warnings} if warnings != run.warnings else {}
    if run.trial is None and run.test_images is not None and run.test_images < total:
        changes["trial"] = f"tested on {run.test_images:,} of {total:,} images"
    return replace(run, **changes) if changes else run


_NAMES = ("method", "student", "teacher", "dataset", "trial")


def _visible(value: Knob) -> Knob:
    if isinstance(value, list):
        return [visible(item) if isinstance(item, str) else item for item in value]
    return visible(value) if isinstance(value, str) else value


def _groups(done: Iterable[Result]) -> list[tuple[Result, ...]]:
    """Group runs that differ by their seed only, in the rows' order. Of several with one seed, the latest stays.

    A repeated seed is one run, whatever the rest of its record: it must not count twice towards n.
    """
    groups: dict[object, dict[int, Result]] = defaultdict(dict)
    for run in sorted(done, key=lambda run: run.date):
        groups[run.dataset, run.trial, run.group or _settings(run)][run.seed] = run
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
    kinds = [(first.dataset, first.method) for first in firsts]
    for kind in set(kinds):
        places = [i for i, other in enumerate(kinds) if other == kind]
        pieces.update(zip(places, _pieces([firsts[i] for i in places]), strict=True))
    known = {first.dataset: _known_teacher(groups, first.dataset) for first in firsts}
    return [Row(pieces[i], runs, _teacher_acc(runs, known[runs[0].dataset])) for i, runs in enumerate(groups)]


def _pieces(firsts: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return what distinguishes rows of one method and data set: no more than knobs and overrides, if possible."""
    described: list[list[str]] = [[] for _ in firsts]
    for describe in (_knobs, _context, _hash):
        described = [so_far + describe(first) for so_far, first in zip(described, firsts, strict=True)]
        common = set(described[0]).intersection(*described)
        apart = [tuple(piece for piece in pieces if piece not in common) for pieces in described]
        if len(set(apart)) == len(apart):
            break
    # The last may be the hash, which no other row has.
    return [p if len(p) <= MOST_PIECES else (*p[: MOST_PIECES - 2], "...", p[-1]) for p in apart]


def _knobs(run: Result) -> list[str]:
    return [f"{name}={knob_text(run.knobs[name])}" for name in knob_names([run])] + run.variant.split()


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


def _spread(values: Iterable[float | None]) -> Spread | None:
    every = _complete(values)
    return Spread(fmean(every), stdev(every) if len(every) > 1 else None) if every else None


def _complete(values: Iterable[float | None]) -> list[float]:
    """Return all values, or none if one is unknown."""
    every = list(values)
    known = [value for value in every if value is not None]
    return known if len(known) == len(every) else []


def also_tested(rows: Iterable[Row]) -> list[str]:
    """Return the names of the further test sets of some rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.also_tested))


def show_balanced(rows: Iterable[Row]) -> bool:
    """Return whether the mean of the classes' accuracies tells something else than the accuracy: by `TELLING`."""
    known = [(row.balanced_acc.mean, row.test_acc.mean) for row in rows if row.balanced_acc and row.test_acc]
    return any(abs(balanced - acc) >= TELLING for balanced, acc in known)


def _explanations(rows: Sequence[Row]) -> list[str]:
    notes = [
        "Test figures are those of the last epoch's weights; the test split was never used to select anything.",
        "n is the number of seeds; ± is the sample standard deviation over them (n - 1), the rest are means.",
    ]
    if any(row.test_interval for row in rows):
        notes.append(
            f"The {100 * LEVEL:.0f} % interval is that of the mean test accuracy over seeds (Student's t, within 0 to "
            f"100 %); it needs at least {FEWEST} of them."
        )
    elif any(1 < row.n < FEWEST for row in rows):
        notes.append(f"Too few seeds for intervals of the means, which need at least {FEWEST}.")
    if any(row.n == 1 for row in rows):
        notes.append("n = 1 is one seed: no ranking can be read from this.")
    datasets, precisions = list(dict.fromkeys(row.first.dataset for row in rows)), []
    for dataset in datasets:
        precision = _precision_note([row for row in rows if row.first.dataset == dataset])
        if precision:
            precisions.append(f"{dataset}: {precision}" if len(datasets) > 1 else precision)
    notes += fewer(precisions, MOST_NOTES, "data sets")
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
    interval = binomial_interval(round(acc * images), images)
    if abs(interval.low + interval.high - 2 * acc) > 0.0005:  # not centred, as of few images
        return (
            f"{images:,} test images tell an accuracy of {100 * acc:.2f} % to be {100 * interval.low:.1f} to "
            f"{100 * interval.high:.1f} % on all images of their kind (95 %, binomial); the spreads over seeds do not "
            "tell of that."
        )
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


def _warnings(rows: Sequence[Row], diverged: Sequence[Result]) -> list[str]:
    """Return each warning of the records once, with the runs that it concerns."""
    concerned: dict[str, dict[str, list[int]]] = {}
    labelled = [(row.label, run) for row in rows for run in row.runs] + [(run.method, run) for run in diverged]
    several = len({run.dataset for _, run in labelled}) > 1
    for name, run in labelled:
        label = f"{name} on {run.dataset}" if several else name
        for warning in run.warnings:
            concerned.setdefault(warning, {}).setdefault(label, []).append(run.seed)
    notes = [f"Warning ({_listed(runs)}): {warning.rstrip('.')}." for warning, runs in concerned.items()]
    return fewer(notes, MOST_WARNINGS, "warnings")


def _named(runs: Sequence[Result]) -> str:
    """Name runs by method, knobs and seeds."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        seeds.setdefault(" ".join((run.method, *_knobs(run))), []).append(run.seed)
    return _listed(seeds)


def _listed(seeds: dict[str, list[int]], limit: int = 6) -> str:
    """Name runs by their labels and seeds, at most `limit` labels."""
    listed = [f"{label} seed={','.join(map(str, sorted({*each})))}" for label, each in seeds.items()]
    more = [f"{len(listed) - limit} more"] if len(listed) > limit else []
    return "; ".join(listed[:limit] + more)


def _joined(names: Iterable[str], separator: str, limit: int = 12) -> str:
    every = list(names)
    return separator.join([*every[:limit], *([f"{len(every) - limit} more"] if len(every) > limit else [])])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
