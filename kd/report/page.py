"""The report on disk: tables for people and for programs, and pictures."""

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import matplotlib

from kd.errors import UserError
from kd.files import replaced
from kd.report import figures, tuning
from kd.report.comparison import Comparison, baseline_name, by_baseline, comparison_notes
from kd.report.crossed import ACROSS_NOTES, across
from kd.report.differences import differences
from kd.report.ranking import best
from kd.report.rows import titled
from kd.report.summary import Summary
from kd.report.sweeps import Picture, pictures
from kd.report.tables import across_cells, differences_to_markdown, to_csv, to_markdown
from kd.report.text import escaped, slug

ACCURACY = "accuracy_comparison.png"
CURVES = "distillation_comparison.png"
DPI = 150
MOST_DATASETS = 20
"""Data sets with pictures, which take half a second each."""


class Report(NamedTuple):
    """Texts and pictures of one report."""

    texts: dict[str, str]
    """`results.csv` for programs and `results.md` for people."""
    pictures: list[Picture]
    """Two of each data set are always there; more follow the swept knobs."""

    def write(self, out: Path) -> list[Path]:
        """Write into a directory, over what an earlier report left there; return the paths of all files.

        Raises:
            UserError: if they cannot be written.
        """
        return write(self.texts, self.pictures, out)


def report(summary: Summary, comparisons: Sequence[Comparison] = ()) -> Report:
    """Make tables and pictures of rows and of the comparisons among them; pictures of each data set by itself."""
    drawn: list[Picture] = []
    parts = summary.by_dataset()
    for part in parts[:MOST_DATASETS]:
        here = {id(row) for row in part.rows}
        compared = [comparison for comparison in comparisons if id(comparison.row) in here]
        pictures = _pictures(part, compared)
        drawn += [_of_dataset(picture, part) for picture in pictures] if len(parts) > 1 else pictures
    drawn = distinct(drawn)
    page = to_page(summary, comparisons, drawn)
    return Report({"results.csv": to_csv(summary.rows, comparisons), "results.md": page}, drawn)


def _pictures(part: Summary, comparisons: Sequence[Comparison]) -> list[Picture]:
    """Draw the rows of one data set. Differences are drawn unless they are too many to be labelled."""
    drawn = [
        Picture(ACCURACY, figures.accuracy(part), "Test accuracy"),
        Picture(CURVES, figures.curves(part), "Learning curves"),
    ]
    shared = [comparison for comparison in comparisons if comparison.difference.n]
    if 1 < len(shared) <= figures.CROWD:
        (baseline, _), *others = by_baseline(shared)
        if others:
            what = f"Compared with {baseline_name(shared)}"
            figure = differences(shared, title=f"Test accuracy on {titled(part.rows)}, c{what[1:]}")
            drawn.append(Picture("difference.png", figure, what))
        else:
            drawn.append(Picture(f"difference_{slug(baseline)}.png", differences(shared), f"Compared with {baseline}"))
    tuned = tuning.budgets(part.rows, part.cut_short)
    if len(tuned) > 1:
        drawn.append(Picture("budget.png", tuning.picture(part.rows, tuned), "Accuracy over tuning budget"))
    return [*drawn, *pictures(part)]


def _of_dataset(picture: Picture, part: Summary) -> Picture:
    """Put the data set into a picture's file name and description."""
    dataset, (stem, suffix) = part.rows[0].first.dataset, picture.name.rsplit(".", 1)
    what = picture.what if picture.what.endswith(dataset) else f"{picture.what}, {dataset}"
    return Picture(f"{stem}_{slug(dataset)}.{suffix}", picture.figure, what)


def distinct(drawn: Iterable[Picture]) -> list[Picture]:
    """Return the pictures under names that differ: "a b" and "a_b" are one as parts of a file name."""
    named: dict[str, Picture] = {}
    for picture in drawn:
        stem, suffix = picture.name.rsplit(".", 1)
        name, number = picture.name, 2
        while name in named:
            name, number = f"{stem}_{number}.{suffix}", number + 1
        named[name] = picture._replace(name=name)
    return list(named.values())


def write(texts: dict[str, str], drawn: Sequence[Picture], out: Path) -> list[Path]:
    """Write texts and pictures into a directory, over earlier ones of these names, and return their paths.

    All are complete before the first earlier one is replaced: if that fails, or the process is killed, those stay.

    Args:
        texts: contents by file name.
        drawn: pictures of different names.
        out: the directory, which is made if there is none.

    Raises:
        UserError: if they cannot be written, or something else than a file is in their place.
    """
    paths = [out / name for name in (*texts, *(picture.name for picture in drawn))]
    for path in paths:
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise UserError(f"{path} is no file but a link, folder or the like; move it away, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # which replaces the last first, so that the pictures of a page are there before it
            temporary = [stack.enter_context(replaced(path)) for path in paths]
            for path, text in zip(temporary, texts.values(), strict=False):
                path.write_text(text, encoding="utf-8")
            _save(drawn, temporary[len(texts) :])
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the report cannot be written to {out}: {reason}; choose another --out") from error
    return paths


def _save(drawn: Iterable[Picture], paths: Iterable[Path]) -> None:
    # Type 3 fonts, which are the default in PDFs, are refused by publishers.
    with warnings.catch_warnings(), matplotlib.rc_context({"pdf.fonttype": 42}):
        # A script that the font lacks is drawn as boxes, or letter by letter; the tables have the name. And a name may
        # be too long for its picture.
        for message in (
            "Glyph .* missing",
            "Matplotlib .* does not support .* natively",
            "constrained_layout not applied",
        ):
            warnings.filterwarnings("ignore", message=message)
        for picture, path in zip(drawn, paths, strict=True):
            picture.figure.savefig(path, dpi=DPI, format=picture.name.rpartition(".")[2])


def to_page(summary: Summary, comparisons: Sequence[Comparison], drawn: Sequence[Picture]) -> str:
    """Return `results.md`: a table for each data set, notes, comparisons, and links to the pictures beside it."""
    by_dataset = summary.by_dataset()
    several = len(by_dataset) > 1
    parts = [f"# Results on {escaped(summary.datasets if several else titled(summary.rows))}"]
    for part in by_dataset:
        parts += [f"## {escaped(titled(part.rows))}"] if several else []
        parts += [escaped(best(part.rows)), to_markdown(part.rows)]
    parts += ["## Notes"] if several else []
    parts.append(bullets(summary.notes))
    for part in by_dataset:
        tuned = tuning.budgets(part.rows, part.cut_short)
        if len(tuned) > 1:
            where = f" on {escaped(titled(part.rows))}" if several else ""
            parts += [f"## Tuning{where}", tuning.cells(tuned).to_markdown(), bullets([tuning.NOTE])]
    for baseline, compared in by_baseline(comparisons):
        parts += [f"## Compared with {escaped(baseline)}", differences_to_markdown(compared)]
    parts.append(bullets(comparison_notes(summary.rows, comparisons)))
    lines = across(summary.rows, comparisons)
    if lines:
        parts += ["## New teachers and new seeds", across_cells(lines).to_markdown(), bullets(ACROSS_NOTES)]
    if len(by_dataset) > MOST_DATASETS:
        parts.append(f"Pictures show the first {MOST_DATASETS} of the {len(by_dataset)} data sets.")
    parts += linked(drawn)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def linked(drawn: Iterable[Picture]) -> list[str]:
    """Return Markdown that shows the pictures."""
    return [f"![{escaped(picture.what, brackets=True)}]({picture.name})" for picture in drawn]


def bullets(notes: Iterable[str]) -> str:
    """Return sentences in plain text as a Markdown list."""
    return "".join(f"- {escaped(note)}\n" for note in notes)
