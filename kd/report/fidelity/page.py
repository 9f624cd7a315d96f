"""The page on fidelity: a template for tables and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.report.contrasts import variation
from kd.report.fidelity import figures, tables
from kd.report.fidelity.measures import BINS, FEWEST_ERRORS, FEWEST_IN_BIN, LEAST_SHARE
from kd.report.fidelity.study import Study
from kd.report.page import bullets, distinct, linked, write
from kd.report.statistics import LEVEL, VERDICT_NOTE
from kd.report.sweeps import Picture
from kd.report.text import escaped, slug


class Pixels(NamedTuple):
    """Test images and names of the classes."""

    images: NDArray[np.uint8] | None
    """(M, H, W, 3); None where only the predictions are known."""
    classes: Sequence[str]
    """C names."""


def named(study: Study) -> Pixels:
    """Return the classes without images: their names where the runs' weights tell them, else numbers."""
    count = study.teacher_outputs.logits.shape[1]
    return Pixels(None, study.data.classes if study.data else [f"class {i}" for i in range(count)])


def write_page(study: Study, pixels: Pixels, out: Path) -> list[Path]:
    """Write `fidelity.md`, `fidelity.csv` and the pictures into `out`; see `kd.report.page.write`.

    Returns:
        Paths of all files.

    Raises:
        UserError: if `out` cannot be written.
    """
    drawn = pictures(study, pixels)
    texts = {"fidelity.md": to_page(study, pixels, drawn), "fidelity.csv": tables.to_csv(study, pixels.classes)}
    return write(texts, drawn, out)


BARS, CALIBRATION, CLASSES, IMAGES = "bars", "calibration", "classes", "images"


def pictures(study: Study, pixels: Pixels) -> list[Picture]:
    """Draw three pictures of all students, and one of images for each student where these are given."""
    drawn = [
        Picture(f"fidelity_{BARS}.png", figures.bars(study), "Agreement with the teacher, KL to it, and NLL"),
        Picture(f"fidelity_{CALIBRATION}.png", figures.calibration(study), "Reliability diagrams"),
        Picture(f"fidelity_{CLASSES}.png", figures.classes(study, pixels.classes), "Gains by class"),
    ]
    if pixels.images is not None:
        for compared in study.compared:
            label = compared.student.label
            figure = figures.images(study, compared, pixels.images, pixels.classes)
            drawn.append(
                Picture(f"fidelity_{IMAGES}_{slug(label)}.png", figure, f"Images that {label} fixed and broke")
            )
    return distinct(drawn)


def to_page(study: Study, pixels: Pixels, drawn: Sequence[Picture]) -> str:
    """Return `fidelity.md`: fixed sentences, tables, and links to the pictures beside it."""
    base, level = escaped(study.baseline.label), f"{100 * LEVEL:.0f} %"
    wrong = study.teacher_figures.errors
    ensemble = "" if study.teacher_name == "teacher" else f", the {study.teacher_name}"
    worse = ", ".join(map(escaped, tables.worse_scaled(study)))

    def shown(kind: str) -> list[str]:
        return linked(picture for picture in drawn if picture.name.startswith(f"fidelity_{kind}"))

    parts = [
        "# Is distillation really at work?",
        f"{escaped(study.dataset)}, {len(study.labels):,} test images. Teacher of all comparisons: "
        f"{escaped(study.teacher)}{ensemble}. It is wrong on {wrong:,} of them "
        f"({100 * (1 - study.teacher_figures.accuracy):.2f} %). Figures are means over n seeds, ± the sample "
        f"standard deviation; differences are to {base}, over common seeds.",
        *shown(BARS),
        "## Following the teacher",
        tables.fidelity_table(study),
        "- Agreement: share of the images for which student and teacher predict the same class. Where the teacher is "
        "wrong, that is the same wrong answer, which a student without it also gives where an image misleads. Errors: "
        f"the images that a network gets wrong. What would rest on fewer than {FEWEST_ERRORS} of them is refused.\n"
        "- Between seeds: mean agreement of two students of the same row.\n"
        "- KL: KL(teacher ‖ student) at T = 1, in nats. Scaled: after temperature scaling of both networks, so that a "
        "difference in confidence alone does not count.",
        f"## Compared with {base}",
        tables.difference_table(study),
        f"- Intervals: {level}, Student's t over seeds, not corrected. p: paired t test, corrected by Holm's method "
        "within each of three families: test accuracy; agreement and KL; all other figures. They cover what differs "
        f"between the seeds of these students, not other teachers or test images.\n- {VERDICT_NOTE}",
        tables.images_table(study),
        f"- Accuracy on other images: {level} interval of the difference between these very networks on all images of "
        "this kind, by bootstrap over the test images.\n"
        "- More right, fewer right: McNemar's exact test for each common seed, corrected by Holm's method for all "
        "pairs of the table.",
        *_variation(study),
        "## Confidence",
        tables.confidence_table(study),
        *shown(CALIBRATION),
        f"- ECE: expected calibration error over {BINS} bins of equal width. Not drawn: bins with fewer than "
        f"{FEWEST_IN_BIN} images in a seed, or {1000 * LEAST_SHARE:g} in a thousand.\n"
        "- Scaled: temperature scaling (Guo et al. 2017), cross-fitted on the test images for want of a validation "
        "split: those with an even index get the temperature that minimises the NLL of those with an odd index, and "
        "the reverse. The fitted T is the mean of the two; above 1, the network is overconfident. Nothing is scaled "
        f"with fewer than {FEWEST_ERRORS} errors in either half.\n"
        + (f"- Scaling makes the NLL of {worse} worse: it is no better calibrated by it.\n" if worse else ""),
        "## Classes",
        *shown(CLASSES),
        tables.class_table(study, pixels.classes),
        "- Intervals are of one class each; verdicts are corrected by Holm's method for all classes of all students. "
        f"A class is refused where fewer than {FEWEST_ERRORS} of its images are wrong in some seed of the two.",
        "## Images fixed and broken",
        tables.change_table(study),
        f"- Fixed: wrong in most seeds of {base}, right in most of the student; most: all of up to four seeds, four "
        "fifths of more. Broken: the reverse.\n"
        "- Seeds against seeds: mean over all choices of as many seeds of both. The last column compares two such sets "
        f"of {base}: what seeds change by themselves. Empty where {base} has one seed.\n"
        "- The pictures show what changed, not how often distillation helps.",
        *shown(IMAGES),
        "" if pixels.images is not None else "The images themselves are drawn with `--images ROOT`.",
    ]
    if study.notes:
        parts += ["## Left out", bullets(study.notes)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _variation(study: Study) -> list[str]:
    """Return what varies in the test accuracy, in points, where there are seeds enough."""
    table = variation({student.label: student.correct for student in study.students}, "run")
    if not table:
        return []
    return [
        "## What varies",
        "Standard deviations of the test accuracy, in points.",
        table,
        "- Between seeds, on all images of this kind: what is left without the luck of single images (Jordan 2023, "
        "arXiv 2304.01910); rough with few seeds, and below 0 counts as 0. A seed that is better on these images is "
        "better on others by about this much only.\n"
        f"- Between test splits: of the mean accuracy of these networks on other splits of {len(study.labels):,} "
        "images. More seeds do not make it smaller. Differences, which share the images, vary less.",
    ]
