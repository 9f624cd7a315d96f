"""Sentences on what a reader of rows must know."""

from collections import Counter
from collections.abc import Iterable, Sequence

from kd.report.knobs import knob_names, knob_text
from kd.report.rows import ORDER_SEED, Role, Row, knobs_and_overrides, overrides
from kd.report.statistics import FEWEST, LEVEL, binomial_interval
from kd.report.text import fewer, shortened
from kd.runs.results import Result, typed
from kd.terminal import visible

MOST_NOTES = 5
"""Notes of one kind, such as on records that cannot be read."""
MOST_WARNINGS = 20


def skipped_notes(reasons: Sequence[str]) -> list[str]:
    """Return a note for each of the first records that cannot be read, and one on how many more there are."""
    notes = [f"Skipped {shortened(visible(reason), 300)}" for reason in reasons]
    return fewer(notes, MOST_NOTES, "records or directories skipped")


def explanations(rows: Sequence[Row]) -> list[str]:
    """Return how the figures of the rows are to be read; one sentence or two each."""
    notes = [
        "Test figures are those of the last epoch's weights; the test split was never used to select anything.",
        "n is the number of seeds; ± is the sample standard deviation over them (n - 1), the rest are means; training "
        "time is the median.",
    ]
    if len({(run.device, run.precision) for row in rows for run in row.runs if run.train_seconds}) > 1:
        notes.append("Training times are of different devices or precisions: do not compare them.")
    notes += shared_order(rows) + mixed_precision(rows)
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


def shared_order(rows: Sequence[Row]) -> list[str]:
    """Return a note on rows whose seeds have the order and the views of the images in common."""
    several = [row for row in rows if row.n > 1 and row.role is not Role.TEACHER]
    shared = [row for row in several if len(orders := set(map(_order_seed, row.runs))) == 1 and orders != {None}]
    if not shared:
        return []
    datasets = len({row.first.dataset for row in rows}) > 1
    names = (f"{row.label} on {row.first.dataset}" if datasets else row.label for row in shared)
    which = "all rows" if len(shared) == len(several) else joined(names, "; ", 6)
    return [
        f"The seeds of {which} have the order, crops and flips of the images in common (data.order_seed): ± and "
        "intervals are of initial weights and dropout alone."
    ]


def mixed_precision(rows: Sequence[Row]) -> list[str]:
    """Return a note on each data set whose students were trained in different precisions."""
    found: dict[str, Counter[str]] = {}
    for run in (run for row in rows if row.role is not Role.TEACHER for run in row.runs):
        if run.precision:
            found.setdefault(run.dataset, Counter())[run.precision] += 1
    several = {dataset: sorted(counts.items()) for dataset, counts in found.items() if len(counts) > 1}
    return [
        f"Students on {dataset} were trained in different precisions "
        f"({', '.join(f'{number} in {name}' for name, number in counts)}): differences may come of that."
        for dataset, counts in several.items()
    ]


def unnamed_knobs(rows: Sequence[Row]) -> list[str]:
    """Return a note on knobs that were set on the command line, and that no name of a row shows."""
    found: dict[str, None] = {}
    several = len({row.first.dataset for row in rows}) > 1
    for row in rows:
        given = {override.lstrip("+").partition("=")[0] for override in typed(row.first)}
        knobs = [f"{name}={knob_text(row.first.knobs[name])}" for name in knob_names([row.first]) if name in given]
        if hidden := [knob for knob in knobs if knob not in row.pieces]:
            # What no row shows all rows of the method have, but for what was cut off a long name.
            name = row.label if "..." in row.pieces else row.first.method
            where = f" on {row.first.dataset}" if several else ""
            found[f"{name}{where} with {' '.join(hidden)}"] = None
    return [f"Set on the command line: {joined(found, '; ')}."] if found else []


def _order_seed(run: Result) -> str | None:
    """Return what a run's order is drawn by, which records of older versions tell only where it was typed."""
    typed = (s.partition("=")[2] for s in overrides(run) if s.startswith(f"{ORDER_SEED}="))
    return next(typed, None) if run.order_seed is None else str(run.order_seed)


def _precision_note(rows: Sequence[Row]) -> str:
    """Return a note on the widest binomial interval among the rows; "" if the number of test images is unknown."""
    known = [(row.first.test_images, row.test_acc.mean) for row in rows if row.first.test_images and row.test_acc]
    if not known:
        return ""
    intervals = [binomial_interval(round(acc * images), images) for images, acc in known]
    interval, (images, acc) = max(zip(intervals, known, strict=True), key=lambda pair: pair[0].high - pair[0].low)
    if abs(interval.low + interval.high - 2 * acc) > 0.0005:  # not centred, as of few images
        return (
            f"{images:,} test images tell an accuracy of {100 * acc:.2f} % to be {100 * interval.low:.1f} to "
            f"{100 * interval.high:.1f} % on all images of their kind (95 %, binomial); the spreads over seeds do not "
            "tell of that."
        )
    return (
        f"{images:,} test images tell an accuracy of {100 * acc:.2f} % to within about "
        f"±{50 * (interval.high - interval.low):.2f} points of what it is on all images of their kind "
        "(95 %, binomial); the spreads over seeds do not tell of that."
    )


def uncounted(unfinished: int, listed: str, repeats: int) -> list[str]:
    """Return a note on runs that are not finished, and one on those that were repeated."""
    notes = []
    if unfinished:
        notes.append(f"{counted(unfinished, 'run')} not counted: {listed}.")
    if repeats:
        notes.append(
            f"{counted(repeats, 'repeat')} of a run (same configuration and seed) left out: the latest counts."
        )
    return notes


def warning_notes(rows: Sequence[Row], diverged: Sequence[Result]) -> list[str]:
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


def named(runs: Sequence[Result]) -> str:
    """Name runs by method, knobs and seeds."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        seeds.setdefault(" ".join((run.method, *knobs_and_overrides(run))), []).append(run.seed)
    return _listed(seeds)


def _listed(seeds: dict[str, list[int]]) -> str:
    """Name runs by their labels and seeds, the first six labels."""
    listed = [f"{label} seed={','.join(map(str, sorted({*each})))}" for label, each in seeds.items()]
    return joined(listed, "; ", 6)


def joined(names: Iterable[str], separator: str, limit: int = 12) -> str:
    """Return the first `limit` names in a line, and how many more there are."""
    every = list(names)
    return separator.join([*every[:limit], *([f"{len(every) - limit} more"] if len(every) > limit else [])])


def counted(number: int, what: str) -> str:
    """Return a number of things in words: "1 run", "2 runs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
