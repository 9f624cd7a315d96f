"""Output of a sweep: a line for each job that has ended, and a table at the end. No torch import."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kd.sweeps.jobs import Job

if TYPE_CHECKING:
    from rich.table import Table

POLL_SECONDS = 1.0
ENDED = ("skipped", "refused", "done", "failed")
LONG = 40
"""The most jobs that the table at the end lists one by one; of more it lists the best and the failed."""


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
        self.printed = self.run = 0
        """How many jobs have a line, and how many this sweep has run."""
        self.best: tuple[float, str] = (-math.inf, "")
        """Highest validation accuracy of a student, and its job's label."""
        self._lock = threading.Lock()

    def update(self) -> None:
        """Print a line for each job that has ended since the last update."""
        with self._lock:
            ended = [(job, status) for job in self.left if (status := job.status) in ENDED]
            for job, status in ended:
                self.left.remove(job)
                self.run += status in ("done", "failed")
            for job, status in ended:
                self._print(job, status)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Update every `POLL_SECONDS` while jobs run in other processes, and once at the end."""
        over = threading.Event()

        def poll() -> None:
            while not over.wait(POLL_SECONDS):
                self.update()

        poller = threading.Thread(target=poll, daemon=True)
        poller.start()
        try:
            yield
        finally:
            over.set()
            poller.join()
            self.update()

    def _print(self, job: Job, status: str) -> None:
        record = job.before or job.record
        details = [job.why] if job.why else []
        if record is not None and record.val_acc is not None:
            details.append(f"val {100 * record.val_acc:.2f} %")
            if record.student is not None:
                self.best = max(self.best, (record.val_acc, job.label))
        self.printed += 1
        total = str(len(self.jobs))
        line = f"[{self.printed:{len(total)}}/{total}] {status:<7} {job.label}"
        line += f": {', '.join(details)}" if details else ""
        if status in ("done", "failed"):
            elapsed = self.clock() - self.began
            line += f" | {duration(elapsed)} gone"
            if self.left:
                running = sum(job.status == "running" for job in self.left)
                line += f", {len(self.left)} left{f', {running} of them running,' if running else ''}"
                line += f" in about {duration(elapsed / self.run * len(self.left))}"
            if self.best[1]:
                line += f" | best val {100 * self.best[0]:.2f} %: {self.best[1]}"
        self.print_line(line)


def table(jobs: Sequence[Job]) -> "Table":
    """Return a table of every job; of more than `LONG`, those that failed and the ten best by validation accuracy."""
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown.add_column("run")
    shown.add_column("settings", overflow="fold")
    shown.add_column("status", no_wrap=True)
    for heading in ("val acc", "test acc"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    for job in jobs if len(jobs) <= LONG else _best_and_failed(jobs):
        record = job.before or job.record
        accuracies = (None, None) if record is None else (record.val_acc, record.test_acc)
        shown.add_row(
            job.directory.name if job.directory else "",
            job.label,
            job.status,
            *("" if accuracy is None else f"{100 * accuracy:.2f}" for accuracy in accuracies),
            job.why,
        )
    return shown


def _best_and_failed(jobs: Sequence[Job]) -> list[Job]:
    def accuracy(job: Job) -> float:
        record = job.before or job.record
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
