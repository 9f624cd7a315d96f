"""Measure whether a process grows: over the jobs of a sweep, or over the steps of a run.

    python tests/sweeps/flat.py jobs [--jobs 200] [further settings]
    python tests/sweeps/flat.py steps [--epochs 500] [further settings]

The program runs as a user starts it, and is looked at from outside whenever a job has its record or an epoch its
checkpoint. The table has its resident memory, open files and threads; the last line compares the means of the second
and the last fifth. Needs Linux's /proc.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DIGITS = (
    "data=digits", "data.source.image_size=8", "method=logits", "teacher.scale=1", "student.scale=1",
    "teacher_recipe.epochs=1", "trainer=cpu", "threads=1", "trainer.enable_progress_bar=false",
    "teacher_store=teachers",
)  # fmt: skip
LINES = 10


class Size(NamedTuple):
    """What a process holds at a moment."""

    memory: float
    """Resident, in MB."""
    files: int
    threads: int


def size(pid: int) -> Size:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Size(int(status["VmRSS"].split()[0]) / 1000, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]))


def watch(arguments: list[str], folder: Path, progress: Callable[[], object]) -> list[Size]:
    """Run the program to its end, and return its size at each change of what `progress` returns."""
    sizes, before = [], progress()
    with open(folder / "printed", "w") as printed:
        command = [sys.executable, ROOT / "train.py", *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None:
            now = progress()
            if now != before:
                before = now
                try:
                    sizes.append(size(process.pid))
                except (OSError, KeyError):  # it has just ended
                    break
            time.sleep(0.002)
    if process.wait():
        raise SystemExit((folder / "printed").read_text()[-2000:])
    return sizes


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("over", choices=("jobs", "steps"))
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.over == "jobs":
            seeds = ",".join(map(str, range(options.jobs)))
            of_sweep = ("-m", f"seed={seeds}", "teacher_seed=0", "epochs=1", "batch_size=256", "hydra.sweep.dir=sweep")
            sizes = watch(
                [*DIGITS, *of_sweep, *options.settings], folder, lambda: len(list(folder.glob("sweep/*/result.json")))
            )
        else:
            of_run = (f"epochs={options.epochs}", "batch_size=64", "hydra.run.dir=run")
            sizes = watch([*DIGITS, *of_run, *options.settings], folder, lambda: changed(folder))
    print(f"{options.over[:-1] if options.over == 'jobs' else 'epoch':>6} {'MB':>8} {'files':>6} {'threads':>8}")
    for place in sorted({round(part * (len(sizes) - 1) / LINES) for part in range(LINES + 1)}):
        print(f"{place + 1:6} {sizes[place].memory:8.1f} {sizes[place].files:6} {sizes[place].threads:8}")
    fifth = len(sizes) // 5
    early, late = sizes[fifth : 2 * fifth], sizes[-fifth:]
    grown = mean(of.memory for of in late) - mean(of.memory for of in early)
    files = max(of.files for of in late) - max(of.files for of in early)
    print(f"the last fifth has {grown:+.1f} MB and {files:+} open files beside the second, {len(sizes)} in all")


def changed(folder: Path) -> int:
    try:
        return (folder / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
