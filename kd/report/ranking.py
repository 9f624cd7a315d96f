"""Ranking of rows by validation accuracy. The test split selects nothing."""

from collections.abc import Sequence

from kd.report.numbers import plus_minus
from kd.report.rows import Role, Row, titled


def best(rows: Sequence[Row]) -> str:
    """Name, of rows of one data set, the one with the highest mean validation accuracy, with its test accuracy.

    Returns:
        A sentence: on the best student, or on the best teacher where there is no student.
    """
    candidates = [row for row in rows if row.role is not Role.TEACHER] or list(rows)
    ranked = by_validation(candidates)
    if not ranked:
        return f"{titled(candidates)}: no validation accuracy is known, so no run is chosen as the best."
    row, lost = ranked[0], sum(bool(other.diverged) for other in ranked)
    last = f", the {lost} with diverged runs last" if 0 < lost < len(ranked) else ""
    test = f"test accuracy {plus_minus(row.test_acc)} %" if row.test_acc else "test accuracy unknown"
    return (
        f"{titled(candidates)}: best by validation accuracy, of {_coverage(len(ranked), len(candidates))}{last}: "
        f"{row.label} (n = {row.n}{f', {row.diverged} more diverged' * bool(row.diverged)}), "
        f"{plus_minus(row.val_acc)} %; {test}."
    )


def by_validation(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a validation accuracy, the highest mean first; behind them rows that lost diverged runs."""
    return [rows[i] for i in _ranking(rows)]


def leaders(rows: Sequence[Row], limit: int) -> tuple[list[int], str]:
    """Return the indices of at most `limit` rows, in order, and a remark on their selection.

    The best of each method come first, then the best of the rest, by validation accuracy; where no row has one,
    the first in the table. All rows, and "", if they are no more than the limit.
    """
    if len(rows) <= limit:
        return list(range(len(rows))), ""
    ranking = _ranking(rows)
    best_of: dict[str, int] = {}
    for i in ranking:
        best_of.setdefault(rows[i].first.method, i)
    firsts = list(best_of.values())
    rest = [i for i in ranking if i not in firsts]
    selected = sorted((firsts + rest)[:limit]) or list(range(limit))
    how = "the best of each method and of the rest by validation accuracy" if ranking else "the first of the table"
    return selected, f"{len(selected)} of {len(rows)} rows, {how}"


def _ranking(rows: Sequence[Row]) -> list[int]:
    # The seeds of a row that diverges at times are its lucky ones.
    means = [(not row.diverged, row.val_acc.mean, -i) for i, row in enumerate(rows) if row.val_acc]
    return [-i for *_, i in sorted(means, reverse=True)]


def _coverage(ranked: int, candidates: int) -> str:
    return f"{ranked}" if ranked == candidates else f"the {ranked} (of {candidates}) that have one"
