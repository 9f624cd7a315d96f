"""Tables and pictures from the results of training runs."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from kd.errors import UserError
from kd.report.rows import summarize
from kd.report.tables import to_rich
from kd.results import REPORT, collect


def main() -> int:
    args = _arguments()
    try:
        results, skipped = collect(args.dirs)
        summary = summarize(results, skipped)
        from kd.report.page import write_report  # matplotlib takes a second that help and mistakes need not wait for

        written = write_report(summary, args.out or args.dirs[0] / REPORT)
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    Console().print(to_rich(summary.rows))
    print(*summary.notes, "", *written, sep="\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare training runs: one row per configuration, over its seeds. Reads every result.json below\n"
        "the directories; writes results.md, results.csv, accuracy_comparison.png and distillation_comparison.png.",
        epilog="example:\n"
        "  python train.py -m method=standard,logits,feature seed=0,1,2 hydra.sweep.dir=multirun/first\n"
        "  python scripts/report.py multirun/first",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="where runs were written to, at any depth")
    parser.add_argument("--out", type=Path, help="where the report goes (default: DIR/report of the first DIR)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
