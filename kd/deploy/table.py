"""Trained networks in the forms that they are run in: accuracy, size, speed and memory, as tables."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd.data.stored import Pixels
from kd.deploy.check import check
from kd.deploy.export import Deployed, onnx_runner, safetensors_runner, to_onnx, to_safetensors
from kd.deploy.quantise import to_int8
from kd.deploy.timing import FORMS, Form
from kd.inference import Predictor
from kd.models.output import multiply_adds, parameter_count
from kd.report.statistics import Interval
from kd.report.tables import markdown
from kd.report.text import comma_separated

BATCHES = (1, 256)
"""Numbers of images that are timed together."""
MEMORY = (
    "peak of the resident set during the passes minus the resident set before the network was loaded, in a process "
    "of its own that had imported its libraries (/proc/self/status, VmHWM - VmRSS)"
)


@dataclass
class Timing:
    """Passes of one form with a number of threads and a number of images."""

    threads: int
    batch: int
    seconds: list[float]
    """Seconds of a pass, for each round."""
    memory_mb: float | None

    @property
    def ms(self) -> float:
        """Median milliseconds of a pass."""
        return 1e3 * statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        return self.batch / statistics.median(self.seconds)


@dataclass
class Row:
    """A network in one form."""

    network: str
    """As it is shown."""
    run: str
    """Where its weights came from."""
    form: str
    """A key of `FORMS`."""
    images: int
    """Test images."""
    accuracy: float
    """Accuracy of this very form on these images."""
    interval: Interval
    """Wilson's, of the accuracy."""
    change: float
    """Its accuracy minus that of the network in fp32 in PyTorch."""
    change_interval: Interval
    """Paired by image."""
    same: float
    """Share of the images with the same prediction as there."""
    parameters: int
    multiply_adds: int
    """Multiply-adds of one image, in convolutions and products of matrices."""
    file_mb: float
    """Size of its file, in 10^6 bytes."""
    timings: list[Timing] = field(default_factory=list)

    def timing(self, threads: int, batch: int) -> Timing:
        return next(timing for timing in self.timings if (timing.threads, timing.batch) == (threads, batch))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_form(form: Form, predictor: Predictor, path: Path, facts: dict[str, Any], calibration: torch.Tensor) -> None:
    """Write the file of a form.

    Args:
        form: which.
        predictor: the network.
        path: of the file.
        facts: the metadata of its weights.
        calibration: (N, C, H, W), uint8, training images that give the ranges of int8.

    Raises:
        UserError: for a network that cannot be exported or quantised.
    """
    if form.suffix == ".safetensors":
        to_safetensors(predictor, path, facts, form.half)
    elif form.int8:
        to_int8(Deployed(predictor, preprocessing=False), path, facts, calibration)
    else:
        to_onnx(Deployed(predictor, preprocessing=False), path, facts)


def measured_row(
    name: str, run: Path, form: str, path: Path, predictor: Predictor, images: Pixels, labels: torch.Tensor, trust: bool
) -> Row:
    """Run the file of a form on test images.

    Args:
        name, run, form: as in `Row`.
        path: the file.
        predictor: the network that it was made from.
        images, labels: (M, C, H, W), uint8, and (M,), int64.
        trust: whether the file may name any code, as the network's own.
    """
    deployed = Deployed(predictor, preprocessing=False)
    of = FORMS[form]
    run_file = onnx_runner(path) if of.suffix == ".onnx" else safetensors_runner(path, trust, of.half)
    found = check(run_file, deployed, predictor, images, labels)
    return Row(
        name,
        str(run),
        form,
        len(labels),
        found.accuracy,
        found.interval,
        found.change,
        found.change_interval,
        found.same,
        parameter_count(predictor.net),
        multiply_adds(predictor.net, predictor.image_size, len(predictor.mean)),
        path.stat().st_size / 1e6,
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of points that no other one dominates, by ascending cost.

    Args:
        points: cost and gain of each. One dominates another if its cost is no higher and its gain no lower, and one of
            the two better.
    """
    best, found = -float("inf"), []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if points[place][1] > best:
            best = points[place][1]
            found.append(place)
    return found


def to_csv(rows: Sequence[Row]) -> str:
    """Return a CSV for programs: a line for each row, number of threads and batch; fractions of 1, seconds, MB."""
    records: list[dict[str, object]] = []
    for row in rows:
        facts = {key: value for key, value in row.to_json().items() if key != "timings"}
        for pair in ("interval", "change_interval"):
            low, high = facts.pop(pair)
            facts |= {f"{pair}_low": low, f"{pair}_high": high}
        for timing in row.timings:
            low, high = quartiles(timing.seconds)
            records.append(
                {
                    **facts,
                    "threads": timing.threads,
                    "batch": timing.batch,
                    "seconds_median": statistics.median(timing.seconds),
                    "seconds_first_quartile": low,
                    "seconds_third_quartile": high,
                    "rounds": len(timing.seconds),
                    "memory_mb": timing.memory_mb,
                }
            )
    return comma_separated(list(records[0]), records)


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a table, a line for each row."""
    threads = sorted({timing.threads for timing in rows[0].timings})
    headers = ["network", "form", "test accuracy, %", "against fp32, points", "parameters", "multiply-adds", "MB"]
    for count in threads:
        headers.append(f"ms an image, batch {BATCHES[0]}, {_threads(count)}")
    for count in threads:
        headers.append(f"images/s, batch {BATCHES[1]}, {_threads(count)}")
    headers += [f"peak memory, MB, batch {batch}" for batch in BATCHES]
    return markdown(headers, [_cells(row, threads) for row in rows], left=("form",))


def _cells(row: Row, threads: Sequence[int]) -> list[str]:
    low, high = row.interval
    cells = [
        row.network,
        FORMS[row.form].name,
        f"{100 * row.accuracy:.2f} ({100 * low:.2f} to {100 * high:.2f})",
        "" if row.form == "torch_fp32" else "{:+.2f} ({:+.2f} to {:+.2f})".format(
            *(100 * value for value in (row.change, *row.change_interval))
        ),
        f"{row.parameters:,}",
        f"{row.multiply_adds / 1e6:.1f} M",
        f"{row.file_mb:.2f}",
    ]  # fmt: skip
    for count in threads:
        timing = row.timing(count, BATCHES[0])
        first, third = (1e3 * value for value in quartiles(timing.seconds))
        cells.append(f"{timing.ms:.2f} ({first:.2f} to {third:.2f})")
    for count in threads:
        timing = row.timing(count, BATCHES[1])
        first, third = (timing.batch / value for value in reversed(quartiles(timing.seconds)))
        cells.append(f"{timing.images_per_second:,.0f} ({first:,.0f} to {third:,.0f})")
    for batch in BATCHES:
        memory = row.timing(threads[0], batch).memory_mb
        cells.append("" if memory is None else f"{memory:.0f}")
    return cells


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    first, third = np.quantile(values, (0.25, 0.75))
    return float(first), float(third)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
