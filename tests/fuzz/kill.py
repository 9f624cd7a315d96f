"""Kill a run at each of its file operations, continue it, and compare the end with that of an undisturbed run."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.runs.predictions import read as read_predictions
from kd.runs.results import read as read_record
from tests.fuzz.originals import TEACHER, call, make_images, settings

EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "os.link",
    "shutil.rmtree",
)
"""What Python announces to `sys.addaudithook` before it is done; of `open` those that write count."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> int:
    args = _arguments()
    import kd.app.build
    import kd.app.teacher
    import kd.app.train
    import kd.training.loggers  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="kill") as temporary:
        folder = Path(temporary).resolve()
        make_images(folder)
        expected, operations = _start(folder, "undisturbed"), _count(folder / "undisturbed")
        if expected:
            raise SystemExit(f"the undisturbed run ended with exit code {expected}")
        outcome = _outcome(folder / "undisturbed")
        chosen = range(1, len(operations) + 1)[:: args.every]
        failures = 0
        for place in chosen:
            here = folder / "killed"
            shutil.rmtree(here, ignore_errors=True)
            fault = _fault(here, place, outcome)
            failures += fault is not None
            print(f"{place:4} of {len(operations)}: {operations[place - 1]}{f': {fault}' if fault else ''}", flush=True)
        print(f"{len(chosen)} kills at {len(operations)} file operations, {failures} with another end")
    return 1 if failures else 0


def _fault(here: Path, place: int, expected: dict[str, Any]) -> str | None:
    """Kill the run and continue it; return what is wrong with its end, None if nothing is."""
    code = _start(here.parent, here.name, kill_at=place)
    if code != -signal.SIGKILL:
        return f"not reached, exit code {code}"
    code = _start(here.parent, here.name)
    if code:
        return f"it does not go on, exit code {code}: {(here / 'log').read_text()[-1000:]}"
    differing = [name for name, part in _outcome(here).items() if part != expected[name]]
    if differing:
        return f"it ends with other {', '.join(differing)}"
    left = [str(path.relative_to(here)) for path in here.rglob(".*") if path.is_file() and path.name != ".lock"]
    return f"it leaves {', '.join(left)}" if left else None


def _start(folder: Path, name: str, kill_at: int | None = None) -> int:
    """Start the run in a process of its own, and return its exit code; it is killed before its n-th file operation."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            here = folder / name
            here.mkdir(exist_ok=True)
            os.chdir(here)
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(log, number)
            _listen(here, kill_at)
            run = settings(folder)
            run[run.index("logger=none")] = "logger=tensorboard"
            code = call(
                [*run, "method=logits", f"teacher_store={TEACHER}", "hydra.run.dir=run", "data.val_fraction=0.2"]
            )
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _listen(here: Path, kill_at: int | None) -> None:
    """Count the file operations below a folder, write each into a file `operations`, and die before one of them."""
    count = 0
    operations = os.open(here.parent / f"{here.name}.operations", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    root = f"{here}{os.sep}"

    def operation(what: str, path: Any) -> None:
        nonlocal count
        try:
            name = os.path.abspath(os.fsdecode(path))
        except TypeError:  # a number of a file that is open
            return
        if not name.startswith(root):
            return
        count += 1
        os.write(operations, f"{what} {name.removeprefix(root)}\n".encode())
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and not (event == "open" and not (arguments[2] or 0) & WRITES):
            operation(event, arguments[0])

    def announced(sync: Callable[[int], None]) -> Callable[[Any], None]:
        def fsync(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            operation("os.fsync", os.readlink(f"/proc/self/fd/{number}"))
            sync(file)

        return fsync

    os.fsync = announced(os.fsync)
    sys.addaudithook(hook)


def _count(here: Path) -> list[str]:
    return here.with_name(f"{here.name}.operations").read_text().splitlines()


def _outcome(here: Path) -> dict[str, Any]:
    """Return what has to be the same whatever happened: weights, predictions, curves and accuracies."""
    (teacher,) = (here / TEACHER).glob("*/teacher.safetensors")
    record = read_record(here / "run" / "result.json")
    return {
        "student": _weights(here / "run" / "student.safetensors"),
        "teacher": _weights(teacher),
        "predictions": [
            part.tobytes() for part in read_predictions(here / "run" / "predictions.npz") if part is not None
        ],
        "metrics.csv": (here / "run" / "metrics.csv").read_text(),
        "record": (record.status, record.test_acc, record.test_nll, record.epoch_train_loss, record.epoch_val_acc),
    }


def _weights(path: Path) -> Any:
    from kd.runs.weights import load_weights  # torch takes seconds, too long for --help

    tensors, metadata = load_weights(path)  # metadata have no order in a file
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, metadata


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kill.py",
        description="Kill a run at each of its file operations (open for writing, rename, remove, mkdir, fsync, ...),\n"
        "continue it by the same command, and check that it ends with the same weights, predictions and curves.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th operation (default 1)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
