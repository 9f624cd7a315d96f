"""What a method reaches with so many configurations tried, so that none wins by being tuned more."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kd.report.rows import Role, Row, titled
from kd.report.style import framed, literal, method_styles, shades
from kd.report.tables import Cells
from kd.runs.results import Result

FEWEST_TRIED = 5
"""Configurations of a method below which nothing is said of its tuning."""
BUDGETS = (1, 2, 5, 10, 20, 50, 100)


class Budget(NamedTuple):
    """What a method reaches with 1, 2, ... of its configurations tried; fractions of 1."""

    method: str
    label: str
    """The method, and its networks and epochs where it has such figures for several."""
    val: list[float]
    """Expected validation accuracy of the best by validation."""
    test: list[float]
    """Expected test accuracy of that one; empty where a row has none."""


def expected_of_best(chosen_by: Sequence[float], figures: Sequence[float]) -> list[float]:
    """Return the expected figure of the best of k configurations, for each k from 1 to all of them.

    The k are a random choice, without replacement, of those that were tried: the mean over all choices (after Dodge et
    al. 2019, arXiv 1909.03004; without replacement, so without bias, Tang et al. 2020, arXiv 2005.00815).

    Args:
        chosen_by: what the best has most of, by configuration.
        figures: what is expected, by configuration; `chosen_by` itself, or a figure that decides nothing.
    """
    n = len(chosen_by)
    # Of equals, the mean: neither is the best.
    ordered = sorted(zip(chosen_by, figures, strict=True))
    means: dict[float, list[float]] = {}
    for key, figure in ordered:
        means.setdefault(key, []).append(figure)
    falling = np.array([sum(means[key]) / len(means[key]) for key, _ in reversed(ordered)])
    return [float(falling[: n - k + 1] @ _shares(n, k)) for k in range(1, n + 1)]


def _shares(n: int, k: int) -> NDArray[np.float64]:
    """Return the probability that the best of k is the best of all n, the second best, ... (n - k + 1,).

    C(rank, k - 1) / C(n, k) of the ranks n - 1 to k - 1, each from the one before: the numbers themselves have hundreds
    of digits.
    """
    ranks = np.arange(n - 1, k - 1, -1, dtype=np.float64)
    return np.cumprod(np.concatenate([[k / n], (ranks - k + 1) / ranks]))


def budgets(rows: Sequence[Row], cut_short: Sequence[Result] = ()) -> list[Budget]:
    """Return what each method reaches, for methods with `FEWEST_TRIED` configurations that were validated.

    A configuration of several seeds counts by its mean; those of other networks, and of longer trainings, are no choice
    that tuning has.

    Args:
        rows: those of one data set.
        cut_short: runs that were pruned or diverged. They were tried as well, and count by the last validation accuracy
            that they had, or 0 without one; where such a method's choice may be one of them, its test accuracy is not
            known.
    """
    kinds: dict[tuple[str, str], tuple[list[Row], dict[str, list[float]]]] = {}
    for row in rows:
        if row.role is not Role.TEACHER and row.val_acc:
            kinds.setdefault(_kind(row.first), ([], {}))[0].append(row)
    rated = {run.group for row in rows for run in row.runs if run.group}
    for run in cut_short:
        if run.dataset == rows[0].first.dataset and _kind(run) in kinds and run.group not in rated:
            kinds[_kind(run)][1].setdefault(run.group or run.fingerprint, []).append(_end(run))
    enough = {kind: tried for kind, tried in kinds.items() if len(tried[0]) + len(tried[1]) >= FEWEST_TRIED}
    methods = [method for method, _ in enough]
    found = []
    for (method, networks), (tried, cut) in enough.items():
        label = method if methods.count(method) == 1 else f"{method}, {networks}"
        # Of a configuration that diverged with some seeds only, these count as 0, too.
        means = [row.val_acc.mean * row.n / (row.n + row.diverged) for row in tried if row.val_acc]
        val = [*means, *map(fmean, cut.values())]
        test = [row.test_acc.mean for row in tried if row.test_acc and not row.diverged]
        of_choice = expected_of_best(val, test) if len(test) == len(val) else []
        found.append(Budget(method, label, expected_of_best(val, val), of_choice))
    return found


def _end(run: Result) -> float:
    """Return what a run had reached when it was ended."""
    return 0.0 if run.diverged or not run.epoch_val_acc else run.epoch_val_acc[-1]


def _kind(run: Result) -> tuple[str, str]:
    """Return the method, and what configurations of it must have in common to be compared."""
    networks = run.student if run.teacher is None else f"{run.student} of {run.teacher}"
    return run.method, f"{networks}, {run.epochs} epochs"


def cells(found: Sequence[Budget]) -> Cells:
    """Return a table of expected validation accuracy, and the test accuracy of the choice, in percent."""
    most = max(len(budget.val) for budget in found)
    shown = [k for k in BUDGETS if k <= most]

    def cell(budget: Budget, k: int) -> str:
        if k > len(budget.val):
            return ""
        test = f" ({100 * budget.test[k - 1]:.2f})" if budget.test else ""
        return f"{100 * budget.val[k - 1]:.2f}{test}"

    headers = ["method", "tried", *(f"best of {k}" if k > 1 else "one" for k in shown)]
    lines = [[budget.label, str(len(budget.val)), *(cell(budget, k) for k in shown)] for budget in found]
    return Cells(headers, lines)


NOTE = (
    "Expected validation accuracy, in %, of the best of k configurations drawn at random from those that were tried, "
    "and in brackets the test accuracy of that choice. Compare methods in one column only. Those that a search has "
    "pruned count by the validation accuracy that they had then, those that diverged as 0. A search that draws its "
    "trials by what it has found is no random draw: there, small budgets look better than they are."
)


def picture(rows: Sequence[Row], found: Sequence[Budget]) -> Figure:
    """Draw expected validation accuracy over the number of configurations tried."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = framed(figure.add_subplot())
    for budget, look in zip(found, shades([budget.method for budget in found], method_styles(rows)), strict=True):
        tried = range(1, len(budget.val) + 1)
        label = literal(f"{budget.label} ({len(budget.val)} tried)")
        axes.plot(tried, [100 * acc for acc in budget.val], look.dash, color=look.colour, label=label, marker="o", ms=3)
    axes.set_xlabel("configurations tried, drawn at random")
    axes.set_ylabel("expected validation accuracy of the best, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(literal(f"Accuracy over tuning budget, {titled(rows)}"), loc="left", fontsize=11)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)  # of lines at any height
    return figure
