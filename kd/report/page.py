"""The report on disk: the table for people and for programs, and the pictures."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kd.errors import UserError
from kd.report import figures
from kd.report.comparison import Comparison, by_baseline, reading
from kd.report.ranking import best
from kd.report.rows import Summary
from kd.report.sweeps import Picture, pictures
from kd.report.tables import differences_to_markdown, to_csv, to_markdown

ACCURACY = "accuracy_comparison.png"
CURVES = "distillation_comparison.png"
DPI = 150


class Report(NamedTuple):
    """All that is told of some rows."""

    texts: dict[str, str]
    """`results.csv` for programs and `results.md` for people."""
    pictures: list[Picture]
    """Two are always there; more follow the swept knobs."""

    def write(self, out: Path) -> list[Path]:
        """Into a directory, over what an earlier report left there; returns the paths of all that was written.

        Raises:
            UserError: if it cannot be written.
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
    """Tables and pictures of rows, and of what is compared among them."""
    drawn = [
        Picture(ACCURACY, figures.accuracy(summary), "Test accuracy"),
        Picture(CURVES, figures.curves(summary), "Learning curves"),
        *_differences(comparisons),
        *pictures(summary),
    ]
    page = to_page(summary, comparisons, drawn)
    return Report({"results.csv": to_csv(summary.rows, comparisons), "results.md": page}, drawn)


def _differences(comparisons: Sequence[Comparison]) -> list[Picture]:
    """One for each baseline with which several rows are compared, unless these are too many to be named."""
    found: list[Picture] = []
    for baseline, compared in by_baseline(comparisons):
        known = [one for one in compared if one.difference.n]
        if 1 < len(known) <= figures.CROWD:
            name = re.sub(r"[^\w.=-]+", "_", baseline) + (f"_{len(found)}" if found else "")
            found.append(Picture(f"difference_{name}.png", figures.differences(known), f"Compared with {baseline}"))
    return found


def to_page(summary: Summary, comparisons: Sequence[Comparison], drawn: Sequence[Picture]) -> str:
    """`results.md`: the tables, what to know about them, and the pictures that lie beside it."""
    parts = [f"# Results on {summary.datasets}", "\n\n".join(best(summary.rows)), to_markdown(summary.rows)]
    parts.append(listed(summary.notes))
    for baseline, compared in by_baseline(comparisons):
        parts += [f"## Compared with {baseline}", differences_to_markdown(compared)]
    parts.append(listed(reading(summary.rows, comparisons)))
    parts += [f"![{picture.what}]({picture.name})" for picture in drawn]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def listed(notes: Iterable[str]) -> str:
    """As a Markdown list."""
    return "".join(f"- {note}\n" for note in notes)
