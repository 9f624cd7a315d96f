"""Cases in forked worker processes: what each did, how long it took, what memory it took, and what ended it.

The parent has loaded everything that a case may need, so that a worker starts in a tenth of a second. It is reused for
many cases. If one ends it (a crash, a hang, the limit on memory), the next case gets a new worker.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from kd.errors import UserError

SECONDS = 10.0
"""Of processor time; a case that takes more hangs. One that waits for something hangs after `PATIENCE` times that."""
PATIENCE = 6
MEGABYTES = 1200
"""Resident beyond what the process held before the case: 2 GB with the 800 of the loaded libraries."""


class RefusedError(Exception):
    """The program refused the case: its message."""


class NonsenseError(Exception):
    """The program accepted the case, and did not do what it says."""


Case = Callable[[random.Random, Path, Path], None]
"""Makes a case from random numbers in an empty folder, the current one, and tries it; the first path is that of the
originals. Returns if the program accepted it; raises RefusedError or a UserError if it refused it, NonsenseError if
what it did is wrong. Any other exception is a traceback at the user."""


class Outcome(NamedTuple):
    """What became of a case."""

    seed: int
    verdict: str
    """"accepted", "refused", or what failed: "traceback", "nonsense", "hang", "memory", "crash"."""
    note: str
    seconds: float
    megabytes: int
    """Peak resident memory."""

    @property
    def survived(self) -> bool:
        return self.verdict in ("accepted", "refused")


def try_cases(case: Case, name: str, seeds: Sequence[int], originals: Path, each: int = 50) -> Iterator[Outcome]:
    """Try cases one after the other, in forked workers.

    Args:
        case: see `Case`.
        name: of the kind; with the seed it decides the random numbers.
        seeds: one of each case.
        originals: what the cases are made from.
        each: number of cases of one worker.
    """
    left = list(seeds)
    with tempfile.TemporaryDirectory(prefix="fuzz") as temporary:
        while left:
            log = Path(temporary, "log")
            log.write_bytes(b"")
            pid = os.fork()
            if pid == 0:
                _work(case, name, left[:each], originals, Path(temporary), log)
            _, status, _ = os.wait4(pid, 0)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            done = [Outcome(*line) for line in lines if len(line) > 1]
            yield from done
            left = left[len(done) :]
            if len(lines) > 2 * len(done):  # the last case began and did not end
                verdict, note = _ended(status)
                seconds = time.time() - log.stat().st_mtime
                yield Outcome(left.pop(0), verdict, note, seconds, 0)


def printed() -> tuple[str, str]:
    """Return what the case has written so far to stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = (os.pread(number, 2**24, 0).decode("utf-8", "replace") for number in (1, 2))
    return out, err


def _ended(status: int) -> tuple[str, str]:
    if not os.WIFSIGNALED(status):
        return "crash", f"exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    name = signal.Signals(number).name
    return ("hang" if name in ("SIGALRM", "SIGXCPU", "SIGPROF") else "crash"), name


def _work(case: Case, name: str, seeds: Sequence[int], originals: Path, temporary: Path, log: Path) -> NoReturn:
    """Try the cases in this process, and leave it."""
    try:
        _isolate(temporary)
        with open(log, "a") as progress:
            for seed in seeds:
                shutil.rmtree(temporary / "here", ignore_errors=True)
                (temporary / "here").mkdir()
                os.chdir(temporary / "here")
                print(json.dumps([seed]), file=progress, flush=True)
                print(json.dumps(_tried(case, name, seed, originals)), file=progress, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _isolate(temporary: Path) -> None:
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    for number, stream in ((1, "stdout"), (2, "stderr")):
        file = os.open(temporary / stream, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, number)
        setattr(sys, stream, io.TextIOWrapper(open(number, "wb", closefd=False), encoding="utf-8"))  # noqa: SIM115
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * 10**9,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _tried(case: Case, name: str, seed: int, originals: Path) -> Outcome:
    for number in (1, 2):
        os.ftruncate(number, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is this case's
    for kind in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(kind, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    before, held = time.process_time(), _resident("VmRSS")
    try:
        case(random.Random(f"{name} {seed}"), originals, Path.cwd())
        verdict, note = "accepted", ""
    except (UserError, RefusedError) as error:
        verdict, note = "refused", str(error)
        wrong = wrong_line(note)
        if wrong:
            verdict, note = "nonsense", f"{wrong}: {note[:300]!r}"
    except NonsenseError as error:
        verdict, note = "nonsense", str(error)
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        verdict, note = "traceback", text if len(text) < 2500 else f"{text[:1500]}\n...\n{text[-900:]}"
    seconds = time.process_time() - before
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    megabytes = _resident("VmHWM")
    if megabytes > held + MEGABYTES:
        verdict, note = "memory", f"{megabytes} MB; {verdict}: {note}"
    return Outcome(seed, verdict, note, round(seconds, 3), megabytes)


def _resident(which: str) -> int:
    """Megabytes that this process holds (VmRSS), or has held at most (VmHWM)."""
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) // 1000


def wrong_line(message: str) -> str | None:
    """Return what is wrong with a message to a user; None if it is one or two lines of printable text."""
    if not message.strip():
        return "an empty message"
    if "Traceback (most" in message:
        return "a traceback"
    if message.strip().count("\n") > 2:
        return "more than three lines"
    if len(message) > 4000:
        return "a message of over 4,000 characters"
    if not all(letter.isprintable() or letter == "\n" for letter in message):
        return "control characters"
    if "weights_only" in message:
        return "torch's advice to unpickle the file"
    return None
