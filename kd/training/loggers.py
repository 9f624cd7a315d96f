"""What a run logs beyond curves: pictures, final figures, and the settings for TensorBoard's HParams tab.

Two things here end a run: a logger that cannot begin, and a disk that is full when TensorBoard's curves are written.
What else cannot be drawn or logged is a warning.
"""

import io
import logging
import os
import re
import socket
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import FileWriter

from kd.data.module import Loader
from kd.errors import UserError, reason_of
from kd.ranges import require
from kd.runs.predictions import Predictions, confusion
from kd.terminal import visible

GRID = 8
ZOOM = 3
NAME_LENGTH = 24
"""Letters of a class name in a picture."""
MOST_CLASSES = 2000
"""Classes of a confusion matrix, at most."""
FINAL = "z_final/"
"""Group of the figures of the finished run: dots, whose name puts them behind the curves."""

log = logging.getLogger(__name__)


class EventFile:
    """A file of events for TensorBoard, in the place of its own writer's `EventFileWriter`.

    That one writes in a thread, which prints a traceback where the disk is full, and stays if a run fails. Here the
    caller gets the error. There are few events: curves have one an epoch.

    Args:
        log_dir: the directory, which is made.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        os.makedirs(log_dir, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09}"
        self._file = open(os.path.join(log_dir, name), "xb", buffering=0)  # noqa: SIM115 - closed by `close`
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        return self.log_dir

    def add_event(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        left, start = memoryview(record.getvalue()), self._file.tell()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(start)  # half an event would hide all that come once there is space
            self._file.seek(start)
            raise

    def flush(self) -> None:
        """Do nothing: every event is in the file."""

    def close(self) -> None:
        self._file.close()


class DirectFileWriter(FileWriter):
    """Torch's writer of summaries, without a thread."""

    def __init__(self, log_dir: str) -> None:
        self.event_writer = EventFile(log_dir)


class DirectSummaryWriter(SummaryWriter):
    """Torch's `SummaryWriter`, without a thread."""

    def _get_file_writer(self) -> DirectFileWriter:
        own = cast(DirectFileWriter | None, self.file_writer)
        if own is None:
            own = DirectFileWriter(str(self.log_dir))
            vars(self).update(file_writer=own, all_writers={str(self.log_dir): own})
        return own


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, with the curves first and with every method's knobs in the HParams tab.

    * It leaves out `epoch`, and the test metrics, each of them one dot; `conclude` logs these as a group of their own.
    * It does not declare the columns of the HParams tab. TensorBoard takes them from one run if a run declares them,
      and then lacks the knobs of all other methods; else it collects them from all runs.

    Args:
        save_dir: the run directory.
        name: name of the directory in it.
        gradient_norms: steps between two measurements of the norm of each term's gradient; None for none.

    Raises:
        ValueError: for steps outside their range.
    """

    title = ""
    """Name of the directory in that one, which TensorBoard shows as the end of the run's name."""

    def __init__(self, save_dir: str, name: str = "tensorboard", gradient_norms: int | None = None) -> None:
        if gradient_norms is not None:
            require("logger.gradient_norms", gradient_norms)
        self.gradient_norms = gradient_norms
        super().__init__(save_dir, name=name, version="", default_hp_metric=False)

    @property
    def log_dir(self) -> str:
        return os.path.join(self.root_dir, self.title) if self.title else str(self.root_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        if self._experiment is None:
            self._experiment = DirectSummaryWriter(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        curves = {name: value for name, value in metrics.items() if name != "epoch" and not name.startswith("test/")}
        self._log_scalars(curves, step)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        super().log_hyperparams(params)
        final = metrics or {}
        self._log_scalars(final, step)
        _, start, end = hparams(self._sanitize_params(dict(self.hparams)), final)  # type: ignore[no-untyped-call]
        writer = self.experiment._get_file_writer()
        writer.add_summary(start, step)
        writer.add_summary(end, step)

    def _log_scalars(self, values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():  # Lightning's turns a full disk into a value that cannot be logged
            self.experiment.add_scalar(name, value, step)


def name_run(logger: Logger | None, title: str) -> None:
    """Name a run in TensorBoard by its settings; its directory is often but a number."""
    if isinstance(logger, TensorBoard):
        logger.title = re.sub(r"[^\w.,=+-]+", " ", title)[:100].strip()


def log_settings(loggers: Sequence[Logger], settings: Mapping[str, Any]) -> None:
    """Log the settings of a training before it begins, so that one that fails has them, too; TensorBoard has a tab."""
    for logger in loggers:
        if not isinstance(logger, TensorBoard):
            try:
                _ = getattr(logger, "experiment", None)  # a logger of one's own need not have it
            except Exception as error:
                raise UserError(
                    f"{type(logger).__name__} cannot begin: {reason_of(error)}; mend that, or choose logger=tensorboard"
                ) from error
            with optional("the settings"):
                # Under a name of their own: MLflow takes no second value of what `conclude` logs.
                logger.log_hyperparams({"settings": dict(settings)})


class Samples(L.Callback):
    """Log 64 augmented images of the first batch, in their colours, as the picture `samples`.

    Before the first epoch only: a resumed run has them.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.loggers and trainer.is_global_zero and not trainer.current_epoch:
            with optional("the picture of samples"):
                loader = cast(Loader, trainer.train_dataloader)
                log_picture(trainer.loggers, "samples", sample_grid(loader), trainer.global_step)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Make a failure a warning: no picture and no logger is worth a run."""
    try:
        yield
    except Exception as error:
        log.warning("%s could not be logged: %s", what, error)


def log_confusion(loggers: Sequence[Logger], predictions: Predictions, classes: Sequence[str], step: int) -> None:
    """Log the confusion matrix and the accuracy of every class as the picture `test/confusion`.

    Nothing for more than `MOST_CLASSES`: nobody could read it, and the matrix takes memory by their square.
    """
    if loggers and len(classes) <= MOST_CLASSES:
        with optional("the confusion matrix"):
            figure = confusion_figure(confusion(predictions.labels, predictions.logits), classes)
            log_picture(loggers, "test/confusion", render(figure), step)


def as_rgb(pixels: Tensor) -> Tensor:
    """Return images (N, C, H, W) as (N, 3, H, W): the first three channels, or the first one three times."""
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)


def sample_grid(loader: Loader) -> NDArray[np.uint8]:
    """Return the first 64 images of the loader's next epoch, or fewer, as one picture, (H, W, 3) uint8.

    Of more than three channels the first three are shown.
    """
    x = next(iter(loader)).x[: GRID * GRID]
    pixels = ((x - loader.shift) / loader.scale).round().clamp(0, 255).to(torch.uint8).cpu()
    pixels = as_rgb(pixels)
    n, channels, height, width = pixels.shape
    columns = min(GRID, n)
    rows = n // columns
    tiles = pixels[: rows * columns].reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * height, columns * width, channels)
    return picture.repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1).numpy()


def confusion_figure(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix, (C, C) counts with true classes as rows, beside the accuracy of every class."""
    n = len(classes)
    overall = counts.diagonal().sum() / counts.sum()
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    few = n <= 20
    size = 7.0 if few else 12.0
    figure = Figure(figsize=(1.75 * size, size), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    matrix.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    matrix.set(xlabel="predicted", ylabel="true", title="Confusion matrix (% of each true class)")
    bars.barh(range(n), 100 * share.diagonal(), color="#4477aa")
    bars.set(xlim=(0, 100), xlabel="%", title=f"Accuracy of each class (all: {100 * overall:.2f} %)")
    ticks = range(0, n, 1 if few else 5)
    names = [class_label(classes[i]) for i in ticks]
    plain = {"parse_math": False}  # else "$5_$10" is a formula
    matrix.set_xticks(ticks, names, rotation=45 if few else 90, ha="right" if few else "center", **plain)
    matrix.set_yticks(ticks, names, **plain)
    if few:
        for row in range(n):
            for column in range(n):
                if share[row, column] >= 0.005:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    matrix.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", color=colour)
            colour = "white" if share[row, row] > 0.15 else "black"
            accuracy = f"{100 * share[row, row]:.1f}" if counts[row].any() else "no images"
            bars.text(1, row, accuracy, va="center", color=colour, fontweight="bold")
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    return figure


def class_label(name: str) -> str:
    """Return a class name as a picture can hold it: in one line, shortened, with escapes for what is no text."""
    shown = visible(name)
    return shown if len(shown) <= NAME_LENGTH else f"{shown[: NAME_LENGTH - 3]}..."


def render(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure as a picture, (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)  # type: ignore[no-untyped-call]
    return cast(NDArray[np.uint8], rgba[..., :3].copy())


def log_picture(loggers: Sequence[Logger], name: str, picture: NDArray[np.uint8], step: int) -> None:
    """Log a picture, (H, W, 3) uint8, with every logger that takes pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{name}.png")


def conclude(loggers: Sequence[Logger], params: dict[str, Any], metrics: dict[str, float]) -> None:
    """Log settings and final metrics with every logger, the metrics in the group `FINAL`, and end its run.

    To be called once, at the end: each call adds a point to the curves.
    """
    final = {f"{FINAL}{name}": value for name, value in metrics.items()}
    for logger in loggers:
        with optional("the summary"):
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(params, final)
            else:
                logger.log_hyperparams(params)
        with optional("the final figures"):
            if not isinstance(logger, TensorBoardLogger):
                logger.log_metrics(final)
        with optional("the end of the run"):
            if isinstance(logger, TensorBoardLogger):
                logger.finalize("success")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # else the next training in this process continues this run


def abandon(loggers: Sequence[Logger]) -> None:
    """Close a failed training's files, and end its W&B run, which this process's next training would continue."""
    for logger in loggers:
        if isinstance(logger, TensorBoard):
            logger.experiment.close()
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish(exit_code=1)
