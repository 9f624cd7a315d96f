"""Measure how long a sweep takes under several launchers: whole commands, timed in turns.

A ratio is the median over rounds of one launcher's time divided by the first launcher's in the same round. Teachers are
trained beforehand, by the same sweep with students of one epoch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from kd.app.programs import check_launchers, run_program
from kd.errors import UserError
from kd.report.speed import median_ratio
from kd.runs.provenance import git_revision, versions
from kd.terminal import Parser, file, positive, save

ROOT = Path(__file__).resolve().parents[1]
GRID = (
    "data=digits", "batch_size=256", "epochs=20", "method=logits", "T=1,2,4,8", "alpha=0.1,0.5",
    "speed.stored_logits=false", "logger=none",
)  # fmt: skip


def sweep_seconds(launcher: str, grid: list[str], directory: Path, store: Path) -> float:
    """Return the time of a sweep in seconds, from the command to its exit."""
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", *grid, f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={directory}", f"teacher_store={store}", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        printed = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{launcher}: {printed[-1].removeprefix('error: ')}")
    return time.perf_counter() - started


def main() -> int:
    return run_program("benchmark_sweep.py", arguments, benchmark)


def arguments() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python scripts/benchmark_sweep.py --launchers basic auto joblib",
    )
    parser.add_argument("grid", nargs="*", help=f"the sweep (default: {' '.join(GRID)})")
    parser.add_argument("--launchers", nargs="+", default=["basic", "cohort", "auto"], metavar="NAME")
    parser.add_argument("--rounds", type=positive, default=3, help="sweeps under each launcher (default: 3)")
    parser.add_argument("--json", type=file, metavar="FILE", help="write all figures")
    options = parser.parse_intermixed_args()
    options.launchers = list(dict.fromkeys(options.launchers))  # a second sweep into the same folder has nothing to do
    check_launchers(options.launchers)
    return options


def benchmark(options: argparse.Namespace) -> None:
    """Measure and print what the options select."""
    grid = options.grid or list(GRID)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = folder / "teachers"
        sweep_seconds("basic", [*grid, "recipe.epochs=1"], folder / "teachers_sweep", store)
        seconds: dict[str, list[float]] = {launcher: [] for launcher in options.launchers}
        for number in range(options.rounds):
            for launcher in options.launchers:
                seconds[launcher].append(sweep_seconds(launcher, grid, folder / f"{launcher}{number}", store))
                print(f"{launcher:<8} {seconds[launcher][-1]:6.1f} s", flush=True)
    base = seconds[options.launchers[0]]
    ratios = {launcher: median_ratio(times, base) for launcher, times in seconds.items()}
    for launcher, times in seconds.items():
        print(
            f"{launcher:<8} median {statistics.median(times):6.1f} s, {ratios[launcher]:.2f} of {options.launchers[0]}"
        )
    if options.json is not None:
        figures = {
            "command": " ".join(["python", "scripts/benchmark_sweep.py", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git": git_revision(),
            "versions": versions(),
            "cores": os.cpu_count(),
            "grid": grid,
            "seconds": seconds,
            "ratios": ratios,
        }
        save(options.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
