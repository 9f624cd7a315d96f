"""The report on disk: tables for people and for programs, and pictures."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.errors import UserError
from kd.report import figures
from kd.report.comparison import Comparison, by_baseline, comparison_notes
from kd.report.ranking import best
from kd.report.rows import Summary, titled
from kd.report.sweeps import Picture, pictures
from kd.report.tables import differences_to_markdown, to_csv, to_markdown
from kd.report.text import escaped, slug

ACCURACY = "accuracy_comparison.png"
CURVES = "distillation_comparison.png"
DPI = 150


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
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, text in self.texts.items():
                (out / name).write_text(text, encoding="utf-8")
            save(self.pictures, out)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"the report cannot be written to {out}: {reason}; choose another") from error
        return [out / name for name in (*self.texts, *(picture.name for picture in self.pictures))]


def report(summary: Summary, comparisons: Sequence[Comparison] = ()) -> Report:
    """Make tables and pictures of rows and of the comparisons among them; pictures of each data set by itself."""
    drawn: list[Picture] = []
    parts = summary.by_dataset()
    for part in parts:
        here = {id(row) for row in part.rows}
        compared = [comparison for comparison in comparisons if id(comparison.row) in here]
        pictures = _pictures(part, compared)
        drawn += [_of_dataset(picture, part, drawn) for picture in pictures] if len(parts) > 1 else pictures
    page = to_page(summary, comparisons, drawn)
    return Report({"results.csv": to_csv(summary.rows, comparisons), "results.md": page}, drawn)


def _pictures(part: Summary, comparisons: Sequence[Comparison]) -> list[Picture]:
    """Draw the rows of one data set. Differences are drawn unless they are too many to be labelled."""
    drawn = [
        Picture(ACCURACY, figures.accuracy(part), "Test accuracy"),
        Picture(CURVES, figures.curves(part), "Learning curves"),
    ]
    for baseline, compared in by_baseline(comparisons):
        shared = [comparison for comparison in compared if comparison.difference.n]
        if 1 < len(shared) <= figures.CROWD:
            what = f"Compared with {baseline}"
            drawn.append(Picture(f"difference_{slug(baseline)}.png", figures.differences(shared), what))
    return [*drawn, *pictures(part)]


def _of_dataset(picture: Picture, part: Summary, taken: Sequence[Picture]) -> Picture:
    """Put the data set into a picture's file name, which differs from the names that are taken, and description."""
    dataset, (stem, suffix) = part.rows[0].first.dataset, picture.name.rsplit(".", 1)
    name = f"{stem}_{slug(dataset)}.{suffix}"
    number = 2
    while name in {other.name for other in taken}:  # "a b" and "a_b" are one name
        name, number = f"{stem}_{slug(dataset)}_{number}.{suffix}", number + 1
    what = picture.what if picture.what.endswith(dataset) else f"{picture.what}, {dataset}"
    return Picture(name, picture.figure, what)


def save(pictures: Iterable[Picture], out: Path) -> None:
    """Write the pictures into a directory."""
    with warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the tables have the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for picture in pictures:
            picture.figure.savefig(out / picture.name, dpi=DPI)


def to_page(summary: Summary, comparisons: Sequence[Comparison], drawn: Sequence[Picture]) -> str:
    """Return `results.md`: a table for each data set, notes, comparisons, and links to the pictures beside it."""
    by_dataset = summary.by_dataset()
    several = len(by_dataset) > 1
    parts = [f"# Results on {escaped(summary.datasets if several else titled(summary.rows))}"]
    for part in by_dataset:
        parts += [f"## {escaped(titled(part.rows))}"] if several else []
        parts += [*map(escaped, best(part.rows)), to_markdown(part.rows)]
    parts += ["## Notes"] if several else []
    parts.append(bullets(summary.notes))
    for baseline, compared in by_baseline(comparisons):
        parts += [f"## Compared with {escaped(baseline)}", differences_to_markdown(compared)]
    parts.append(bullets(comparison_notes(summary.rows, comparisons)))
    parts += linked(drawn)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def linked(drawn: Iterable[Picture]) -> list[str]:
    """Return Markdown that shows the pictures."""
    return [f"![{escaped(picture.what)}]({picture.name})" for picture in drawn]


def bullets(notes: Iterable[str]) -> str:
    """Return sentences in plain text as a Markdown list."""
    return "".join(f"- {escaped(note)}\n" for note in notes)
