"""The first sentences of the page: which run, how much better than what, how certain. The words are the statistics'."""

from collections import Counter
from collections.abc import Sequence

from kd.report.comparison import Comparison, baseline_name
from kd.report.notes import counted
from kd.report.numbers import p_value
from kd.report.ranking import by_validation
from kd.report.rows import Role, Row, Spread
from kd.report.statistics import LEVEL

NBSP = "\N{NO-BREAK SPACE}"
FEW = 3
"""Comparisons that are told one by one where no validation accuracy chooses among them."""


def headline(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """Return one to four sentences on the rows of one data set.

    The best student is chosen by validation accuracy. Without one, none is chosen: few comparisons are told each, many
    are counted by their verdict.

    Args:
        rows: rows of one data set.
        comparisons: theirs with the baseline.
    """
    students = [row for row in rows if row.role is not Role.TEACHER]
    candidates = students or list(rows)
    ranked = by_validation(candidates)
    if ranked:
        row = ranked[0]
        named = f"{row.label} reaches {accuracy(row.test_acc)} on the test images (n = {row.n})"
        sound = [other for other in ranked if not other.diverged] or ranked
        of = f"{len(sound)}" + (" without diverged runs" if len(sound) < len(ranked) else "")
        sentences = [f"{named}: it has the highest validation accuracy, {accuracy(row.val_acc)}, of {of}."]
        chosen = [comparison for comparison in comparisons if comparison.row is row]
        others = sum(comparison.baseline is row for comparison in comparisons)
        sentences += [f"It is the baseline of {counted(others, 'other row')}."] if others else []
    elif len(candidates) == 1:
        (row,) = candidates
        sentences = [f"{row.label} reaches {accuracy(row.test_acc)} on the test images (n = {row.n})."]
        chosen = []
    else:
        sentences = []
        chosen = list(comparisons)
    if len(chosen) <= FEW:
        sentences += [sentence(comparison) for comparison in chosen]
    else:
        verdicts = Counter(comparison.verdict for comparison in chosen)
        listed = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
        sentences.append(f"{len(chosen)} rows are compared with {baseline_name(chosen)}: {listed}.")
    if not ranked and len(candidates) > 1:
        sentences.append("No run has a validation accuracy, so none is chosen as the best.")
    return sentences


def sentence(comparison: Comparison) -> str:
    """Return a comparison in words, with its interval and p where there are any."""
    row, base, difference = comparison.row.label, comparison.baseline.label, comparison.difference
    if difference.mean is None:
        return f"{row} cannot be compared with {base}: {comparison.verdict}."
    ours, theirs = comparison.common
    both = f"{accuracy(ours.test_acc)} against {accuracy(theirs.test_acc)}"
    figures = f"n = {difference.n}"
    if difference.interval is not None and difference.p is not None:
        low, high = (f"{100 * bound:+.2f}" for bound in difference.interval)
        p = p_value(difference.p)
        figures = f"{100 * LEVEL:.0f} % interval {low} to {high}, {figures}, p {p if p.startswith('<') else f'= {p}'}"
    if comparison.verdict in ("better", "worse"):
        points = f"{100 * abs(difference.mean):.2f} points"
        return f"{row} is {comparison.verdict} than {base} by {points} ({figures}): {both}."
    return f"{row} against {base}: {comparison.verdict}. {100 * difference.mean:+.2f} points ({figures}): {both}."


def accuracy(spread: Spread | None) -> str:
    """Write an accuracy with its standard deviation over seeds, in percent."""
    if spread is None:
        return "an unknown accuracy"
    std = "" if spread.std is None else f"{NBSP}±{NBSP}{100 * spread.std:.2f}"
    return f"{100 * spread.mean:.2f}{std}{NBSP}%"
