"""The report on disk: tables for people and for programs, and pictures."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.errors import UserError
from kd.report import figures
from kd.report.comparison import Comparison, by_baseline, comparison_notes
from kd.report.ranking import best
from kd.report.rows import Summary
from kd.report.sweeps import Picture, pictures
from kd.report.tables import differences_to_markdown, to_csv, to_markdown

ACCURACY = "accuracy_comparison.png"
CURVES = "distillation_comparison.png"
DPI = 150


class Report(NamedTuple):
    """Texts and pictures of one report."""

    texts: dict[str, str]
    """`results.csv` for programs and `results.md` for people."""
    pictures: list[Picture]
    """Two are always there; more follow the swept knobs."""

    def write(self, out: Path) -> list[Path]:
        """Write into a directory, over what an earlier report left there; return the paths of all files.

        Raises:
            UserError: if they cannot be written.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, text in self.texts.items():
                (out / name).write_text(text, encoding="utf-8")
            for picture in self.pictures:
                picture.figure.savefig(out / picture.name, dpi=DPI)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"the report cannot be written to {out}: {reason}; choose another") from error
        return [out / name for name in (*self.texts, *(picture.name for picture in self.pictures))]


def report(summary: Summary, comparisons: Sequence[Comparison] = ()) -> Report:
    """Make tables and pictures of rows and of the comparisons among them."""
    drawn = [
        Picture(ACCURACY, figures.accuracy(summary), "Test accuracy"),
        Picture(CURVES, figures.curves(summary), "Learning curves"),
        *_differences(comparisons),
        *pictures(summary),
    ]
    page = to_page(summary, comparisons, drawn)
    return Report({"results.csv": to_csv(summary.rows, comparisons), "results.md": page}, drawn)


def _differences(comparisons: Sequence[Comparison]) -> list[Picture]:
    """Draw one picture for each baseline of several rows, unless these are too many to be labelled."""
    drawn: list[Picture] = []
    for baseline, compared in by_baseline(comparisons):
        shared = [comparison for comparison in compared if comparison.difference.n]
        if 1 < len(shared) <= figures.CROWD:
            name = re.sub(r"[^\w.=-]+", "_", baseline) + (f"_{len(drawn)}" if drawn else "")
            drawn.append(Picture(f"difference_{name}.png", figures.differences(shared), f"Compared with {baseline}"))
    return drawn


def to_page(summary: Summary, comparisons: Sequence[Comparison], drawn: Sequence[Picture]) -> str:
    """Return `results.md`: the tables, notes on them, and links to the pictures beside it."""
    parts = [f"# Results on {summary.datasets}", "\n\n".join(best(summary.rows)), to_markdown(summary.rows)]
    parts.append(bullets(summary.notes))
    for baseline, compared in by_baseline(comparisons):
        parts += [f"## Compared with {baseline}", differences_to_markdown(compared)]
    parts.append(bullets(comparison_notes(summary.rows, comparisons)))
    parts += [f"![{picture.what}]({picture.name})" for picture in drawn]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def bullets(notes: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "".join(f"- {note}\n" for note in notes)
