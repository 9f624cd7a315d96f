"""The studies of docs/results: what is compared, what rows are called, tables of single studies. For `readme.py`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

from kd.deploy.timing import FORMS
from kd.report.comparison import Comparison, compare, contrasts
from kd.report.contrasts import Contrast, Measure, compared
from kd.report.effects import equal_size
from kd.report.numbers import decimals, interval_text, p_value, parameters, percent, plus_minus, points
from kd.report.rows import Role, Row, Spread
from kd.report.statistics import Interval
from kd.report.summary import Summary
from kd.report.tables import markdown
from kd.runs.results import Result

STUDENTS = {"standard": "labels alone", "logits": "logits", "feature": "feature"}
"""What the rows of seed_table are called."""
NAMES = STUDENTS | {"teacher": "one teacher", "srd": "srd"}
"""What the rows of seed_table and strong are called."""
GAINS = {
    "logits minus labels alone": Contrast("logits", "logits", "standard"),
    "feature minus labels alone": Contrast("feature", "feature", "standard"),
    "logits minus feature": Contrast("", "logits", "feature"),
}
LOOKS = tuple(
    tuple(Contrast(f"{method}, {when}", method, "standard", seeds) for method in ("logits", "feature"))
    for when, seeds in (("first three seeds", range(3)), ("three more", range(3, 6)))
)
LONG = "recipe.batch_size=128 recipe.epochs=40 recipe.optimizer.lr=0.08"
CHANGES = (
    Contrast("first teacher, logits", "logits ensemble=1", "standard"),
    Contrast("two more teachers, logits", "logits", "logits ensemble=1"),
    Contrast("all three teachers, logits", "logits", "standard"),
    Contrast("all three teachers, feature", "feature", "standard"),
    Contrast("long recipe, labels alone", f"standard {LONG}", "standard"),
    Contrast("long recipe, logits", f"logits {LONG}", "logits"),
    Contrast("long recipe, feature", f"feature {LONG}", "feature"),
)
LENGTH = (
    Contrast("logits of one teacher, short, minus labels alone, long", "logits ensemble=1", f"standard {LONG}"),
    Contrast("logits of three teachers, short, minus labels alone, long", "logits", f"standard {LONG}"),
)
AUGMENTED = (
    "data.augment.policy=trivialaugment data.val_fraction=0 teacher.conv_dropout=0 teacher.head_dropout=0.1 "
    "teacher_recipe.batch_size=128 teacher_recipe.ema=0.999 teacher_recipe.epochs=80 teacher_recipe.optimizer.lr=0.08"
)
NETWORKS = {
    "teacher": "teacher, 30 epochs",
    "teacher teacher_recipe.epochs=75": "teacher, 75 epochs",
    f"teacher {AUGMENTED}": "teacher, 80 epochs, TrivialAugment",
    "standard": "labels alone, short",
    f"standard {LONG}": "labels alone, long",
    "feature": "feature, three teachers, short",
    f"feature {LONG}": "feature, three teachers, long",
    "logits ensemble=1": "logits, one teacher, short",
    "logits": "logits, three teachers, short",
    f"logits {LONG}": "logits, three teachers, long",
}
"""What the rows of what_matters are called."""
DROPLESS = "student.conv_dropout=0 student.head_dropout=0"
UNEQUAL = ("Right", "CachedWithoutAugmentation", "OtherView", "NoTSquared", "MeanReductionNoTSquared")
"""Rows of seed_anomaly that are compared with labels alone without dropout, too."""
MISTAKES = {name: name for name in UNEQUAL} | {
    f"Right {DROPLESS}": "Right, no dropout in either",
    "MeanReduction": "MeanReduction",
    "OtherImages": "OtherImages",
    "SoftmaxForLogSoftmax": "SoftmaxForLogSoftmax",
    "TeacherInTrainMode": "TeacherInTrainMode",
    "LabelsOnly recipe.optimizer.lr=0.015": "LabelsOnly, a tenth of the learning rate",
    f"LabelsOnly {DROPLESS}": "LabelsOnly, no dropout",
}
"""What the rows of seed_anomaly are called."""
FIGURES = {
    "agreement": ("same class as the teachers, %", 100, 1),
    "agreement_wrong": ("the same where the teachers are wrong, %", 100, 1),
    "kl": ("KL(teacher ‖ student), nats", 1, 3),
    "kl_scaled": ("the same, both temperature scaled", 1, 3),
    "nll": ("NLL, nats", 1, 3),
    "nll_scaled": ("the same, temperature scaled", 1, 3),
    "ece": ("expected calibration error, %", 100, 2),
    "ece_scaled": ("the same, temperature scaled", 100, 2),
}
"""Figures of docs/fidelity/fidelity.csv: what they are called, their factor, their digits."""
CROSSED = ("logits", "feature", "srd", "sp")
CORRUPTED = "corrupted (8 of 15 corruptions)"


def changed(intact: Callable[[Result], float]) -> dict[str, Measure]:
    """Return the figures of crossed that are compared.

    Args:
        intact: the accuracy of a run on the images that were corrupted, as they were before.
    """
    severities = {
        f"{kind.replace('_', ' ')}, severity {severity}": f"corrupted/{kind}/{severity}"
        for kind in ("gaussian_noise", "impulse_noise", "defocus_blur", "contrast", "jpeg_compression")
        for severity in (1, 5)
    }
    return {
        "test accuracy, %": Measure(lambda run: run.test_acc),
        "NLL, nats": Measure(lambda run: run.test_nll, 1, 3),
        "expected calibration error, %": Measure(lambda run: run.test_ece),
        "accuracy on every tenth test image, %": Measure(intact),
        "accuracy on the same images corrupted, %": Measure(lambda run: run.also_test_acc[CORRUPTED]),
        "change by corruption, points": Measure(lambda run: run.also_test_acc[CORRUPTED] - intact(run)),
    } | {name: Measure(lambda run, part=part: run.also_test_acc[part]) for name, part in severities.items()}


WIDTHS = (4, 8, 16, 24)
TEACHERS = {
    "teacher_recipe.epochs=2": "a teacher of two epochs",
    "teacher_recipe.epochs=12": "a teacher of twelve epochs",
    "ensemble=3 teacher_recipe.epochs=4": "three teachers",
}
"""Teachers of widths, but for the one of four epochs."""


STRONG_GAINS = tuple(Contrast(f"{method} minus labels alone", method, "standard") for method in ("logits", "srd"))


def gain_table(summary: Summary, comparisons: Sequence[Comparison]) -> str:
    """Return the accuracies of each network, its difference to labels alone and its retention."""
    gained = {
        c.row.label: [points(c.difference.mean), interval_text(c.difference.interval, "+"), c.verdict]
        for c in comparisons
    }
    lines = []
    for row in summary.rows:
        fit = percent(fmean(run.epoch_train_acc[-1] for run in row.runs), 1)
        figures = [str(row.n), fit, plus_minus(row.test_acc), *gained.get(row.label, [""] * 3)]
        lines.append([NAMES[row.label], *figures, percent(row.retention, 1, " %")])
    headers = ["network", "n", "on training images, %", "test accuracy, %", "difference, points", "95 % interval"]
    headers += ["in words", "retention"]
    return markdown(headers, lines, left=["in words"])


FOUR = "teacher_recipe.epochs=4"


def _label(method: str, width: int, teacher: str = "") -> str:
    """Return the label of a row of widths; where a method has a single teacher, it does not name it."""
    return " ".join([method, *sorted([f"student.scale={width}", *teacher.split()])])


GAINS_BY_WIDTH = {
    (method, width): Contrast(f"{method}, width {width}", _label(method, width, teacher), _label("standard", width))
    for method, teacher in (("logits", FOUR), ("srd", ""))
    for width in WIDTHS
}
APART = tuple(
    (f"{method}, width {width} minus width 16", gain, GAINS_BY_WIDTH[method, 16])
    for (method, width), gain in GAINS_BY_WIDTH.items()
    if width != 16
)
BY_TEACHER = tuple(
    Contrast(f"width {width}, {name}", _label("logits", width, teacher), _label("logits", width, FOUR))
    for teacher, name in TEACHERS.items()
    for width in (4, 8, 16)
)
BELOW = tuple(
    Contrast(
        f"width {width}, a teacher of two epochs",
        _label("logits", width, "teacher_recipe.epochs=2"),
        _label("standard", width),
    )
    for width in (4, 8, 16)
)
"""Students of the weakest teacher compared with labels alone."""
ADDED = {
    (teacher, width): f"width {width}, {teacher}"
    for teacher in ("the teacher of 86.91 %", "five teachers")
    for width in (4, 8, 16)
}
"""What the rows of added_teachers are called, by teacher and width."""
BY_ADDED = tuple(Contrast(name, name, _label("logits", width, FOUR)) for (_, width), name in ADDED.items())
STRONGER_GAINS = tuple(
    Contrast(f"width {width}, minus labels alone", ADDED["the teacher of 86.91 %", width], _label("standard", width))
    for width in (4, 8, 16)
)


def added(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows of added_teachers by what they are called."""
    named = {}
    for row in rows:
        settings = dict(setting.split("=") for setting in row.first.variant.split())
        teacher = "five teachers" if "ensemble" in settings else "the teacher of 86.91 %"
        named[ADDED[teacher, int(settings["student.scale"])]] = row
    return named


def by_width(rows: Mapping[str, Row]) -> str:
    """Return what students of each width gain, and how large one alone is that reaches as much."""
    alone = [rows[_label("standard", width)] for width in WIDTHS]
    sizes = {row.params: row.test_acc.mean for row in alone if row.params and row.test_acc}
    lines = []
    for contrast, found in zip(GAINS_BY_WIDTH.values(), compared(rows, tuple(GAINS_BY_WIDTH.values())), strict=True):
        mean, interval, p, n, _ = found.difference
        acc, params = found.row.test_acc, found.row.params
        assert acc is not None
        assert params is not None
        like = equal_size(acc.mean, sizes)
        equal = f"{parameters(round(like))}, {like / params:.1f} ×" if like else f"more than {parameters(max(sizes))}"
        accuracies = [plus_minus(found.baseline.test_acc), plus_minus(acc)]
        gain = [points(mean), interval_text(interval, "+", n), p_value(p), found.verdict]
        lines.append([contrast.name, parameters(params), str(n), *accuracies, *gain, equal])
    headers = ["student", "parameters", "n", "alone, %", "taught, %", "difference, points", "95 % interval", "p (Holm)"]
    headers += ["in words", "alone it takes"]
    return markdown(headers, lines, left=["in words"])


def of_sizes(summary: Summary) -> Summary:
    """Return the rows of widths for a picture over sizes: alone, taught by the teacher of four epochs, and it.

    Without their validation accuracies, so that the picture has the figures of the table.
    """
    labels = {side for gain in GAINS_BY_WIDTH.values() for side in (gain.ours, gain.theirs)} | {f"teacher {FOUR}"}
    rows = [row for row in summary.rows if row.label in labels]
    return summary._replace(
        rows=[replace(row, runs=tuple(replace(run, val_acc=None) for run in row.runs)) for row in rows]
    )


PUBLISHED = {
    "logits": ("T", 2.0),
    "srd": ("beta", 2.0),
    "sp": ("beta", 3000.0),
    "dkd": ("beta", 8.0),
    "cc": ("beta", 100.0),
    "crd": ("beta", 0.8),
    "vid": ("beta", 1.0),
    "fitnet": ("beta", 100.0),
}
"""What is tuned of each method of tuning and tuned, and its value without tuning, which is the default."""


def of_value(rows: Sequence[Row], method: str, value: float) -> Row:
    """Return the row of a method with this value of what is tuned."""
    knob, _ = PUBLISHED[method]
    (row,) = (row for row in rows if row.first.method == method and row.first.knobs[knob] == value)
    return row


def choice(tried: Sequence[Row], method: str) -> float:
    """Return the value of a method with the highest validation accuracy."""
    knob, _ = PUBLISHED[method]
    best = max((row for row in tried if row.first.method == method), key=lambda row: row.val_acc or Spread(0.0, None))
    return float(best.first.knobs[knob])


def choices(tried: Sequence[Row]) -> str:
    """Return the validation accuracy of each value that was tried."""
    lines = []
    for method, (knob, published) in PUBLISHED.items():
        rows = sorted((row for row in tried if row.first.method == method), key=lambda row: row.first.knobs[knob])
        cells = []
        for row in rows:
            value = row.first.knobs[knob]
            marks = ["published"] * (value == published) + ["chosen"] * (value == choice(tried, method))
            cells.append(" ".join([percent(row.val_acc.mean if row.val_acc else None), *marks]))
        values = ", ".join(f"{row.first.knobs[knob]:g}" for row in rows)
        lines.append([method, f"{knob} = {values}", *cells])
    return markdown(["method", "values", *(f"{place}." for place in range(1, 6))], lines, left=["values"])


RECIPES = {
    "standard": "crop and flip",
    "standard recipe.label_smoothing=0.1": "crop and flip, label smoothing of 0.1",
    "standard data.augment.policy=trivialaugment": "crop, flip and TrivialAugment",
    "standard data.augment.cutmix=1": "crop, flip and cutmix",
}
"""What the rows of recipes are called."""


def recipes(rows: Mapping[str, Row]) -> str:
    """Return what each recipe of the student alone reaches on the validation images, the best first."""
    lines = []
    for label in sorted(RECIPES, key=lambda label: -(rows[label].val_acc or Spread(0.0, None)).mean):
        row = rows[label]
        run = row.first
        figures = [plus_minus(row.val_acc), decimals(run.epoch_val_loss[-1]), percent(run.epoch_train_acc[-1], 1)]
        lines.append([RECIPES[label], str(row.n), *figures])
    headers = ["labels alone", "n", "validation accuracy, %", "validation NLL", "on training images as shown, %"]
    return markdown(headers, lines)


def tuned(tried: Sequence[Row], final: Sequence[Row]) -> str:
    """Return what the chosen values give on the test images, minus the published ones and minus logits'."""
    best = {method: of_value(final, method, choice(tried, method)) for method in PUBLISHED}
    usual = {method: of_value(final, method, value) for method, (_, value) in PUBLISHED.items()}
    changed = [method for method in PUBLISHED if best[method] is not usual[method]]
    others = [method for method in PUBLISHED if method != "logits"]
    gained = dict(zip(changed, contrasts([(best[m], usual[m]) for m in changed]), strict=True))
    beyond = dict(zip(others, contrasts([(best[m], best["logits"]) for m in others]), strict=True))
    lines = []
    for method in sorted(best, key=lambda m: -(best[m].test_acc.mean if best[m].test_acc else 0.0)):
        line = [method, str(best[method].n), plus_minus(usual[method].test_acc), plus_minus(best[method].test_acc)]
        for found in (gained.get(method), beyond.get(method)):
            d = found and found.difference
            line += [points(d.mean), interval_text(d.interval, "+", d.n), found.verdict] if found and d else [""] * 3
        lines.append(line)
    headers = ["method", "n", "published, %", "chosen, %", "chosen minus published", "95 % interval", "in words"]
    headers += ["minus logits, both chosen", "95 % interval", "in words"]
    return markdown(headers, lines, left=["in words"])


def survey(records: Sequence[Row], steps: Mapping[str, Any]) -> str:
    """Return every method of the survey, from the most accurate to the least, beside labels alone and logits.

    Args:
        records: all rows of the survey.
        steps: what each method costs, as `scripts/method_cost.py` writes it.
    """
    rows = [row for row in records if row.role is not Role.TEACHER]
    rows.sort(key=lambda row: -(row.test_acc.mean if row.test_acc else 0.0))
    gains, to_logits = ({c.row.first.method: c for c in compare(rows, name)} for name in ("standard", "logits"))
    lines = []
    for row in rows:
        method, line = row.first.method, [row.first.method, str(row.n), plus_minus(row.test_acc)]
        for found in (gains.get(method), to_logits.get(method)):
            if found is None:
                line += [""] * 3
                continue
            mean, interval, *_ = found.difference
            line += [points(mean), interval_text(interval, "+"), found.verdict if interval else ""]
        lines.append([*line, decimals(steps[method]["factor"], 1)])
    against = ["95 % interval", "in words"]
    headers = [
        "method",
        "n",
        "test accuracy, %",
        "minus labels alone",
        *against,
        "minus logits",
        *against,
        "step, × logits",
    ]
    return markdown(headers, lines, left=["in words"])


def networks(rows: Mapping[str, Row]) -> str:
    """Return the students of what_matters, how well they fit, and their teachers."""
    lines = []
    for label, name in NETWORKS.items():
        row = rows[label]
        trained = percent(fmean(run.epoch_train_acc[-1] for run in row.runs), 1)
        own = percent(row.retention, 1, " %")
        lines.append([name, str(row.n), plus_minus(row.test_acc), trained, percent(row.teacher_acc), own])
    headers = ["network", "n", "test accuracy, %", "on training images, %", "its teachers, %", "retention"]
    return markdown(headers, lines)


def deployed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return networks and their forms in use, with the ratios to the first of them."""

    def seconds(row: Mapping[str, Any], threads: int, batch: int) -> float:
        found = (t["seconds"] for t in row["timings"] if (t["threads"], t["batch"]) == (threads, batch))
        return median(next(found))

    lines = []
    for row in rows:
        low, high = row["change_interval"]
        change = "" if row is rows[0] or row["change"] == low == high else interval_text(Interval(low, high), "+")
        faster = seconds(rows[0], 1, 1) / seconds(row, 1, 1)
        smaller = rows[0]["file_mb"] / row["file_mb"]
        lines.append(
            [
                row["network"],
                FORMS[row["form"]].name,
                percent(row["accuracy"]),
                change,
                decimals(row["file_mb"], 2),
                decimals(smaller, 1),
                decimals(1e3 * seconds(row, 1, 1), 2),
                decimals(faster, 1),
                f"{256 / seconds(row, 2, 256):,.0f}",
            ]
        )
    headers = ["network", "form", "test accuracy, %", "change by the form, 95 %", "MB", "times smaller"]
    headers += ["ms an image", "times faster", "images/s, batch 256"]
    return markdown(headers, lines, left=["form"])
