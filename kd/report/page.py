"""The report on disk: the table for people and for programs, and the pictures."""

from pathlib import Path

from kd.errors import UserError
from kd.report import figures
from kd.report.rows import Summary
from kd.report.tables import to_csv, to_markdown

ACCURACY = "accuracy_comparison.png"
CURVES = "distillation_comparison.png"
DPI = 150


def write_report(summary: Summary, out: Path) -> list[Path]:
    """Write `results.csv`, `results.md` and the two pictures into `out`, over what an earlier report left there.

    Returns their paths. Raises UserError if `out` cannot be written.
    """
    table, page = out / "results.csv", out / "results.md"
    accuracy, curves = out / ACCURACY, out / CURVES
    try:
        out.mkdir(parents=True, exist_ok=True)
        table.write_text(to_csv(summary.rows), encoding="utf-8")
        page.write_text(to_page(summary), encoding="utf-8")
        figures.accuracy(summary).savefig(accuracy, dpi=DPI)
        figures.curves(summary).savefig(curves, dpi=DPI)
    except OSError as error:
        raise UserError(f"the report cannot be written to {out}: {error.strerror or error}; choose another") from error
    return [table, page, accuracy, curves]


def to_page(summary: Summary) -> str:
    """`results.md`: the table, what to know about it, and the pictures that lie beside it."""
    notes = "".join(f"- {note}\n" for note in summary.notes)
    pictures = f"![Test accuracy]({ACCURACY})\n\n![Learning curves]({CURVES})\n"
    return f"# Results on {summary.datasets}\n\n{to_markdown(summary.rows)}\n{notes}\n{pictures}"
