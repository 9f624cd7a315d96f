"""Rows compared with a baseline, over the seeds that both have."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev
from typing import NamedTuple

from kd.errors import UserError
from kd.report.effects import (
    POWER,
    Probability,
    better_probability,
    equivalence_p,
    seeds_needed,
    sign_flip_p,
    smallest_detectable,
)
from kd.report.notes import joined
from kd.report.rows import Role, Row, overrides
from kd.report.statistics import (
    FEWEST,
    LEVEL,
    UNCERTAIN,
    UNSEEN,
    VERDICT_NOTE,
    Difference,
    corrected,
    difference,
    holm,
    paired_differences,
)
from kd.runs.results import Result

OF_TEACHING = r"[+~]*(teacher|ensemble|chain|method|speed|[\w/]+@teacher)"
"""Beginnings of settings that only a method with a teacher has, and of those that change no result."""
SHORTHANDS = {"batch_size": "recipe.batch_size", "lr": "recipe.optimizer.lr"}
"""Settings of both recipes, and what they are for the student."""


class Comparison(NamedTuple):
    """One row's test accuracy minus the baseline's, seed by seed."""

    row: Row
    baseline: Row
    difference: Difference
    """A fraction of 1; its p is corrected by Holm's method for the number of rows that are compared."""
    margin: float | None = None
    """The greatest difference that does not matter, a fraction of 1, if one was stated."""
    equivalence: float | None = None
    """p of the test for equivalence within the margin, corrected like that of the difference; None without a margin."""
    tests: int = 1
    """How many differences p is corrected for."""

    @property
    def common(self) -> tuple[Row, Row]:
        """The row and the baseline with the runs of their common seeds."""
        seeds = accuracies(self.row).keys() & accuracies(self.baseline).keys()
        return self.row.of(seeds), self.baseline.of(seeds)

    @property
    def by_seed(self) -> list[float]:
        """The difference of each common seed, by seed."""
        return paired_differences(accuracies(self.row), accuracies(self.baseline))

    @property
    def verdict(self) -> str:
        """The outcome in plain words."""
        return in_words(self.difference, self.margin, self.equivalence)

    @property
    def probability(self) -> Probability | None:
        """The probability that the row beats the baseline with another seed; None where nothing is stated."""
        return None if self.difference.refused else better_probability(self.by_seed)

    @property
    def sign_flip(self) -> float | None:
        """p of the difference by a test that needs no normal distribution; not corrected. None as for `probability`."""
        return None if self.difference.refused else sign_flip_p(self.by_seed)

    @property
    def detectable(self) -> float | None:
        """The true difference, a fraction of 1, that these seeds find with a probability of `POWER`.

        Found is what p below 1 - `LEVEL` says after Bonferroni's correction, which is Holm's for the first verdict.
        None as for `probability`.
        """
        if self.difference.interval is None or self.difference.refused:
            return None
        return smallest_detectable(stdev(self.by_seed), self.difference.n, level=self._level)

    @property
    def seeds_needed(self) -> int | None:
        """The number of seeds that would settle a difference as large as that seen, found as in `detectable`.

        None where it is settled.
        """
        mean, undecided = self.difference.mean, self.verdict in (UNSEEN, UNCERTAIN)
        return seeds_needed(stdev(self.by_seed), mean, level=self._level) if undecided and mean is not None else None

    @property
    def _level(self) -> float:
        """The level of one of these tests, corrected for their number."""
        return 1 - (1 - LEVEL) / self.tests


def in_words(difference: Difference, margin: float | None, equivalence: float | None) -> str:
    """Return the verdict on a difference in accuracy.

    Args:
        difference: with its p, corrected where several are tested.
        margin: the greatest difference that does not matter, a fraction of 1; None without one.
        equivalence: p of the test for equivalence within that margin, corrected likewise.
    """
    words = difference.in_words("better", "worse")
    if margin is None or equivalence is None or equivalence >= 1 - LEVEL:
        return words
    within = f"less than {100 * margin:g} points"
    return f"equivalent: {within}" if words in (UNSEEN, UNCERTAIN) else f"{words}, by {within}"


def compare(rows: Sequence[Row], name: str | None = None, margin: float | None = None) -> list[Comparison]:
    """Compare every student with its baseline: of several on a data set, the one with the row's own settings.

    Args:
        rows: rows of all roles; teachers are left out.
        name: the baselines' label or method; None for students trained on labels alone. Of a data set that has one
            such row, every student is compared with it. Of one with several, such as one for each student, recipe or
            fraction of the data, a row is compared with the one that differs from it in method and teacher alone, and
            not at all where none or several do.
        margin: the greatest difference that does not matter, a fraction of 1: smaller ones are tested for.

    Raises:
        UserError: if no row has that name, or several have and no other row has the settings of one of them.
    """
    candidates = _candidates(rows, name)
    found = [(row, _baseline(row, candidates)) for row in rows if row.role is not Role.TEACHER]
    pairs = [(row, baseline) for row, baseline in found if baseline is not None and baseline is not row]
    pairs = [(row, baseline) for row, baseline in pairs if row.trial == baseline.trial]  # on the same test images
    if name is not None and not pairs and len(candidates) > 1:
        raise UserError(f"baseline {name!r} is the name of {len(candidates)} rows; give one of: {_labels(candidates)}")
    return contrasts(pairs, margin)


def contrasts(pairs: Sequence[tuple[Row, Row]], margin: float | None = None) -> list[Comparison]:
    """Compare the first row of each pair with the second; p values are corrected for the number of pairs.

    Args:
        pairs: rows of one data set, tested on the same images.
        margin: the greatest difference that does not matter, a fraction of 1: smaller ones are tested for.
    """
    differences = corrected(
        [difference(accuracies(row), accuracies(base), 1.0, refusal((row, base))) for row, base in pairs]
    )
    tests = max(1, sum(d.p is not None for d in differences))
    compared = [
        Comparison(row, baseline, d, margin, tests=tests) for (row, baseline), d in zip(pairs, differences, strict=True)
    ]
    if margin is None:
        return compared
    outside = holm([None if c.difference.refused else equivalence_p(c.by_seed, margin) for c in compared])
    return [comparison._replace(equivalence=p) for comparison, p in zip(compared, outside, strict=True)]


def refusal(rows: Iterable[Row]) -> str:
    """Return why rows are not called better or worse than others; empty where nothing speaks against it.

    Those of a method that diverges at times are the lucky ones.
    """
    rows = {id(row): row for row in rows}.values()  # one may be compared twice
    lost = sum(row.diverged for row in rows)
    return f"{lost} of {lost + sum(row.n for row in rows)} runs diverged: no statement" if lost else ""


def _candidates(rows: Sequence[Row], name: str | None) -> list[Row]:
    """Return the rows that could be baselines."""
    students = [row for row in rows if row.role is not Role.TEACHER]
    if name is None:
        return [row for row in students if row.role is Role.ALONE]
    by_label = [row for row in students if row.label == name]
    candidates = by_label or [row for row in students if row.first.method == name]
    if not candidates:
        raise UserError(f"baseline {name!r} is not the name of a student; give one of: {_labels(students)}")
    return candidates


def _baseline(row: Row, candidates: Sequence[Row]) -> Row | None:
    """Return the baseline of a row; None if it has none, or several."""
    own = [other for other in candidates if other.first.dataset == row.first.dataset]
    if len(own) > 1:
        own = [other for other in own if other is row or not _other_settings(row, other)]
    if len(own) > 1:
        own = [other for other in own if other.trial == row.trial]
    return own[0] if len(own) == 1 else None


def _labels(rows: Iterable[Row], limit: int = 12) -> str:
    labels = list(dict.fromkeys(repr(row.label) for row in rows))
    more = f" and {len(labels) - limit} more" if len(labels) > limit else ""
    return ", ".join(labels[:limit]) + more


def accuracies(row: Row) -> dict[int, float]:
    """Return test accuracies by seed, fractions of 1."""
    return {run.seed: run.test_acc for run in row.runs if run.test_acc is not None}


def by_baseline(comparisons: Sequence[Comparison]) -> list[tuple[str, list[Comparison]]]:
    """Group comparisons by their baseline.

    Returns:
        Name and group of each. The name has the data set where there are several, and says of trials that they are.
    """
    groups: dict[int, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(id(comparison.baseline), []).append(comparison)
    several = len({comparison.row.first.dataset for comparison in comparisons}) > 1

    def name(baseline: Row) -> str:
        where = f" on {baseline.first.dataset}" if several else ""
        return baseline.label + where + (" (trial)" if baseline.trial else "")

    return [(name(group[0].baseline), group) for group in groups.values()]


def baseline_name(comparisons: Sequence[Comparison]) -> str:
    """Return the label of the one baseline; with several, that each row has its own."""
    labels = {comparison.baseline.label for comparison in comparisons}
    return labels.pop() if len(labels) == 1 else "the baseline of each"


def comparison_notes(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """Return what a reader of the comparison, or of a report without one, must know."""
    ambiguous = _without_a_baseline(rows, comparisons)
    if not comparisons:
        return ambiguous
    notes = [
        *ambiguous,
        "Differences are in test accuracy, in points, over the seeds that a row and the baseline have in common. "
        "They compare; they choose nothing.",
        *other_settings_note(comparisons),
    ]
    tests = sum(comparison.difference.p is not None for comparison in comparisons)
    if tests:
        notes.append(
            f"The intervals of the differences ({100 * LEVEL:.0f} %, Student's t) tell of what differs between the "
            "student's seeds only, not of other teachers or test images. p is that of the paired t test, corrected by "
            f"Holm's method for {tests} comparison{'s' * (tests > 1)}; the intervals are not. {VERDICT_NOTE}"
        )
        notes.append(
            "P(better) is the probability that the row beats the baseline with another seed, for differences of a "
            f"normal distribution. Detectable is the true difference that these seeds find in {100 * POWER:.0f} % of "
            f"sweeps (p < {1 - LEVEL:.2f}, corrected); seeds needed, how many find one as large as that seen."
        )
        notes += _margin_note(comparisons) + _sign_flip_note(comparisons)
    elif any(comparison.difference.n < FEWEST for comparison in comparisons):
        notes.append(f"Too few seeds for intervals and verdicts, which need at least {FEWEST} common ones.")
    return notes


def other_settings(comparison: Comparison) -> list[str]:
    """Return in what else than method and teacher the row differs from its baseline, where neither's name tells.

    Returns:
        Each setting with the row's value first, as in "epochs 40 against 30".
    """
    pair = (comparison.row, comparison.baseline)
    named = {piece.partition("=")[0] for row in pair for piece in row.pieces}
    found = _other_settings(*pair)
    for condition, setting in (("student", "student"), ("epochs", r"(recipe\.)?epochs$"), ("training images", "data")):
        named |= {condition} if any(re.match(setting, name) for name in named) else set()
    return [f"{name} {ours} against {theirs}" for name, (ours, theirs) in found.items() if name not in named]


def _other_settings(row: Row, other: Row) -> dict[str, tuple[str, str]]:
    """Return what two rows differ in but for method and teacher: both values by name."""
    # What no override has changed may still be an experiment's, or a default of another day.
    conditions, settings = ([of(one.first) for one in (row, other)] for of in (_conditions, _overrides))
    common = conditions[0].keys() & conditions[1].keys()  # of what both have on record
    return _apart(*({name: of[name] for name in of if name in common} for of in conditions)) | _apart(*settings)


def _overrides(run: Result) -> dict[str, str]:
    """Return the settings of a run, by name, that are not those of its method or teacher, nor `_conditions`."""
    settings = dict(override.partition("=")[::2] for override in overrides(run))
    return {
        SHORTHANDS.get(name, name): value
        for name, value in settings.items()
        if not re.match(OF_TEACHING, name) and name not in ("epochs", "recipe.epochs")
    }


def _conditions(run: Result) -> dict[str, str]:
    known = {"student": run.student, "epochs": run.epochs, "training images": run.train_images}
    return {name: str(value) for name, value in known.items() if value is not None}


def _apart(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return both values of each name that has two."""
    pairs = {name: (ours.get(name, "none"), theirs.get(name, "none")) for name in {**ours, **theirs}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def other_settings_note(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a warning of rows that differ from their baseline in more than what they are compared for."""
    found = [(c, apart) for c in comparisons if (apart := other_settings(c))]
    listed = [f"{c.row.label} ({', '.join(apart[:4])}{', ...' * (len(apart) > 4)})" for c, apart in found]
    if not listed:
        return []
    return [
        f"Not the method alone differs between a row and its baseline: {joined(listed, '; ', 6)}. Such a "
        "difference may come from these settings."
    ]


def _without_a_baseline(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """Return notes on the rows that are not compared, as none or several of their data set could be the baseline."""
    alone = Counter(row.first.dataset for row in rows if row.role is Role.ALONE)
    found = {id(row) for comparison in comparisons for row in (comparison.row, comparison.baseline)}
    named = any(comparison.baseline.role is Role.DISTILLED for comparison in comparisons)  # by --baseline
    sought = {Role.DISTILLED, Role.ALONE} if named else {Role.DISTILLED}
    left = [row for row in rows if row.role in sought and id(row) not in found]
    baselines = {comparison.baseline.first.method for comparison in comparisons}
    compared = {comparison.row.first.dataset for comparison in comparisons}
    taught = (row for row in left if row.role is Role.DISTILLED)
    nowhere = dict.fromkeys(row.first.dataset for row in taught if row.first.dataset not in compared)
    unclear = [name for name in nowhere if compared or alone[name] > 1]
    notes = []
    if unclear:
        where = f" on {', '.join(unclear)}" if len({row.first.dataset for row in rows}) > 1 else ""
        which = "several rows" if all(alone[name] > 1 for name in unclear) else "no row, or several,"
        notes += [f"Nothing is compared{where}: {which} could be the baseline; name one with --baseline."]
    if lacking := [row for row in left if row.first.dataset in compared and row.first.method not in baselines]:
        notes += [f"Not compared, as no baseline, or several, have their settings: {_labels(lacking)}."]
    return notes


def _margin_note(comparisons: Sequence[Comparison]) -> list[str]:
    margin = comparisons[0].margin
    if margin is None:
        return []
    return [
        f"Differences of less than {100 * margin:g} points count as none, as stated by --margin: “equivalent” rests on "
        f"two one-sided t tests, whose larger p, corrected like the others, is below {1 - LEVEL:.2f}."
    ]


def _sign_flip_note(comparisons: Sequence[Comparison]) -> list[str]:
    """Return where the t test and the test that needs no normal distribution disagree."""
    flipped = holm([comparison.sign_flip for comparison in comparisons])
    tested = [(c, p) for c, p in zip(comparisons, flipped, strict=True) if p is not None and c.difference.p is not None]
    apart = [c.row.label for c, p in tested if (p < 1 - LEVEL) != ((c.difference.p or 0.0) < 1 - LEVEL)]
    what = "The sign-flip test, which needs no normal distribution, corrected likewise, "
    if not apart:
        return [f"{what}comes to the same verdicts."]
    least = min(1.0, min(2 / 2**comparison.difference.n for comparison, _ in tested) * len(tested))
    reason = f" With so few seeds it cannot be below {least:.3g}." if least >= 1 - LEVEL else ""
    listed = ", ".join(apart[:6]) + (f" and {len(apart) - 6} more" if len(apart) > 6 else "")
    return [f"{what}comes to another verdict on {listed}.{reason}"]
