"""Kill a sweep of twelve jobs again and again, and check that it ends with exactly the right results.

    python tests/sweeps/kill_sweep.py [--kills 20] [--seed 0] [further settings]

Further settings are such as hydra/launcher=cohort, or seed=0 for four jobs. The sweep is killed by SIGKILL, SIGTERM and
SIGINT in turn, with all its processes, at random moments, and started again by the same command. What is done is never
to be touched again, and all weights are to be those of an undisturbed sweep.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from kd.errors import UserError  # noqa: E402
from kd.runs.results import read  # noqa: E402
from tests import processes  # noqa: E402

GRID = (
    "-m", "data=digits", "data.source.image_size=16", "epochs=2", "teacher.scale=2", "student.scale=2",
    "trainer=cpu", "threads=1",
    "trainer.enable_progress_bar=false", "logger=none", "trainer.precision=32-true",
    "method=logits,feature", "T=1,4", "seed=0,1,2",
)  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def start(folder: Path, sweep: str, settings: list[str]) -> processes.Process:
    """Start the sweep in a process group of its own."""
    program = ROOT / "train.py"
    return processes.start(program, *GRID, *settings, f"hydra.sweep.dir={sweep}", cwd=folder, merged=True)


def done(sweep: Path) -> dict[Path, int]:
    """Return when the record of each finished run was written."""
    written = {}
    for path in sweep.glob("*/result.json"):
        try:
            if read(path).status == "done":
                written[path] = path.stat().st_mtime_ns
        except UserError as error:
            raise SystemExit(f"half-written: {error}") from error
    return written


def outcomes(sweep: Path) -> dict[str, list[bytes]]:
    """Return the weights of each run, by its settings."""
    found: dict[str, list[bytes]] = {}
    for path in done(sweep):
        with safe_open(path.parent / "student.safetensors", framework="np") as file:
            weights = [file.get_tensor(name).tobytes() for name in sorted(file.keys())]
        fingerprint = read(path).fingerprint
        if fingerprint in found:
            raise SystemExit(f"{path}: run twice")
        found[fingerprint] = weights
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    random_times = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seeds = [setting for setting in options.settings if setting.startswith("seed=")]
        printed, _ = start(folder, "whole", ["teacher_store=undisturbed", *seeds]).communicate()
        expected, jobs = outcomes(folder / "whole"), 4 * len(seeds[-1].split(",")) if seeds else 12
        if len(expected) != jobs:
            raise SystemExit(f"{len(expected)} of {jobs} even undisturbed:\n{printed}")
        before: dict[Path, int] = {}
        struck = 0
        for kill in range(options.kills):
            process = start(folder, "killed", options.settings)
            # At a random time after its start, or after one more run is done: so most kills interrupt a training.
            further = random_times.randrange(2)
            while len(done(folder / "killed")) < len(before) + further and process.poll() is None:
                time.sleep(0.05)
            time.sleep(random_times.uniform(0, 2))
            sent = SIGNALS[kill % len(SIGNALS)]
            if process.poll() is None:
                os.killpg(process.pid, sent)
                struck += 1
            printed, _ = process.communicate(timeout=120)
            after = done(folder / "killed")
            if any(after.get(path) != written for path, written in before.items()):
                raise SystemExit(f"a finished run was touched after kill {kill}:\n{printed}")
            print(f"kill {kill + 1:2} ({sent.name}): {len(after)} done, exit code {process.returncode}", flush=True)
            before = after
        process = start(folder, "killed", options.settings)
        printed, _ = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"the last sweep ended with {process.returncode}:\n{printed}")
        if outcomes(folder / "killed") != expected:
            raise SystemExit("the results are not those of the undisturbed sweep")
        if not struck:
            raise SystemExit("the sweep was done before every kill; nothing was interrupted")
        print(f"exactly the {jobs} right results after {struck} kills")


if __name__ == "__main__":
    main(sys.argv[1:])
