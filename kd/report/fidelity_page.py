"""The page on fidelity: tables, pictures, and sentences that say no more than the figures in them."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.report import fidelity_figures as figures
from kd.report.fidelity import BINS, Figures, spread
from kd.report.fidelity_study import COMPARED, Compared, Difference, Student, Study
from kd.report.rows import Spread
from kd.report.statistics import LEVEL, images_interval, t_interval
from kd.report.sweeps import Picture

DPI = 150


class Quantity(NamedTuple):
    """How a figure is called and written."""

    words: str
    percent: bool

    def number(self, value: float) -> str:
        return f"{100 * value:.2f}" if self.percent else f"{value:.3f}"

    def signed(self, value: float) -> str:
        return f"{100 * value:+.2f}" if self.percent else f"{value:+.3f}"

    @property
    def difference_unit(self) -> str:
        return " points" if self.percent else " nats"


QUANTITIES = {
    "accuracy": Quantity("test accuracy", True),
    "agreement": Quantity("agreement with the teacher", True),
    "agreement_right": Quantity("agreement where the teacher is right", True),
    "agreement_wrong": Quantity("agreement where the teacher is wrong", True),
    "kl": Quantity("KL(teacher ‖ student)", False),
    "kl_scaled": Quantity("KL, both temperature scaled", False),
    "nll": Quantity("NLL", False),
    "nll_scaled": Quantity("NLL, temperature scaled", False),
    "ece": Quantity("ECE", True),
    "ece_scaled": Quantity("ECE, temperature scaled", True),
    "temperature": Quantity("fitted temperature", False),
}


class Pixels(NamedTuple):
    """What an image looks like, and its class is called."""

    images: NDArray[np.uint8] | None
    """(M, H, W, 3); None without the images."""
    classes: Sequence[str]
    """C names."""


def named(study: Study) -> Pixels:
    """Classes by their number, for want of the images."""
    return Pixels(None, [f"class {i}" for i in range(study.teacher_logits.shape[1])])


def write_page(study: Study, pixels: Pixels, out: Path) -> list[Path]:
    """Write `fidelity.md`, `fidelity.csv` and the pictures into `out`, over what an earlier page left there.

    Returns the paths of all that was written. Raises UserError if `out` cannot be written.
    """
    page, table = out / "fidelity.md", out / "fidelity.csv"
    drawn = pictures(study, pixels)
    try:
        out.mkdir(parents=True, exist_ok=True)
        page.write_text(to_page(study, pixels, drawn), encoding="utf-8")
        table.write_text(to_csv(study, pixels.classes), encoding="utf-8")
        for picture in drawn:
            picture.figure.savefig(out / picture.name, dpi=DPI)
    except OSError as error:
        raise UserError(f"the page cannot be written to {out}: {error.strerror or error}; choose another") from error
    return [page, table, *(out / picture.name for picture in drawn)]


BARS, CALIBRATION, CLASSES, IMAGES = "bars", "calibration", "classes", "images"


def pictures(study: Study, pixels: Pixels) -> list[Picture]:
    """One of images for each student where they are known, and three of all."""
    found = [
        Picture(f"fidelity_{BARS}.png", figures.bars(study), "Agreement with the teacher, KL to it, and NLL"),
        Picture(f"fidelity_{CALIBRATION}.png", figures.calibration(study), "Reliability diagrams"),
        Picture(f"fidelity_{CLASSES}.png", figures.classes(study, pixels.classes), "Gains by class"),
    ]
    if pixels.images is not None:
        for one in study.compared:
            name = re.sub(r"[^\w.=-]+", "_", one.student.label)
            figure = figures.images(study, one, pixels.images, pixels.classes)
            found.append(
                Picture(f"fidelity_{IMAGES}_{name}.png", figure, f"Images that {one.student.label} fixed and broke")
            )
    return found


# The page


def to_page(study: Study, pixels: Pixels, drawn: Sequence[Picture]) -> str:
    """`fidelity.md`; the pictures lie beside it."""

    def shown(kind: str) -> list[str]:
        return [f"![{one.what}]({one.name})" for one in drawn if one.name.startswith(f"fidelity_{kind}")]

    base = study.baseline
    parts = [
        "# Is distillation really at work?",
        f"{study.dataset}, {len(study.labels):,} test images. {_sizes(study)} Each figure of a student is the mean "
        f"over its n seeds, ± the sample standard deviation; it is compared with {base.label} over common seeds.",
        _listed(_in_short(one, base) for one in study.compared),
        *shown(BARS),
        "## Following the teacher",
        _fidelity_table(study),
        _listed(_following(study)),
        f"## Compared with {base.label}",
        _difference_table(study),
        _listed(_reading(study)),
        "## Confidence",
        _confidence_table(study),
        *shown(CALIBRATION),
        _listed(_confidence(study)),
        "## Classes",
        *shown(CLASSES),
        _class_table(study, pixels.classes),
        _listed([*_classes(study, pixels.classes), _CLASS_NOTE]),
        "## Images fixed and broken",
        _change_table(study),
        _listed(_changes(study)),
        *shown(IMAGES),
        "" if pixels.images is not None else "Without the images, which `--images ROOT` would read, none is shown.",
    ]
    if study.notes:
        parts += ["## Left out", _listed(study.notes)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _sizes(study: Study) -> str:
    sizes = ", ".join(f"{one.label} (n = {one.n})" for one in study.students)
    return f"Teacher: {study.teacher}, the same for all. Students: {sizes}."


def _in_short(one: Compared, base: Student) -> str:
    """Verdicts only, each with its figures."""
    said = [_spoken(one.differences[name], name) for name in ("agreement", "agreement_wrong", "kl", "accuracy")]
    calibrated = _spoken(one.differences["nll_scaled"], "nll_scaled")
    return f"**{one.student.label}**, compared with {base.label}: {'; '.join([*said, calibrated])}."


def _spoken(difference: Difference, name: str) -> str:
    quantity = QUANTITIES[name]
    if difference.mean is None:
        return f"{quantity.words}: {difference.verdict}"
    by = f"{quantity.signed(difference.mean)}{quantity.difference_unit}"
    return f"{quantity.words}: {difference.verdict} ({by})"


def _following(study: Study) -> Iterator[str]:
    base = study.baseline
    wrong = 1 - study.teacher_figures.accuracy
    yield (
        f"Agreement is the share of the images for which student and teacher name the same class. The teacher is wrong "
        f"on {100 * wrong:.2f} % of them; to agree there is to repeat its wrong answer, as a student without a "
        "teacher also does where an image misleads."
    )
    yield (
        "Between seeds: mean agreement of two students of the same row. KL is KL(teacher ‖ student) at T = 1, in nats; "
        "scaled, both networks are temperature scaled first, so that a mere difference in confidence does not count."
    )
    for one in study.compared:
        s = one.student
        got, without = s.spread("agreement"), base.spread("agreement")
        if got and without:
            sentence = (
                f"{s.label} gives another answer than its teacher for {100 * (1 - got.mean):.2f} % of the images, "
                f"{base.label} for {100 * (1 - without.mean):.2f} %"
            )
            if s.between_seeds is not None:
                sentence += f"; two seeds of {s.label} differ on {100 * (1 - s.between_seeds):.2f} %"
            yield sentence + "."


def _reading(study: Study) -> Iterator[str]:
    tests = sum(d.p is not None for one in study.compared for d in one.differences.values())
    if tests:
        yield (
            f"Differences are means over common seeds, with the {100 * LEVEL:.0f} % interval (Student's t). p is that "
            f"of the paired t test, corrected by Holm's method for the {tests} tests of this table; the "
            f"intervals are not. The verdict rests on p < {1 - LEVEL:.2f}."
        )
        yield "They tell of other seeds of these students, not of other teachers or test images."
    else:
        yield "No two common seeds with different differences: no test, and no ranking can be read from this."
    for one in study.compared:
        interval = images_interval(one.student.correct, study.baseline.correct)
        low, high = (QUANTITIES["accuracy"].signed(end) for end in interval)
        yield (
            f"{one.student.label}: on all images of this kind, the accuracy of these very networks differs by {low} to "
            f"{high} points ({100 * LEVEL:.0f} %, bootstrap over the {len(study.labels):,} test images)."
        )


def _confidence(study: Study) -> Iterator[str]:
    yield (
        f"ECE is the expected calibration error over {BINS} bins of equal width. Temperature scaling (Guo et al. 2017) "
        "is cross-fitted: final runs have no validation split, so the images with an even index get the temperature "
        "that minimises the NLL of those with an odd index, and the reverse. None is judged on images that it "
        "was fitted on; the table has the mean of the two. A network that needs a T above 1 is overconfident."
    )
    every = [("teacher", [study.teacher_figures]), *((one.label, one.figures) for one in study.students)]
    for name, of in every:
        ece = f"{100 * _mean(of, 'ece'):.2f} to {100 * _mean(of, 'ece_scaled'):.2f} %"
        nll = f"{_mean(of, 'nll'):.3f} to {_mean(of, 'nll_scaled'):.3f}"
        said = _confident([one.temperature for one in of])
        yield f"{name}: {said}; scaling takes its ECE from {ece} and its NLL from {nll}."


def _confident(temperatures: Sequence[float]) -> str:
    """What the fitted temperatures of n networks say; a word only if the interval of their mean does not hold 1."""
    mean, interval = fmean(temperatures), t_interval(temperatures)
    if interval is None:
        return f"T = {mean:.2f}, no statement on other seeds"
    word = "neither over- nor underconfidence seen"
    if interval.low > 1 or interval.high < 1:
        word = "overconfident" if mean > 1 else "underconfident"
    return f"{word}, T = {mean:.2f} ({100 * LEVEL:.0f} % interval {interval.low:.2f} to {interval.high:.2f})"


def _mean(of: Sequence[Figures], name: str) -> float:
    found = spread(of, name)
    return found.mean if found else float("nan")


def _classes(study: Study, names: Sequence[str]) -> Iterator[str]:
    for one in study.compared:
        seen: dict[str, list[str]] = {"higher": [], "lower": []}
        for name, difference in zip(names, one.classes, strict=True):
            if difference.verdict in seen:
                seen[difference.verdict].append(f"{name} ({100 * (difference.mean or 0.0):+.2f})")
        said = [f"{word} for {', '.join(found)}" for word, found in seen.items() if found]
        verdicts = {difference.verdict for difference in one.classes}
        unseen = "no difference seen in any class" if "no difference seen" in verdicts else "no statement on any class"
        yield f"{one.student.label}, accuracy by class, points: {'; '.join(said) or unseen}."


_CLASS_NOTE = (
    "Intervals are Student's t over seeds, one by one; the verdict rests on p values corrected by Holm's method for "
    "all classes of all students."
)


def _changes(study: Study) -> Iterator[str]:
    base = study.baseline
    yield (
        f"Fixed: wrong in all seeds of {base.label}, right in all seeds of the student. Broken: the reverse. Each is a "
        "count of images that were looked for, so the pictures show what changed, not how often distillation helps."
    )
    for one in study.compared:
        c, s = one.changes, one.student
        if c.k:
            sets = f"sets of {c.k} seeds each" if c.k > 1 else "one seed and one seed"
            yield (
                f"{s.label}: between {sets}, it fixes {c.fixed_k:.1f} and breaks {c.broken_k:.1f} images on average "
                f"over all choices; other seeds of {base.label} alone fix, and break, {c.by_seed_k:.1f}."
            )
        else:
            yield f"{s.label}: with one seed of {base.label}, what seeds alone change is not known."
        if c.p:
            seen = [better for p, better in zip(c.p, c.better, strict=True) if p < 1 - LEVEL]
            for_it, against = sum(seen), len(seen) - sum(seen)
            yield (
                f"{s.label}, McNemar's exact test for each of {len(c.p)} common seeds (corrected by Holm's method for "
                f"all pairs here): more images right in {for_it}, fewer in {against}, no difference seen in "
                f"{len(c.p) - len(seen)}."
            )


# Tables


def _fidelity_table(study: Study) -> str:
    names = ("accuracy", "agreement", "agreement_right", "agreement_wrong", "kl", "kl_scaled")
    headers = [
        "run",
        "n",
        "test accuracy, %",
        "agreement with teacher, %",
        "where it is right, %",
        "where it is wrong, %",
    ]
    headers += ["between seeds, %", "KL", "KL, scaled"]
    lines = [["teacher", "1", f"{100 * study.teacher_figures.accuracy:.2f}", *[""] * 6]]
    for one in study.students:
        cells = [_cell(one.spread(name), name) for name in names]
        between = "" if one.between_seeds is None else f"{100 * one.between_seeds:.2f}"
        lines.append([one.label, str(one.n), *cells[:4], between, *cells[4:]])
    return _markdown(headers, lines)


def _confidence_table(study: Study) -> str:
    names = ("nll", "nll_scaled", "ece", "ece_scaled", "temperature")
    headers = ["run", "n", "NLL", "NLL, scaled", "ECE, %", "ECE, scaled, %", "fitted T"]
    every = [("teacher", [study.teacher_figures]), *((one.label, one.figures) for one in study.students)]
    lines = [[name, str(len(of)), *(_cell(spread(of, figure), figure) for figure in names)] for name, of in every]
    return _markdown(headers, lines)


def _cell(found: Spread | None, name: str) -> str:
    if found is None:
        return ""
    number = QUANTITIES[name].number
    return number(found.mean) + ("" if found.std is None else f" ± {number(found.std)}")


def _difference_table(study: Study) -> str:
    lines = []
    for one in study.compared:
        for name, d in one.differences.items():
            quantity = QUANTITIES[name]
            words = quantity.words + (", points" if quantity.percent else "")
            lines.append([one.student.label, words, *_difference_cells(d, quantity), d.verdict])
    return _markdown(["run", "figure", "difference", "95 % interval", "seeds", "p (Holm)", "in words"], lines, (1, 6))


def _difference_cells(d: Difference, quantity: Quantity) -> list[str]:
    mean = "" if d.mean is None else quantity.signed(d.mean)
    interval = " to ".join(map(quantity.signed, d.interval)) if d.interval else ""
    return [mean, interval, str(d.n), _p(d.p)]


def _class_table(study: Study, names: Sequence[str]) -> str:
    base = study.baseline
    headers = ["class", f"{base.label}, %"]
    for one in study.compared:
        headers += [f"{one.student.label}, points", "95 % interval", "in words"]
    lines = []
    for i, name in enumerate(names):
        line = [name, f"{100 * base.class_accuracy[:, i].mean():.2f}"]
        for one in study.compared:
            mean, interval, _, _ = _difference_cells(one.classes[i], QUANTITIES["accuracy"])
            line += [mean, interval, one.classes[i].verdict]
        lines.append(line)
    return _markdown(headers, lines, range(4, len(headers), 3))


def _change_table(study: Study) -> str:
    headers = [
        "run",
        "fixed",
        "broken",
        "seeds a set",
        "fixed, sets",
        "broken, sets",
        f"by {study.baseline.label}'s seeds",
    ]
    lines = []
    for one in study.compared:
        c = one.changes
        sets = [str(c.k), f"{c.fixed_k:.1f}", f"{c.broken_k:.1f}", f"{c.by_seed_k:.1f}"] if c.k else [""] * 4
        lines.append([one.student.label, str(len(c.fixed)), str(len(c.broken)), *sets])
    return _markdown(headers, lines)


def _markdown(headers: Sequence[str], lines: Iterable[Sequence[str]], left: Iterable[int] = ()) -> str:
    """Columns to the right, but the first and those whose places are in `left`."""
    rules = [":---" if i == 0 or i in left else "---:" for i in range(len(headers))]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in (headers, rules, *lines)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _listed(sentences: Iterable[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


# For programs


def to_csv(study: Study, classes: Sequence[str]) -> str:
    """A line for each figure of each network: fractions of 1 and nats in full precision, empty where unknown."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(_records(study, classes))
    return file.getvalue()


_COLUMNS = (
    *("run", "method", "T", "alpha", "beta", "variant", "n", "figure", "mean", "std"),
    *("difference", "low", "high", "pairs", "p", "verdict"),
)


def _records(study: Study, classes: Sequence[str]) -> Iterator[dict[str, object]]:
    for name in QUANTITIES:
        found = spread([study.teacher_figures], name)
        if found:
            yield {"run": "teacher", "method": "teacher", "n": 1, "figure": name, "mean": found.mean}
    compared = {id(one.student): one for one in study.compared}
    for student in study.students:
        first, one = student.row.first, compared.get(id(student))
        about: dict[str, object] = {
            **{"run": student.label, "method": first.method, "T": first.T, "alpha": first.alpha, "beta": first.beta},
            **{"variant": first.variant, "n": student.n},
        }
        for name in QUANTITIES:
            found = student.spread(name)
            differs = _difference_record(one.differences[name]) if one and name in COMPARED else {}
            yield {**about, "figure": name, "mean": found and found.mean, "std": found and found.std, **differs}
        yield {**about, "figure": "between_seeds", "mean": student.between_seeds}
        for i, name in enumerate(classes):
            of = student.class_accuracy[:, i]
            std = float(of.std(ddof=1)) if len(of) > 1 else None
            differs = _difference_record(one.classes[i]) if one else {}
            yield {**about, "figure": f"accuracy of {name}", "mean": float(of.mean()), "std": std, **differs}
        if one:
            yield {**about, "figure": "fixed", "mean": len(one.changes.fixed)}
            yield {**about, "figure": "broken", "mean": len(one.changes.broken)}


def _difference_record(d: Difference) -> dict[str, object]:
    low, high = d.interval or (None, None)
    return {"difference": d.mean, "low": low, "high": high, "pairs": d.n, "p": d.p, "verdict": d.verdict}
