"""What validation accuracy chooses among rows. The test split chooses nothing."""

from collections.abc import Sequence

from kd.report.rows import Role, Row, Spread


def best(rows: Sequence[Row]) -> list[str]:
    """A sentence for each data set: which row has the highest mean validation accuracy, and its test accuracy.

    Among the students; among the teachers, if there is no student.
    """
    return [_sentence(rows, dataset) for dataset in dict.fromkeys(row.first.dataset for row in rows)]


def _sentence(rows: Sequence[Row], dataset: str) -> str:
    students = [row for row in rows if row.first.dataset == dataset and row.role is not Role.TEACHER]
    candidates = students or [row for row in rows if row.first.dataset == dataset]
    order = by_validation(candidates)
    if not order:
        return f"{dataset}: no validation accuracy is known, so no run is chosen as the best."
    row = order[0]
    test = f"test accuracy {_spoken(row.test_acc)}" if row.test_acc else "test accuracy unknown"
    return (
        f"{dataset}: best by validation accuracy, of {_of(len(order), len(candidates))}: "
        f"{row.label} (n = {row.n}), {_spoken(row.val_acc)}; {test}."
    )


def by_validation(rows: Sequence[Row]) -> list[Row]:
    """Those with a validation accuracy, the highest mean first."""
    return [rows[i] for i in _ranking(rows)]


def leaders(rows: Sequence[Row], most: int) -> tuple[list[int], str]:
    """The places of `most` rows in their order, and words on how they were taken; all, and "", if they are no more.

    The best of each method come first, then the best of the rest, by validation accuracy; where no row has one,
    the first in the table.
    """
    if len(rows) <= most:
        return list(range(len(rows))), ""
    ranking = _ranking(rows)
    firsts = list({rows[i].first.method: i for i in reversed(ranking)}.values())
    rest = [i for i in ranking if i not in firsts]
    shown = sorted((firsts[::-1] + rest)[:most]) or list(range(most))
    how = "the best of each method and of the rest by validation accuracy" if ranking else "the first of the table"
    return shown, f"{len(shown)} of {len(rows)} rows, {how}"


def _ranking(rows: Sequence[Row]) -> list[int]:
    known = [(row.val_acc.mean, -i) for i, row in enumerate(rows) if row.val_acc]
    return [-i for _, i in sorted(known, reverse=True)]


def _of(known: int, candidates: int) -> str:
    return f"{known}" if known == candidates else f"the {known} (of {candidates}) that have one"


def _spoken(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{100 * spread.mean:.2f}" + ("" if spread.std is None else f" ± {100 * spread.std:.2f}") + " %"
