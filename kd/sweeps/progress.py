"""Output of a sweep: a line for each job that has ended, and a table at the end. No torch import."""

import math
import os
import shutil
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kd.sweeps import plan
from kd.sweeps.jobs import Job, by_reason, together
from kd.terminal import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

POLL_SECONDS = 1.0
SILENT_SECONDS = 60.0
"""The time after which a sweep whose jobs run side by side prints that it is at work; doubled each time."""
RUN = ("done", "failed")
ENDED = ("skipped", "refused", *RUN)
LONG = 40
"""The most jobs that the table at the end lists one by one; of more it lists the best and the failed."""
WIDE = 120
"""The most characters of a job's settings, or of a reason, that are shown in the line of a job."""
REASON = 400
"""The most characters of a reason at the end, where each is printed once."""
WORD = 20
"""The most characters of a word that is left out whole where text is shortened."""
COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "refused": "red",
    "unreadable": "red",
    "interrupted": "yellow",
    "pruned": "yellow",
}
"""Colours: of the terminal's own sixteen, which its theme makes readable. No status is told by colour alone."""


class Progress:
    """One line for each job that has ended: its outcome, the jobs left and their estimated time, the best so far.

    Args:
        jobs: all of the sweep, after `place`.
        print_line: prints a line.
        clock: returns the time in seconds.
    """

    def __init__(
        self, jobs: Sequence[Job], print_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.jobs, self.print_line, self.clock = jobs, print_line, clock
        self.began = clock()
        self.left = list(jobs)
        self.printed = 0
        """How many jobs have a line."""
        self.best: tuple[float, str] = (-math.inf, "")
        """Highest validation accuracy of a student, and its job's label."""
        self._due = SILENT_SECONDS
        self._before = {job: job.trained for job in jobs}
        self._worked = 0.0
        """Shares of their epochs that jobs which have ended trained since the sweep began."""
        self._lock = threading.Lock()
        self._date = time.time()
        self._write_plan()

    def update(self) -> None:
        """Print a line for each job that has ended since the last update; those that do not run share theirs."""
        with self._lock:
            ended = [job for job in self.left if job.status in ENDED]
            self.left = [job for job in self.left if job not in ended]
            self._worked += sum((1.0 if job.status == "done" else job.trained) - self._before[job] for job in ended)
            for group in by_reason([job for job in ended if job.status not in RUN]):
                self._print(group)
            for job in ended:
                if job.status in RUN:
                    self._print([job])
            if any(job.status == "refused" or job.reason is not None for job in ended):
                self._write_plan()

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Update every `POLL_SECONDS` while jobs run in other processes, and once at the end."""
        over = threading.Event()

        def poll() -> None:
            while not over.wait(POLL_SECONDS):
                self.update()
                self._print_sign_of_life()

        poller = threading.Thread(target=poll, daemon=True)
        poller.start()
        try:
            yield
        finally:
            over.set()
            poller.join()
            self.update()

    def _write_plan(self) -> None:
        plan.write(self.jobs, list(self._before.values()), self._date)

    def _print(self, jobs: Sequence[Job]) -> None:
        """Print the line of jobs of the same status and reason."""
        for job in jobs:
            record = job.outcome
            if record is not None and record.val_acc is not None and record.student is not None:
                self.best = max(self.best, (record.val_acc, job.label))
        status, why, record = jobs[0].status, jobs[0].why, jobs[0].record
        details = [shown(why)] if why else []
        if status in RUN and record is not None and record.val_acc is not None:
            details.append(f"val {100 * record.val_acc:.2f} %")
        self.printed += len(jobs)
        total = str(len(self.jobs))
        line = f"[{self.printed:{len(total)}}/{total}] {status:<7} {shown(together(jobs, self.jobs))}"
        line += f": {', '.join(details)}" if details else ""
        if status in RUN:
            line += f" | {self._time()}"
            if self.best[1]:
                line += f" | best val {100 * self.best[0]:.2f} %: {shown(self.best[1])}"
        self.print_line(wrapped(line))

    def _print_sign_of_life(self) -> None:
        if self.clock() - self.began >= self._due:
            self._due *= 2
            self.print_line(wrapped(f"[{self.printed}/{len(self.jobs)}] {self._time()}"))

    def _time(self) -> str:
        """Return the time gone, how many jobs are left, and for how long by the epochs that all have trained so far."""
        elapsed = self.clock() - self.began
        if not self.left:
            return f"{duration(elapsed)} gone"
        running = sum(job.status == "running" for job in self.left)
        text = f"{duration(elapsed)} gone, {len(self.left)} left" + (f", {running} of them running" if running else "")
        trained = {job: job.trained for job in self.left}
        work = self._worked + sum(share - self._before[job] for job, share in trained.items())
        if work <= 0:
            return text
        seconds = elapsed / work * sum(1 - share for share in trained.values())
        return f"{text}{',' if running else ''} in about {duration(seconds)}"


def shown(text: str, most: int = WIDE) -> str:
    """Return text as it fits into a line of a terminal: no control characters, and of a long one both ends."""
    line = visible(" ".join(text.split()))
    if len(line) <= most:
        return line
    tail = line[-(most // 3) :]
    head = line[: most - len(tail) - len(" ... ")]
    if len(head) - head.rfind(" ") < WORD:
        head = head[: head.rfind(" ")]
    if 0 <= tail.find(" ") < WORD:
        tail = tail[tail.find(" ") + 1 :]
    return f"{head} ... {tail}"


def wrapped(line: str) -> str:
    """Return a line broken between words at the width of the terminal; as it is where it goes to a file or a pipe."""
    if not sys.stdout.isatty():
        return line
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)


def console() -> "Console":
    """Return a console that wraps lines at the width of a terminal only: a file or a pipe has none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


def table(jobs: Sequence[Job]) -> "Table":
    """Return a table of every job; of more than `LONG`, those that failed and the ten best by validation accuracy."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    made.add_column("run", overflow="fold")
    made.add_column("settings", overflow="fold")
    made.add_column("status", no_wrap=True)
    for heading in ("val acc", "test acc"):
        made.add_column(heading, justify="right", no_wrap=True)
    for job in jobs if len(jobs) <= LONG else _best_and_failed(jobs):
        record = job.outcome
        accuracies = (None, None) if record is None else (record.val_acc, record.test_acc)
        cells = (
            job.directory.name if job.directory else "",
            job.label,
            job.status,
            *("" if accuracy is None else f"{100 * accuracy:.2f}" for accuracy in accuracies),
        )
        # No markup: "[v2]" may be part of a setting.
        made.add_row(*(Text(shown(cell), COLOURS.get(cell, "") if cell == job.status else "") for cell in cells))
    return made


def reasons(jobs: Sequence[Job]) -> list[str]:
    """Return one line for each reason why jobs failed or were refused."""
    missing = [job for job in jobs if job.status in ("failed", "refused")]
    return [
        wrapped(f"{group[0].status} {shown(together(group, jobs))}: {shown(group[0].why, REASON)}")
        for group in by_reason(missing)
    ]


def _best_and_failed(jobs: Sequence[Job]) -> list[Job]:
    def accuracy(job: Job) -> float:
        record = job.outcome
        return -math.inf if record is None or record.val_acc is None else record.val_acc

    ended_well = [job for job in jobs if job.status in ("done", "skipped") and job.same_as is None]
    best = sorted(ended_well, key=accuracy, reverse=True)[:10]
    return [job for job in jobs if job in best or job.status not in ("done", "skipped")]


def count(jobs: Sequence[Job]) -> str:
    """Return the number of jobs of each status, as in "10 done, 2 failed"."""
    counts = Counter(job.status for job in jobs)
    order = ("done", "skipped", "failed", "refused", "interrupted", "running", "waiting")
    return ", ".join(f"{counts[status]} {status}" for status in order if counts[status])


def duration(seconds: float) -> str:
    """Format seconds as on a clock: "4:05", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
