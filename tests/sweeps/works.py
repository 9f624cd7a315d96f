"""What processes do in the tests of `kd.sweeps.processes`; as a program, two of them that sleep."""

import os
import signal
import time
from pathlib import Path

from kd.sweeps.processes import Work, side_by_side, start_server


def nap():
    """Return two variables of the environment, and when it began and ended."""
    began = time.monotonic()
    time.sleep(0.05)
    return os.environ["KD_PLACE"], os.environ["KD_OF_ALL"], began, time.monotonic()


def unsendable():
    return lambda: None


def sleep():
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def ignore():
    """Go on whatever is asked for."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("ignoring").touch()
    time.sleep(60)


if __name__ == "__main__":
    start_server([])
    side_by_side([Work(sleep, Path("output"))] * 2, [{}] * 2)
