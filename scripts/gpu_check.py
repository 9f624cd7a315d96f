"""Check and measure everything on a machine with one CUDA device, in eight minutes: `python scripts/gpu_check.py`.

It runs what the suite has for GPUs, whole runs of train.py, a step of every method and network; compares a short
training with the processor's; and measures, in turns, a textbook loop, train.py, torch.compile, CUDA graphs that hold a
whole step, stored logits, several students side by side, and the networks of experiment=best_1m. Results are a table
(--markdown) and all figures (--json). A part that fails is named, and the others go on; the exit code is then 1.

With --device cpu --quick the smallest form of all that a processor can do: a trial of this program itself.
"""

import argparse
import json
import multiprocessing as mp
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from kd.errors import UserError, described, reason_of
from kd.report.speed import IMAGES
from kd.report.tables import markdown
from kd.runs.provenance import measured_by
from kd.terminal import Parser, file, outcome, positive, save

TEACHER = "teacher.safetensors"
"""Where `benchmark.py` looks for its teacher."""
LOG = 4000
"""Characters of a failed part's output that are kept."""


class Part(NamedTuple):
    """A generator of rows in another module, run in a process of its own."""

    name: str
    module: str
    weight: int
    """Its share of the time that is left, compared with the parts after it."""


PARTS = (
    Part("limits", "gpu_measures", 2),
    Part("same", "gpu_paths", 6),
    Part("loops", "gpu_measures", 10),
    Part("cohort", "gpu_measures", 12),
    Part("runs", "gpu_paths", 10),
    Part("best", "gpu_measures", 6),
    Part("compiled", "gpu_measures", 10),
    Part("methods", "gpu_paths", 5),
    Part("networks", "gpu_paths", 4),
    Part("tests", "gpu_paths", 4),
)
COLUMNS = ("part", "what", "images/s", "s / epoch", "ratio", "GB", "share of peak", "note")


def main() -> int:
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else to look for a GPU spoils the forks of a process
    return outcome("gpu_check.py", work)


def work() -> int:
    """Do what the command line selects; return 1 where something has failed."""
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        figures = checked(options, Path(temporary))
    print(to_markdown(figures), end="", flush=True)
    write(figures, options)
    return int(bool(failures(figures)))


def arguments() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python scripts/gpu_check.py --json gpu.json --markdown gpu.md",
    )
    add = parser.add_argument
    names = [part.name for part in PARTS]
    add("--device", choices=("gpu", "cpu"), default="gpu", help="default: gpu")
    add("--quick", action="store_true", help="fewer and shorter turns; on a processor the smallest form of everything")
    add("--minutes", type=positive, default=8, help="for all parts together (default: 8)")
    add("--parts", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--json", type=file, metavar="FILE", help="write all figures")
    add("--markdown", type=file, metavar="FILE", help="write the table")
    return parser.parse_args()


def checked(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the parts, one after the other, and return all figures; files have them after every part."""
    began = time.monotonic()
    machine = results_of(Process(_machine, options, folder), 60)
    if machine["error"] is not None:
        raise UserError(machine["error"])
    for name in ("gpu_paths", "gpu_measures", "benchmark", "paced"):
        with suppress(ImportError):  # the part that lacks a package says so itself
            import_module(name)  # here, so that no part has to
    figures: dict[str, Any] = {
        "machine": machine["rows"][0],
        "minutes": options.minutes,
        "quick": options.quick,
        "parts": {},
    }
    chosen = [part for part in PARTS if part.name in options.parts]
    for place, part in enumerate(chosen):
        left = options.minutes * 60 - (time.monotonic() - began)
        limit = max(0.0, left) * part.weight / sum(later.weight for later in chosen[place:])
        print(f"{part.name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        figures["parts"][part.name] = results_of(Process(_rows, part, options, folder), limit)
        with suppress(UserError):  # `work` tells it, after the table
            write(figures, options)
    return figures


def write(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the files that the options name.

    Raises:
        UserError: if one cannot be written.
    """
    if options.json is not None:
        save(options.json, json.dumps(figures, indent=2) + "\n")
    if options.markdown is not None:
        save(options.markdown, to_markdown(figures))


class Process:
    """A generator that runs in a forked process, with its output in a file; its rows come through a pipe.

    This process uses neither threads of torch nor a GPU, so that each fork of it begins like a new one. A part's
    processes are a group of their own, so that none of them is left when its time is up.
    """

    def __init__(self, work: Any, *args: Any) -> None:
        self.work, self.args = work, args
        descriptor, name = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        self.log = Path(name)
        self.pipe, far_end = mp.Pipe(duplex=False)
        self.process = mp.get_context("fork").Process(target=self._run, args=(far_end,))
        self.process.start()
        far_end.close()

    def rows(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the rows that come in this time.

        Raises:
            TimeoutError: when it is over.
            EOFError: if the process ended before its work did.
        """
        deadline = time.monotonic() + seconds
        while True:
            if not self.pipe.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"not done after {seconds:.0f} s")
            row = self.pipe.recv()
            if row is None:
                return
            yield row

    def end(self) -> str:
        """End whatever is left of it; return the end of its output."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()  # before it has made its group, it is not in one
        self.process.join()
        text = self.log.read_text(encoding="utf-8", errors="replace")
        self.log.unlink()
        return text[-LOG:]

    def _run(self, pipe: Connection) -> None:
        os.setsid()
        with open(self.log, "w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - the process's own
        try:
            for row in self.work(*self.args):
                pipe.send(row)
            pipe.send(None)
        except Exception as error:
            traceback.print_exc()
            pipe.send({"what": "", "error": reason_of(error) if isinstance(error, UserError) else described(error)})
            pipe.send(None)


def results_of(process: Process, seconds: float) -> dict[str, Any]:
    """Return what a process has to tell: its rows, its error if it failed as a whole; its output if anything failed."""
    began, rows, error = time.monotonic(), [], None
    try:
        for row in process.rows(seconds):
            if row.get("what") == "":
                error = row["error"]
            else:
                rows.append(row)
    except TimeoutError as late:
        error = str(late)
    except EOFError:
        process.process.join(5)
        error = f"ended with exit code {process.process.exitcode}"
    finally:
        log = process.end()
    failed = error is not None or any("error" in row for row in rows)
    taken = round(time.monotonic() - began, 1)
    return {"seconds": taken, "error": error, "rows": rows, **({"log": log} if failed else {})}


def _rows(part: Part, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    import torch
    from gpu_measures import Options, Size

    size = Size(images=IMAGES, batch=256, rounds=5, steps=100, students=(1, 4, 16), shrink=1)
    if options.quick:
        size = size._replace(rounds=2, steps=30)
    if options.device == "cpu":
        size = Size(images=64, batch=8, rounds=1, steps=1, students=(1, 2), shrink=64)
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    own = folder / part.name
    own.mkdir()
    os.link(folder / TEACHER, own / TEACHER)
    yield from getattr(import_module(part.module), part.name)(Options(device, options.quick, own, size))


def _machine(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Tell what the machine is, and leave a teacher for the loops of `benchmark.py`."""
    import torch

    from kd.models.cnn import CNN
    from kd.runs.weights import save_weights
    from kd.training.device import device_name

    if options.device == "gpu" and not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} finds no CUDA device here; for a trial give --device cpu --quick")
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    more: dict[str, Any] = {}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(0)
        more = {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_gb": found.total_memory / 1e9,
        }
    torch.manual_seed(0)
    save_weights(CNN(32, 10, 32, "relu", 0.25, 0.5), folder / TEACHER, {})
    yield {**measured_by("scripts/gpu_check.py", device_name(device)), "torch": torch.__version__, **more}


def failures(figures: dict[str, Any]) -> list[str]:
    """Return what failed, by part and name."""
    parts = figures["parts"].items()
    whole = [f"{name}: {part['error']}" for name, part in parts if part["error"] is not None]
    return whole + [f"{name}, {row['what']}" for name, part in parts for row in part["rows"] if "error" in row]


def to_markdown(figures: dict[str, Any]) -> str:
    """Return the table, and below it what failed."""
    limits = figures["parts"].get("limits", {"rows": []})["rows"]
    peak = next((row["rate"] for row in limits if row["what"] == "bf16" and "rate" in row), None)
    lines = [line for name, part in figures["parts"].items() for line in _lines(name, part, peak)]
    machine = figures["machine"]
    versions = ", ".join([machine["versions"], *([f"CUDA {machine['cuda']}"] if "cuda" in machine else [])])
    failed = failures(figures) or ["nothing"]
    return "\n".join(
        [
            markdown(COLUMNS, lines, left=("what", "note")),
            f"{machine['device']}; {versions}; {machine['date'][:10]}: `{machine['command']}`.",
            "ratio: to the part's first loop, none if that failed; share of peak: of a large product of matrices in "
            "bf16, measured here.",
            "",
            "failed: " + "; ".join(failed),
            "",
        ]
    )


def _lines(name: str, part: dict[str, Any], peak: float | None) -> Iterator[list[str]]:
    """Yield a line for each row, and one for all checks that have nothing to tell."""
    rows = part["rows"]
    silent = [row for row in rows if row.keys() == {"what"}]
    yield from (_cells(name, row, peak) for row in rows if row not in silent)
    if silent:
        yield _cells(name, {"what": f"{len(silent)} of {len(rows)}", "note": "done"}, peak)
    if part["error"] is not None:
        yield _cells(name, {"what": "", "error": part["error"]}, peak)


def _cells(part: str, row: dict[str, Any], peak: float | None) -> list[str]:
    note = f"FAILED: {row['error']}" if "error" in row else row.get("note", "")
    note = f"left out: {row['left_out']}" if "left_out" in row else note
    cells = [""] * 5
    if "images_per_second" in row:
        rate, flops = statistics.median(row["images_per_second"]), row["flops_an_image"]
        cells = [
            f"{rate:,.0f}",
            f"{IMAGES / rate:.2f}",
            f"{row['ratio']:.2f}" if "ratio" in row else "",
            "" if row["memory_gb"] is None else f"{row['memory_gb']:.2f}",
            f"{rate * flops / peak:.1%}" if flops and peak else "",
        ]
    return [part, row["what"], *cells, note]


if __name__ == "__main__":
    sys.exit(main())
