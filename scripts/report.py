"""Write tables and pictures from the results of training runs."""

import argparse
import sys

from rich.console import Console

from kd.errors import UserError
from kd.report.arguments import parser
from kd.report.comparison import by_baseline, compare, comparison_notes
from kd.report.ranking import best, leaders
from kd.report.rows import summarize
from kd.report.tables import differences_to_rich, to_rich
from kd.runs.results import REPORT, collect

MANY = 40
"""With more rows than MANY, the terminal shows FEW of them; the files have all."""
FEW = 20


def main() -> int:
    args = _arguments()
    try:
        results, skipped = collect(args.dirs)
        summary = summarize(results, skipped)
        comparisons = compare(summary.rows, args.baseline)
        from kd.report.page import report  # matplotlib takes a second, too long for help and mistakes

        written = report(summary, comparisons).write(args.out or args.dirs[0] / REPORT)
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    places, remark = leaders(summary.rows, FEW if len(summary.rows) > MANY else MANY)
    rows = [summary.rows[i] for i in places]
    console = Console()
    console.print(to_rich(rows, console.width))
    for baseline, compared in by_baseline(comparisons):
        print(f"Compared with {baseline}:")
        compared = [comparison for comparison in compared if any(comparison.row is row for row in rows)]
        console.print(differences_to_rich(compared, console.width))
    if remark:
        print(f"{remark}. All of them are in results.md and results.csv.\n")
    print(*best(summary.rows), "", *summary.notes, *comparison_notes(summary.rows, comparisons), "", *written, sep="\n")
    return 0


def _arguments() -> argparse.Namespace:
    return parser(
        "Compare training runs: one row per configuration, over its seeds, compared with a baseline over\n"
        "the seeds that both have. Reads every result.json below the directories; writes results.md, results.csv and\n"
        "pictures of accuracies, learning curves and whatever knobs or sizes were swept.",
        "  python train.py -m method=standard,logits,feature seed=0,1,2 hydra.sweep.dir=multirun/first\n"
        "  python scripts/report.py multirun/first\n"
        "  python scripts/report.py multirun/first --baseline logits",
    ).parse_args()


if __name__ == "__main__":
    sys.exit(main())
