"""Write the tables of README, docs and reports anew from the records in docs/results: `python scripts/readme.py`."""

import csv
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from pages import filled as between
from pages import wants_check, write_or_check
from studies import (
    APART,
    BELOW,
    BY_ADDED,
    BY_TEACHER,
    CHANGES,
    CROSSED,
    DROPLESS,
    FIGURES,
    GAINS,
    LENGTH,
    LOOKS,
    MISTAKES,
    STRONG_GAINS,
    STRONGER_GAINS,
    STUDENTS,
    UNEQUAL,
    added,
    by_width,
    changed,
    choices,
    deployed,
    gain_table,
    networks,
    of_sizes,
    recipes,
    survey,
    tuned,
)

from kd.errors import UserError
from kd.report.comparison import Comparison, compare
from kd.report.contrasts import (
    Contrast,
    certainty,
    compared,
    each_teacher,
    gains_to_markdown,
    over_teachers,
    sources_to_markdown,
    to_markdown,
    variation,
)
from kd.report.crossed import Crossed, across, against, crossed
from kd.report.differences import differences
from kd.report.fidelity.measures import accuracy, agreement, averaged, kl
from kd.report.html.page import to_html, unpacked
from kd.report.html.view import Json, view
from kd.report.numbers import decimals, interval_text, p_value, percent, points
from kd.report.page import Picture, report, write
from kd.report.power import picture
from kd.report.rows import Row
from kd.report.speed import limits_to_markdown
from kd.report.speed import to_markdown as speed_to_markdown
from kd.report.summary import Summary, summarize
from kd.report.sweeps import pictures as swept
from kd.report.tables import across_cells, markdown, to_brief, to_csv
from kd.runs import predictions
from kd.runs.results import Result, collect
from kd.terminal import outcome

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": ("results",),
    "docs/results/is_it_better.md": ("gain", "looks"),
    "docs/results/what_made_it.md": ("changes", "networks"),
    "docs/results/is_it_distillation.md": ("fidelity", "averaged", "length"),
    "docs/results/why_it_loses.md": ("mistakes", "unequal"),
    "docs/results/how_sure.md": ("sure", "varies"),
    "docs/results/new_teachers.md": ("crossed", "to-logits", "each-teacher", "sources", "corrupted"),
    "docs/results/where_it_pays.md": ("by-width", "apart", "by-teacher", "below", "added"),
    "docs/results/which_method.md": ("survey", "choices", "tuned"),
    "docs/results/how_strong.md": ("strong", "strong-gains"),
    "docs/results/in_use.md": ("deploy",),
    "docs/protocol.md": ("recipes",),
    "docs/speed.md": ("speed", "limits", "speed-avx2", "limits-avx2"),
}
"""Tables by page, which has them between marks such as <!-- speed --> and <!-- /speed -->."""
BASELINES = {
    "seed_table": None,
    "seed_anomaly": "logits mistake=LabelsOnly",
    "what_matters": None,
    "method_survey": None,
    "crossed": "standard",
    "widths": None,
    "added_teachers": None,
    "tuning": None,
    "tuned": None,
    "recipes": None,
    "strong": "standard",
}
"""Folders of result records in docs/results that have a report, with its baseline."""
INDEX = "docs/results/seed_table/index.html"
"""The example of a report's page. Its part with images is made by `scripts/report.py --images`, and stays as it is."""

SOURCE = "the records: python scripts/readme.py"
"""What pages are made from and how, for the message on one that differs."""
DATA = "CIFAR-10 (JPEG)"
MARGIN = 0.005
"""The greatest difference in accuracy that does not matter: docs/protocol.md."""
EVERY = 10
"""Of every how many test images of crossed one was corrupted."""


def main() -> int:
    return outcome("readme.py", work, (UserError, OSError, ValueError))


def work() -> int:
    """Write everything, or check it; return 1 where a check finds that something differs."""
    check = wants_check(__doc__)
    results = ROOT / "docs" / "results"
    wanted = {page: filled(page) for page in PAGES}
    reports = {results / folder: report(*_records(folder)) for folder in BASELINES}
    summary, comparisons = _records("seed_table")
    wanted["docs/results/seed_table.csv"] = to_csv(summary.rows, comparisons)
    page = (ROOT / INDEX).read_text(encoding="utf-8")
    shown = page_view(page)
    if check:
        texts = {
            f"docs/results/{folder.name}/{n}": t for folder, made in reports.items() for n, t in made.texts.items()
        }
        code = write_or_check(ROOT, wanted | texts, check, SOURCE)
        if unpacked(page) == json.loads(json.dumps(shown)):
            return code
        print(f"{INDEX} differs from {SOURCE}")
        return 1
    write_or_check(ROOT, wanted, check, SOURCE)
    for folder, made in reports.items():
        made.write(folder)
    write({}, pictures(), results)
    (ROOT / INDEX).write_text(to_html(shown), encoding="utf-8")
    return 0


def page_view(page: str) -> Json:
    """Return what the page shall show: the records as they are, predictions and images as they were."""
    return view(*_records("seed_table")) | {"fidelity": unpacked(page)["fidelity"]}


def filled(page: str) -> str:
    """Return the page with its tables made from the records."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in PAGES[page]:
        text = between(text, page, "a table", name, _table(name))
    return text


def _records(folder: str) -> tuple[Summary, list[Comparison]]:
    return _read(ROOT / "docs" / "results" / folder)


@cache
def _read(folder: Path) -> tuple[Summary, list[Comparison]]:
    summary = summarize(*collect([folder]))
    return summary, compare(summary.rows, BASELINES[folder.name])


def _measured(name: str) -> Json:
    """Return figures in docs/results that are no records of runs."""
    figures: Json = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return figures


def _rows(folder: str) -> dict[str, Row]:
    return {row.label: row for row in _records(folder)[0].rows}


def _with_added() -> dict[str, Row]:
    """The rows of widths, and those of the teacher that was added."""
    return _rows("widths") | added(_records("added_teachers")[0].rows)


# Tables


def _table(name: str) -> str:
    """Return a table of `PAGES` as Markdown."""
    makers = {
        "results": lambda: to_brief(_records("seed_table")[0].rows, _records("seed_table")[1]),
        "gain": lambda: gain_table(*_records("seed_table")),
        "looks": lambda: to_markdown(_rows("seed_table"), *LOOKS),
        "changes": lambda: to_markdown(_rows("what_matters"), CHANGES),
        "networks": lambda: networks(_rows("what_matters")),
        "length": lambda: to_markdown(_rows("what_matters"), LENGTH),
        "averaged": _averaged,
        "fidelity": _fidelity,
        "sure": _sure,
        "varies": _varies,
        "crossed": lambda: across_cells(across(_records("crossed")[0].rows, _records("crossed")[1])).to_markdown(),
        "to-logits": _to_logits,
        "each-teacher": lambda: each_teacher(*_crossed()),
        "sources": _sources,
        "corrupted": _corrupted,
        "by-width": lambda: by_width(_rows("widths")),
        "apart": lambda: gains_to_markdown(_rows("widths"), APART),
        "by-teacher": lambda: to_markdown(_rows("widths"), BY_TEACHER, accuracy=True),
        "below": lambda: to_markdown(_rows("widths"), BELOW),
        "added": lambda: to_markdown(_with_added(), BY_ADDED, STRONGER_GAINS),
        "survey": lambda: survey(
            _records("method_survey")[0].rows, _measured("method_cost/two_cores")["tables"][-1]["methods"]
        ),
        "choices": lambda: choices(_records("tuning")[0].rows),
        "recipes": lambda: recipes(_rows("recipes")),
        "strong": lambda: gain_table(*_records("strong")),
        "strong-gains": lambda: to_markdown(_rows("strong"), STRONG_GAINS),
        "tuned": lambda: tuned(_records("tuning")[0].rows, _records("tuned")[0].rows),
        "deploy": lambda: deployed(_measured("deploy/deploy")["rows"]),
        "mistakes": lambda: to_markdown(_rows("seed_anomaly"), mistakes(MISTAKES, "LabelsOnly"), accuracy=True),
        "unequal": lambda: to_markdown(
            _rows("seed_anomaly"), mistakes((*UNEQUAL, f"Right {DROPLESS}"), f"LabelsOnly {DROPLESS}")
        ),
        "speed": lambda: speed_to_markdown(_measured("speed/two_cores")),
        "limits": lambda: limits_to_markdown(_measured("speed/two_cores_amx")),
        "speed-avx2": lambda: speed_to_markdown(_measured("speed/two_cores_avx2")),
        "limits-avx2": lambda: limits_to_markdown(_measured("speed/two_cores_avx2")),
    }
    return makers[name]()


def mistakes(rows: Sequence[str], baseline: str) -> list[Contrast]:
    """Return rows of seed_anomaly compared with another one of them, from the best to the worst."""
    family = [Contrast(MISTAKES[row], f"logits mistake={row}", f"logits mistake={baseline}") for row in rows]
    found = zip(compared(_rows("seed_anomaly"), family), family, strict=True)
    return [contrast for _, contrast in sorted(found, key=lambda pair: -(pair[0].difference.mean or 0.0))]


def _predicted(method: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the logits of a method of seed_table by seed, (n, M, C), and the labels, (M,)."""
    folder = ROOT / "docs" / "results" / "seed_table"
    seeds = _rows("seed_table")[method].seeds
    read = [predictions.read(folder / f"{method}{seed}" / predictions.FILE) for seed in seeds]
    return np.array([found.logits for found in read], dtype=np.float64), read[0].labels


def _right(method: str) -> NDArray[np.float64]:
    """Return which test images each seed of a method gets right: (n, M) of 0 and 1."""
    logits, labels = _predicted(method)
    return (logits.argmax(axis=2) == labels).astype(np.float64)


def _averaged() -> str:
    """Return how right, and how like the teachers, averages of students are: means over all choices of them."""
    teacher = predictions.read(ROOT / "docs" / "results" / "seed_table" / "logits0" / predictions.FILE).teacher_logits
    assert teacher is not None
    lines = []
    for method, name in STUDENTS.items():
        logits, labels = _predicted(method)
        wrong = teacher.argmax(axis=1) != labels
        for k in (1, 2, 3, 6):
            means = list(averaged(logits, k))
            likeness = [
                percent(fmean(agreement(teacher, mean, where) or 0.0 for mean in means), 1) for where in (None, wrong)
            ]
            right = percent(fmean(accuracy(labels, mean) for mean in means))
            lines.append([name, str(k), right, *likeness, decimals(fmean(kl(teacher, mean) for mean in means))])
    headers = ["students", "averaged", "test accuracy, %"]
    headers += ["same class as the teachers, %", "the same where the teachers are wrong, %", "KL, nats"]
    return markdown(headers, lines)


def _sure() -> str:
    found = compared(_rows("seed_table"), tuple(GAINS.values()))
    rights = [(_right(c.ours), _right(c.theirs)) for c in GAINS.values()]
    return certainty(dict(zip(GAINS, found, strict=True)), rights, MARGIN)


def _crossed() -> tuple[dict[str, Crossed], Row]:
    """Return the methods of crossed by name, and labels alone."""
    rows = _records("crossed")[0].rows
    found = {method.rows[0].first.method: method for method in crossed(rows)}
    return {name: found[name] for name in CROSSED}, _rows("crossed")["standard"]


def _to_logits() -> str:
    methods, _ = _crossed()
    logits = methods.pop("logits")
    lines = [
        [
            line.label,
            points(d.mean),
            interval_text(d.interval, "+"),
            p_value(line.p),
            p_value(line.equivalence),
            line.verdict,
        ]
        for line in against(list(methods.values()), logits, MARGIN)
        if (d := line.difference)
    ]
    beyond = f"p of equivalence within ±{100 * MARGIN:g} points"
    headers = ["minus logits", "difference, points", "95 % interval", "p (Holm)", beyond, "in words"]
    return markdown(headers, lines, left=["in words"])


def _right_crossed() -> dict[str, NDArray[np.float64]]:
    """Return which test images the students of crossed get right, by method: (teachers, seeds, M) of 0 and 1."""
    with np.load(ROOT / "docs" / "results" / "crossed" / "right.npz") as packed:
        images = int(packed["images"])
        return {name: np.unpackbits(packed[name], axis=-1)[..., :images] * 1.0 for name in ("standard", *CROSSED)}


def _corrupted() -> str:
    right = _right_crossed()

    def intact(run: Result) -> float:
        teacher = re.search(r"teacher_seed=(\d+)", run.variant)
        return float(right[run.method][int(teacher[1]) if teacher else 0, run.seed, ::EVERY].mean())

    return over_teachers(*_crossed(), changed(intact))


def _sources() -> str:
    right = _right_crossed()
    gains = {f"gain of {name}": right[name] - right["standard"] for name in CROSSED}
    return sources_to_markdown({name: right[name] for name in CROSSED} | gains)


def _varies() -> str:
    gains = {f"gain of {method}": _right(method) - _right("standard") for method in ("logits", "feature")}
    return variation({name: _right(method) for method, name in STUDENTS.items()} | gains)


def _fidelity() -> str:
    with (ROOT / "docs" / "fidelity" / "fidelity.csv").open(encoding="utf-8", newline="") as file:
        known = {(line["run"], line["figure"]): line for line in csv.DictReader(file)}
    lines = []
    for figure, (name, factor, digits) in FIGURES.items():
        means = [decimals(factor * float(known[run, figure]["mean"]), digits) for run in STUDENTS]
        logits = known["logits", figure]
        gain = " to ".join(f"{factor * float(logits[end]):+.{digits}f}" for end in ("low", "high"))
        lines.append([name, logits["pairs"], *means, gain, logits["verdict"]])
    headers = ["", "n", *STUDENTS.values(), "logits minus labels alone, 95 %", "in words"]
    return markdown(headers, lines, left=["in words"])


# Pictures


def pictures() -> list[Picture]:
    """Draw the pictures beside the pages of docs/results."""
    gains = compared(_rows("seed_table"), tuple(GAINS.values()))
    changes = compared(_rows("what_matters"), CHANGES)
    wrong = mistakes(list(MISTAKES), "LabelsOnly")
    added, against = "what each change adds", "compared with the labels alone, four epochs"
    title = f"Test accuracy on {DATA}"
    drawn = {
        "what_made_it.png": differences(changes, [c.name for c in CHANGES], f"{title}: {added}"),
        "why_it_loses.png": differences(
            compared(_rows("seed_anomaly"), wrong), [c.name for c in wrong], f"{title} {against}"
        ),
        "how_sure.png": picture(gains, list(GAINS), 100 * MARGIN),
        "which_teacher.png": differences(
            compared(_rows("widths"), BY_TEACHER),
            [c.name for c in BY_TEACHER],
            f"{title} compared with one teacher of four epochs",
        ),
    }
    (sizes,) = swept(of_sizes(_records("widths")[0]))
    return [*(Picture(name, figure, name) for name, figure in drawn.items()), sizes._replace(name="where_it_pays.png")]


if __name__ == "__main__":
    sys.exit(main())
