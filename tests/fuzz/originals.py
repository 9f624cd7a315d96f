"""What the cases are made from: a tiny data set, a finished run, an interrupted one, and their teacher."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("a", "b")
SPLITS = {"train": 12, "test": 6}
SIZE = 8


def settings(originals: Path) -> list[str]:
    """Return the settings of a run of two epochs on 24 images, which takes a second."""
    return [
        "data=folder", f"data.root={originals / 'images'}", f"data.source.image_size={SIZE}", "data.val_fraction=0",
        "epochs=2", "batch_size=8", "teacher.scale=1", "student.scale=1", "trainer=cpu", "threads=1", "logger=none",
        "trainer.enable_progress_bar=false", "speed.stored_logits=true",
    ]  # fmt: skip


TEACHER = "teachers"


def prepare(originals: Path) -> None:
    """Make all originals below a folder, in a process of its own: nothing of the runs stays in this one."""
    make_images(originals)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _runs(originals)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"the originals cannot be made: exit code {os.waitstatus_to_exitcode(status)}")


def call(arguments: Sequence[str]) -> int:
    """Call `train.py` in this process and return its exit code."""
    from kd.app.cli import main

    sys.argv = ["train.py", *arguments]
    os.environ.pop("HYDRA_FULL_ERROR", None)  # the program sets it itself
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


@contextmanager
def patched(module: object, name: str, value: Any) -> Iterator[None]:
    """Replace a name of a module for a while."""
    former = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, former)


def picture(rng: np.random.Generator, label: int, size: int = SIZE) -> Image.Image:
    """Return noise, brighter for the second class."""
    pixels = rng.integers(0, 128, (size, size, 3)) + 100 * label
    return Image.fromarray(pixels.astype(np.uint8))


def make_images(originals: Path) -> None:
    """Write the data set, as folders and as parquet files."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        rows: dict[str, list[Any]] = {"img": [], "label": []}
        for i in range(count):
            label = i % 2
            path = originals / "images" / split / CLASSES[label] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(rng, label).save(path)
            rows["img"].append({"bytes": path.read_bytes(), "path": path.name})
            rows["label"].append(label)
        (originals / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.table(rows), originals / "parquet" / f"{split}.parquet")


def _runs(originals: Path) -> int:
    from kd.training import fit

    os.chdir(originals)
    sys.stdout = open("prepared.log", "w")  # noqa: SIM115 - until the process ends
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    run = [*settings(originals), "method=logits", f"teacher_store={originals / TEACHER}"]
    if call([*run, "hydra.run.dir=finished"]):
        return 2
    with patched(fit, "AtomicCheckpoints", _stopping(fit.AtomicCheckpoints)):
        if call([*run, "hydra.run.dir=interrupted"]) != 130:
            return 3
    return 0


def _stopping(plugin: type) -> Callable[..., Any]:
    """Return checkpoints of which the second is interrupted, as by Ctrl-C."""

    class Stopping(plugin):  # type: ignore[misc]
        saved = 0

        def save_checkpoint(self, *arguments: Any, **more: Any) -> None:
            if self.saved:
                raise KeyboardInterrupt
            self.saved += 1
            super().save_checkpoint(*arguments, **more)

    return Stopping
