"""What a run logs beyond scalars: pictures, and the summary for TensorBoard's HParams tab."""

from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kd.data.module import Loader
from kd.training.modules import Classifier

GRID = 8
ZOOM = 3


class Pictures(L.Callback):
    """Log the network's augmented input and its confusion matrix as pictures.

    `samples`, before training: 64 augmented images of the first batch, in their colours. `test/confusion`, after
    testing: the confusion matrix and the accuracy of every class.

    Args:
        classes: names of the classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.loggers and trainer.is_global_zero:
            loader = cast(Loader, trainer.train_dataloader)
            log_picture(trainer.loggers, "samples", sample_grid(loader), trainer.global_step)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = cast(Classifier, pl_module).confusion.compute().cpu()  # on all ranks: it gathers
        if trainer.loggers and trainer.is_global_zero:
            figure = confusion_figure(counts, self.classes)
            log_picture(trainer.loggers, "test/confusion", render(figure), trainer.global_step)


def sample_grid(loader: Loader) -> NDArray[np.uint8]:
    """Return the first 64 images of the loader's next epoch, or fewer, as one picture, (H, W, 3) uint8."""
    x = next(iter(loader)).x[: GRID * GRID]
    pixels = ((x - loader.shift) / loader.scale).round().clamp(0, 255).to(torch.uint8).cpu()
    n, channels, height, width = pixels.shape
    columns = min(GRID, n)
    rows = n // columns
    tiles = pixels[: rows * columns].reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * height, columns * width, channels)
    return picture.repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1).numpy()


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix, (C, C) counts with true classes as rows, beside the accuracy of every class."""
    n = len(classes)
    overall = counts.diagonal().sum() / counts.sum()
    share = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    few = n <= 20
    size = 7.0 if few else 12.0
    figure = Figure(figsize=(1.75 * size, size), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    matrix.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    matrix.set(xlabel="predicted", ylabel="true", title="Confusion matrix (% of each true class)")
    bars.barh(range(n), 100 * share.diagonal(), color="#4477aa")
    bars.set(xlim=(0, 100), xlabel="%", title=f"Accuracy of each class (all: {100 * overall:.2f} %)")
    ticks = range(0, n, 1 if few else 5)
    matrix.set_xticks(ticks, [classes[i] for i in ticks], rotation=45 if few else 90, ha="right" if few else "center")
    matrix.set_yticks(ticks, [classes[i] for i in ticks])
    if few:
        for row in range(n):
            for column in range(n):
                if share[row, column] >= 0.005:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    matrix.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", color=colour)
            colour = "white" if share[row, row] > 0.15 else "black"
            bars.text(1, row, f"{100 * share[row, row]:.1f}", va="center", color=colour, fontweight="bold")
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    return figure


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
    """Log settings and final metrics with every logger, and end its run.

    To be called once, at the end: each call adds a point to the curves.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(params, metrics)
            logger.finalize("success")  # else its thread looks for a file that has moved to the teacher store
        else:
            logger.log_hyperparams(params)
            logger.log_metrics(metrics)
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # else the next training in this process continues this run


def abandon(loggers: Sequence[Logger]) -> None:
    """End a failed training's W&B run, which the next training in this process would otherwise continue."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish(exit_code=1)
