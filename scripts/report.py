"""Write tables and pictures from the results of training runs."""

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from kd.errors import UserError
from kd.report.arguments import out_dir, parser
from kd.report.comparison import Comparison, by_baseline, compare, comparison_notes
from kd.report.html import bundle
from kd.report.ranking import best, leaders
from kd.report.rows import Row, titled
from kd.report.summary import Summary, summarize
from kd.report.tables import differences_to_rich, to_rich
from kd.report.text import encodable
from kd.runs.results import collect
from kd.sweeps import progress
from kd.terminal import end_with_the_pipe, outcome, visible

MANY = 40
"""With more rows than MANY, the terminal shows FEW of them; the files have all."""
FEW = 20


def main() -> int:
    return outcome("report.py", work)


def work() -> None:
    """Do what the command line selects."""
    args = _arguments()
    results, skipped = collect(args.dirs)
    summary = summarize(results, skipped)
    comparisons = compare(summary.rows, args.baseline, args.margin)
    from kd.report.page import report  # matplotlib takes a second, too long for help and mistakes
    from kd.report.paper import for_paper

    made = report(summary, comparisons)
    if args.paper:
        made = for_paper(made, summary, comparisons)
    if bundle.installed():
        from kd.report.html.page import page

        made.texts[bundle.PAGE] = page(summary, comparisons, args.dirs, args.images)
    elif args.open or args.images:
        raise UserError(bundle.MISSING)
    written = made.write(out_dir(args))
    show(summary, comparisons)
    print("", *(visible(str(path)) for path in written), sep="\n")
    if bundle.PAGE not in made.texts:
        print(bundle.MISSING)
    elif args.open and not webbrowser.open((out_dir(args) / bundle.PAGE).resolve().as_uri()):
        print(f"no browser was found to open {bundle.PAGE} with")


def show(summary: Summary, comparisons: Sequence[Comparison]) -> None:
    """Print tables, one of each data set, and what a reader of them must know."""
    console = progress.console()

    def print_lines(*lines: str) -> None:
        # In a file, a sentence is a line. Text: names are no markup.
        for line in lines:
            console.print(Text(encodable(line, console.encoding)), soft_wrap=not console.is_terminal)

    shown: list[Row] = []
    parts = summary.by_dataset()
    for part in parts:
        places, remark = leaders(part.rows, FEW if len(part.rows) > MANY else MANY)
        rows = [part.rows[i] for i in places]
        if len(parts) > 1 or rows[0].trial:
            print_lines(f"{titled(rows)}:")
        console.print(to_rich(rows, console.width, console.encoding))
        if remark:
            print_lines(f"{remark}. All of them are in results.md and results.csv.", "")
        shown += rows
    for baseline, compared in by_baseline(comparisons):
        compared = [comparison for comparison in compared if any(comparison.row is row for row in shown)]
        if not compared:
            continue
        print_lines(f"Compared with {baseline}:")
        console.print(differences_to_rich(compared, console.width, console.encoding))
    print_lines(*(best(part.rows) for part in parts), "", *summary.notes, *comparison_notes(summary.rows, comparisons))


def _arguments() -> argparse.Namespace:
    made = parser(
        "Compare training runs: one row per configuration, over its seeds, compared with a baseline over\n"
        "the seeds that both have. Reads every result.json below the directories; writes results.md, results.csv,\n"
        "pictures of accuracies, learning curves and whatever knobs or sizes were swept, and index.html: the runs on\n"
        "one page, with the students' predictions beside the teacher's.",
        "  python train.py -m method=standard,logits,feature seed=0,1,2 hydra.sweep.dir=multirun/first\n"
        "  python scripts/report.py multirun/first --open\n"
        "  python scripts/report.py multirun/first --baseline logits --images data",
    )
    made.add_argument("--open", action="store_true", help=f"open {bundle.PAGE} in the browser")
    made.add_argument(
        "--images", type=Path, metavar="ROOT", help="where the images are, data.root of the runs, to show some"
    )
    made.add_argument("--paper", action="store_true", help="also write tables for LaTeX, and the pictures as PDF")
    made.add_argument(
        "--margin",
        type=margin,
        metavar="POINTS",
        help="the greatest difference that does not matter, stated before looking: tests for equivalence within it",
    )
    return made.parse_args()


def margin(text: str) -> float:
    """Read a margin in points as a fraction of 1."""
    try:
        points = float(text)
    except ValueError:
        points = 0.0
    if not 0 < points < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of points between 0 and 100, such as 0.5")
    return points / 100


if __name__ == "__main__":
    end_with_the_pipe()
    sys.exit(main())
