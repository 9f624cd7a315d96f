"""The page on fidelity: tables, pictures, and sentences that say no more than the figures in them."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.report.fidelity import figures
from kd.report.fidelity.measures import BINS, Figures, spread
from kd.report.fidelity.study import FAMILIES, Compared, Student, Study
from kd.report.fidelity.tables import (
    QUANTITIES,
    change_table,
    class_table,
    confidence_table,
    difference_table,
    fidelity_table,
    to_csv,
)
from kd.report.page import DPI, listed
from kd.report.statistics import LEVEL, UNCERTAIN, UNSEEN, VERDICT_NOTE, Difference, images_interval, t_interval
from kd.report.sweeps import Picture


class Pixels(NamedTuple):
    """What an image looks like, and its class is called."""

    images: NDArray[np.uint8] | None
    """(M, H, W, 3); None without the images."""
    classes: Sequence[str]
    """C names."""


def named(study: Study) -> Pixels:
    """Classes by their number, for want of the images."""
    return Pixels(None, [f"class {i}" for i in range(study.taught.logits.shape[1])])


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
        listed(_in_short(one, base) for one in study.compared),
        *shown(BARS),
        "## Following the teacher",
        fidelity_table(study),
        listed(_following(study)),
        f"## Compared with {base.label}",
        difference_table(study),
        listed(_reading(study)),
        "## Confidence",
        confidence_table(study),
        *shown(CALIBRATION),
        listed(_confidence(study)),
        "## Classes",
        *shown(CLASSES),
        class_table(study, pixels.classes),
        listed([*_classes(study, pixels.classes), _CLASS_NOTE]),
        "## Images fixed and broken",
        change_table(study),
        listed(_changes(study)),
        *shown(IMAGES),
        "" if pixels.images is not None else "Without the images, which `--images ROOT` would read, none is shown.",
    ]
    if study.notes:
        parts += ["## Left out", listed(study.notes)]
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
    if any(d.p is not None for one in study.compared for d in one.differences.values()):
        yield (
            f"Differences are means over common seeds, with the {100 * LEVEL:.0f} % interval (Student's t). p is that "
            f"of the paired t test, corrected by Holm's method within each of {len(FAMILIES)} families: "
            f"{_families(study)}. The intervals are not corrected. {VERDICT_NOTE}"
        )
        yield (
            "They tell of what differs between the seeds of these students (initial weights; order and views of the "
            "images, too, unless the runs share them), not of other teachers or test images."
        )
    else:
        yield "No two common seeds with different differences: no test, and no ranking can be read from this."
    for one in study.compared:
        interval = images_interval(one.student.correct, study.baseline.correct)
        low, high = (QUANTITIES["accuracy"].signed(end) for end in interval)
        yield (
            f"{one.student.label}: on all images of this kind, the accuracy of these very networks differs by {low} to "
            f"{high} points ({100 * LEVEL:.0f} %, bootstrap over the {len(study.labels):,} test images)."
        )


def _families(study: Study) -> str:
    """The figures that are corrected together, and how many tests that makes."""
    said = []
    for family in FAMILIES:
        tests = sum(one.differences[name].p is not None for one in study.compared for name in family)
        words = [QUANTITIES[name].words for name in family]
        what = ", ".join(words) if len(family) < 3 else "all else in the table"
        said.append(f"{what} ({tests} tests)")
    return "; ".join(said)


def _confidence(study: Study) -> Iterator[str]:
    yield (
        f"ECE is the expected calibration error over {BINS} bins of equal width. Temperature scaling (Guo et al. 2017) "
        "is cross-fitted: final runs have no validation split, so the images with an even index get the temperature "
        "that minimises the NLL of those with an odd index, and the reverse. None is judged on images that it "
        "was fitted on; the fitted T in the table is the mean of the two. A network that needs a T above 1 is "
        "overconfident."
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
        return f"T = {mean:.2f}, one network and so no interval" if len(temperatures) == 1 else f"T = {mean:.2f}"
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
        verdicts = Counter(difference.verdict for difference in one.classes)
        of = len(one.classes)
        unsure = [f"{word} in {verdicts[word]} of {of}" for word in (UNSEEN, UNCERTAIN) if verdicts[word]]
        yield f"{one.student.label}, accuracy by class, points: {'; '.join([*said, *unsure]) or 'no statement'}."


_CLASS_NOTE = (
    "Intervals are Student's t over seeds, one by one; the verdict rests on p values corrected by Holm's method for "
    "all classes of all students."
)


def _changes(study: Study) -> Iterator[str]:
    base = study.baseline
    yield (
        f"Fixed: wrong in most seeds of {base.label}, right in most of the student; most are all of up to four, and "
        "four fifths of more. Broken: the reverse. Each is a count of images that were looked for, so the pictures "
        "show what changed, not how often distillation helps."
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
            seen = [better for p, better in zip(c.p, c.better, strict=True) if p is not None and p < 1 - LEVEL]
            for_it, against = sum(seen), len(seen) - sum(seen)
            yield (
                f"{s.label}, McNemar's exact test for each of {len(c.p)} common seeds (corrected by Holm's method for "
                f"all pairs here): more images right in {for_it}, fewer in {against}, {UNSEEN} in "
                f"{len(c.p) - len(seen)}."
            )
