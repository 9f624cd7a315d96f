"""Try thousands of damaged files and wrong commands, and count what survived."""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.fuzz import workers


class Kind(NamedTuple):
    """What is damaged, and how many of 100 cases it gets: fewer where a case takes a second or more."""

    case: str
    """Module and function, which load torch and Lightning: too long for help and mistakes."""
    share: int


KINDS = {
    "command": Kind("command.command", 5),
    "configuration": Kind("command.configuration", 3),
    "records": Kind("files.records", 22),
    "predictions": Kind("files.predictions", 26),
    "images": Kind("datasets.images", 29),
    "parquet": Kind("datasets.parquets", 12),
    "checkpoint": Kind("trainings.checkpoints", 2),
    "store": Kind("trainings.store", 1),
}


def main() -> int:
    args = _arguments()
    from tests.fuzz.originals import make_images, prepare

    kinds = args.kinds or list(KINDS)
    for kind in kinds:
        _case(kind)  # loaded before the workers are forked from this process, like what follows
    trains = not {"images", "parquet"}.issuperset(kinds)
    if trains:
        import kd.app.build
        import kd.app.teacher
        import kd.app.train
        import kd.report.page
        import kd.training.loggers  # noqa: F401
    total = sum(KINDS[kind].share for kind in kinds)
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="originals") as temporary:
        originals = Path(temporary)
        prepare(originals) if trains else make_images(originals)
        tried: dict[str, list[workers.Outcome]] = {kind: [] for kind in kinds}
        # Forked, so that they have what is loaded; each forks the workers of its cases in turn.
        with ProcessPoolExecutor(args.jobs, get_context("fork")) as pool:
            parts = [
                (kind, pool.submit(_part, kind, range(first, min(first + 50, args.seed + count)), originals))
                for kind in kinds
                for count in [max(1, round(args.cases * KINDS[kind].share / total))]
                for first in range(args.seed, args.seed + count, 50)
            ]
            for kind, part in parts:
                for outcome in part.result():
                    tried[kind].append(outcome)
                    if not outcome.survived:
                        _print_failure(kind, outcome)
    failed = sum(not outcome.survived for outcomes in tried.values() for outcome in outcomes)
    Console().print(_table(tried))
    print(f"{sum(map(len, tried.values())):,} cases in {time.time() - started:.0f} s, {failed} failed")
    if args.json:
        rows = {kind: [outcome._asdict() for outcome in outcomes] for kind, outcomes in tried.items()}
        args.json.write_text(json.dumps(rows, indent=1))
    return 1 if failed else 0


def _part(kind: str, seeds: range, originals: Path) -> list[workers.Outcome]:
    return list(workers.try_cases(_case(kind), kind, seeds, originals))


def _case(kind: str) -> workers.Case:
    module, _, name = KINDS[kind].case.partition(".")
    case: workers.Case = getattr(import_module(f"tests.fuzz.{module}"), name)
    return case


def _print_failure(kind: str, outcome: workers.Outcome) -> None:
    note = outcome.note.encode("unicode_escape").decode().replace("\\n", "\n  ")
    print(f"{outcome.verdict}: python scripts/fuzz.py {kind} --cases 1 --seed {outcome.seed}\n  {note}\n", flush=True)


def _table(tried: dict[str, list[workers.Outcome]]) -> Table:
    table = Table("kind", "cases", "accepted", "refused", "survived", "slowest", "peak memory")
    for kind, outcomes in tried.items():
        verdicts = [outcome.verdict for outcome in outcomes]
        survived = 100 * sum(outcome.survived for outcome in outcomes) / len(outcomes)
        table.add_row(
            kind,
            f"{len(outcomes):,}",
            f"{verdicts.count('accepted'):,}",
            f"{verdicts.count('refused'):,}",
            f"{survived:.2f} %",
            f"{max(outcome.seconds for outcome in outcomes):.1f} s",
            f"{max(outcome.megabytes for outcome in outcomes):,} MB",
        )
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fuzz.py",
        description="Try damaged files and wrong commands: each is to be refused in a line, or done right.\n"
        "A case fails with a traceback, with exit code 0 and a wrong result, after 10 s of processor time, or above\n"
        "2 GB of memory. Each failure is printed with the command that repeats it.",
        epilog="  python scripts/fuzz.py --cases 10000\n  python scripts/fuzz.py images --cases 1 --seed 17",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"any of {', '.join(KINDS)}; by default all")
    parser.add_argument("--cases", type=int, default=1000, help="of all kinds together (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every case's outcome there")
    args = parser.parse_args()
    unknown = [kind for kind in args.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"there is no kind {unknown[0]}; there are {', '.join(KINDS)}")
    if args.cases < 1:
        parser.error("--cases must be at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
