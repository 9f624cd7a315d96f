"""Finished runs as rows, with what a reader must know about them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kd.errors import UserError
from kd.report.notes import MOST_NOTES, counted, explanations, joined, named, skipped_notes, uncounted, warning_notes
from kd.report.prepare import prepared
from kd.report.rows import Row, in_rows
from kd.report.text import fewer
from kd.runs.results import Result


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
    cut_short: Sequence[Result] = ()
    """Runs that a search has pruned or that diverged: tried, and in no row."""

    @property
    def notes(self) -> list[str]:
        return [*self.left_out, *self.warnings, *self.explanations]

    @property
    def datasets(self) -> str:
        return joined(dict.fromkeys(row.first.dataset for row in self.rows), ", ")

    def by_dataset(self) -> "list[Summary]":
        """Return a summary of the rows of each data set, with the notes on all of them."""
        rows: dict[str, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(row.first.dataset, []).append(row)
        return [self._replace(rows=group) for group in rows.values()]


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
        raise UserError(f"no run to report on: {counted(len(chosen), 'run')} diverged, {named(chosen)}; try a lower lr")
    diverged = [run for run in chosen if run.diverged]
    lost = [run for run in results if run.diverged and bool(run.trial) == (chosen is trials)]
    rows = in_rows(sound, lost)
    kinds = Counter(run.trial for run in trials)
    if chosen is trials:
        left_out = [f"Trial runs only, whose figures are not those of whole runs: {joined(map(str, kinds), '; ')}."]
    else:
        left_out = [f"{counted(number, 'trial run')} left out: {why}." for why, number in kinds.items()]
        left_out = fewer(left_out, MOST_NOTES, "kinds of trial left out")
    left_out += uncounted(unfinished.total(), listed, len(sound) - sum(row.n for row in rows))
    if diverged:
        left_out.append(f"{counted(len(diverged), 'diverged run')} left out, in no mean: {named(diverged)}.")
    left_out += skipped_notes(skipped)
    pruned = [run for run in results if run.status == "pruned" and bool(run.trial) == (chosen is trials)]
    return Summary(rows, explanations(rows), left_out, warning_notes(rows, diverged), [*pruned, *lost])
