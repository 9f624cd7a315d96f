"""How threads wait for the next operation: spinning while the cores are theirs alone, asleep as soon as they are not.

A thread that sleeps is late at every operation, by a tenth of a millisecond on some virtual machines; one that spins
takes its core from whatever else wants it, so that two runs side by side take more than twice the time of one.
GNU's OpenMP library, libgomp, which torch uses on Linux, does not spin at all while it has more threads than there are
cores (its manual, on GOMP_SPINCOUNT), and that can be brought about at any time.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

SPINNING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000000"}
"""The environment for it, which is read with torch. The first is for other libraries than libgomp: they sleep."""
PERIOD = 0.5
"""Seconds between two looks at the cores."""
CROWDED = 0.2
"""Seconds that threads waited for a core, of each second: others want the cores. Alone they wait 0.02 to 0.1."""
CALM = 4
"""Looks without that after which the cores count as theirs again."""


def spin_while_alone() -> None:
    """Start a thread that keeps the others from spinning while other programs want the cores; it ends with the process.

    Nothing is done unless the environment has `SPINNING`.
    """
    if SPINNING.items() <= os.environ.items():
        _watch(os.getpid())


@cache
def _watch(process: int) -> None:
    threading.Thread(target=_look, args=(waited,), name="threads", daemon=True).start()


def _look(waited: Callable[[], float | None]) -> None:
    crowd: Crowd | None = None
    calm, time_before, waited_before = 0, time.monotonic(), waited()
    if waited_before is None:
        Crowd()  # for as long as the process lives
        return
    while True:
        time.sleep(PERIOD)
        now, waited_now = time.monotonic(), waited() or 0.0
        if waited_now - waited_before > CROWDED * (now - time_before):
            calm, crowd = 0, crowd or Crowd()
        else:
            calm += 1
            if crowd is not None and calm == CALM:
                crowd.end()
                crowd = None
        time_before, waited_before = now, waited_now


def waited() -> float | None:
    """Return the seconds that this process's threads were ready to run and had no core; None if Linux does not tell."""
    nanoseconds = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        try:
            nanoseconds += int(thread.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # it has ended, or the kernel does not count
            continue
    return nanoseconds / 1e9 if nanoseconds else None


class Crowd:
    """A team of idle threads. Until its `end`, libgomp has more threads than there are cores, and none spins."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._gather, name="crowd", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _gather(self) -> None:
        loaded = ctypes.CDLL(None)
        if hasattr(loaded, "GOMP_parallel"):
            nothing = ctypes.cast(loaded.free, ctypes.c_void_p)  # of the null pointer
            loaded.GOMP_parallel(nothing, None, os.cpu_count() or 1, 0)
            self._over.wait()  # the team is kept as long as the thread that made it
