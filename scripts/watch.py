"""Show a sweep, or a run, in the terminal while it is at work: jobs, curves, best so far, expected end."""

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from kd.errors import UserError
from kd.report.arguments import out_dir
from kd.report.comparison import compare
from kd.report.html import bundle
from kd.report.summary import summarize
from kd.runs.results import collect
from kd.sweeps.dashboard import Dashboard, headline
from kd.sweeps.look import Reader, State
from kd.terminal import Parser, end_with_the_pipe, outcome, positive

PAGE_SECONDS = 60.0
"""The least time between two writings of the report; a long one is written less often still."""
SHARE = 0.1
"""The most of the time that is spent on the report."""


class Page:
    """The report of what is done so far, written again as runs end.

    Args:
        root: the runs.
        out: where it goes.
    """

    def __init__(self, root: Path, out: Path) -> None:
        self.root, self.out, self.note = root, out, ""
        self._done, self._due = -1, -math.inf

    def refresh(self, state: State, last: bool = False) -> None:
        """Write the report if runs have ended since it was written, and if it is time for it or this is the end."""
        done = state.counts()["done"] + state.counts()["skipped"]
        if done == self._done or (time.monotonic() < self._due and not last):
            return
        began, self._done = time.monotonic(), done
        if not done:
            self.note = "no report yet: no run is done"
            return
        try:
            from kd.report.page import report  # matplotlib takes a second

            summary = summarize(*collect([self.root]))
            comparisons = compare(summary.rows)
            made = report(summary, comparisons)
            if bundle.installed():
                from kd.report.html.page import page

                made.texts[bundle.PAGE] = page(summary, comparisons, [self.root])
            made.write(self.out)
            self.note = f"report of {done:,} runs: {self.out}"
        except UserError as error:
            self.note = f"no report: {error}"
        self._due = time.monotonic() + max(PAGE_SECONDS, (time.monotonic() - began) / SHARE)


def main() -> int:
    return outcome("watch.py", work)


def work() -> None:
    """Do what the command line selects."""
    args = arguments()
    reader = Reader(args.directory)
    state = reader.look()
    page = Page(args.directory, out_dir(args)) if args.page or args.out else None
    if args.once:
        _print(state, page)
    elif sys.stdout.isatty():
        _live(reader, state, page, args.refresh)
    else:
        _lines(reader, state, page, args.refresh)


def _console() -> Console:
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if wide else 120, highlight=False)


def _print(state: State, page: Page | None) -> None:
    """Print one frame."""
    console = _console()
    if page is not None:
        page.refresh(state, last=True)
    console.print(Dashboard(console.width, None, console.encoding).frame(state, [page.note] if page else []))


def _live(reader: Reader, state: State, page: Page | None, seconds: float) -> None:
    """Show frames in the same place of a terminal until all is done."""
    console = _console()
    dashboard = Dashboard(console.width, console.height, console.encoding)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            dashboard.width, dashboard.height = max(40, console.width), console.height
            live.update(dashboard.frame(state, [page.note] if page and page.note else []), refresh=True)
            if page is not None:
                page.refresh(state, last=state.over)
            if state.over:
                live.update(dashboard.frame(state, [page.note] if page and page.note else []), refresh=True)
                return
            time.sleep(seconds)
            state = reader.look()


def _lines(reader: Reader, state: State, page: Page | None, seconds: float) -> None:
    """Print a line whenever the number of runs of a status changes, and a frame at the end: for a file or a pipe."""
    before = None
    while True:
        if state.counts() != before:
            print(headline(state), flush=True)
        before = state.counts()
        if state.over:
            break
        if page is not None:
            page.refresh(state)
        time.sleep(seconds)
        state = reader.look()
    _print(state, page)


def arguments() -> argparse.Namespace:
    parser = Parser(
        description="Show runs while they are at work: those of a sweep, of several below a directory, or one alone.\n"
        "Reads what they write, and disturbs none. Ends when all are done; Ctrl-C ends it at any time.",
        epilog="example:\n  python scripts/watch.py multirun/first\n  python scripts/watch.py multirun --once",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="hydra.sweep.dir of a sweep, or what is above it")
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument("--refresh", metavar="SECONDS", type=positive, default=2, help="between two looks (default: 2)")
    parser.add_argument("--page", action="store_true", help="keep the report in DIR/report up to date, too")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where that report goes instead")
    args = parser.parse_args()
    args.dirs = [args.directory]
    return args


if __name__ == "__main__":
    end_with_the_pipe()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a terminal has its cursor again
    sys.exit(main())
