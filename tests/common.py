"""Names that tests in several folders share."""

import copy
import csv
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SMALL = (
    "data=digits",
    "epochs=2",
    "teacher.scale=2",
    "student.scale=2",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "data.source.image_size=16",
)
"""A run of a second."""
QUICK = (*SMALL, "batch_size=256", "logger=none")
"""A run whose accuracy does not matter, in fewer steps and without event files."""


def put_no_file(path, kind):
    """Put what is no file of a sensible size at a path: fifo, directory, gigabytes, device, loop or dangling."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "gigabytes":
        with open(path, "wb") as file:
            file.truncate(60 << 30)  # sparse: it takes no room
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "dangling": "nowhere"}[kind])


def pair(student, teacher=None, size=8, labels=None):
    """Return the `Pair` for a method's setup, from networks on images of that size."""
    import torch

    from kd.methods.base import Pair
    from kd.models.output import probe, probe_images

    first = probe(student, size)
    return Pair(
        first,
        None if teacher is None else probe(teacher, size),
        torch.arange(40) % 10 if labels is None else labels,
        first.logits.shape[1],
        student,
        teacher,
        lambda: copy.deepcopy(student),
        probe_images(size),
    )


def pair_of(student, teacher):
    """Return the `Pair` of outputs that no network made."""
    import torch
    from torch import nn

    from kd.methods.base import Pair

    return Pair(student, teacher, torch.zeros(1), student.logits.shape[1], nn.Identity(), None, nn.Identity)


def metric_rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv."""
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


def same_weights(a: Path, b: Path) -> bool:
    """Return whether two files of weights are equal to the bit."""
    from safetensors.torch import load_file

    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)
