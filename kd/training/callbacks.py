"""Callbacks of training: reproducible epochs, curves, predictions, divergence, interruption."""

import csv
import io
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn, RichProgressBarTheme
from rich.progress import BarColumn
from torch import Tensor

from kd.errors import DivergedError
from kd.files import replaced
from kd.hashing import derive
from kd.runs.predictions import Predictions

ADVICE = (
    "try a lower lr, recipe.clip_norm=1 (of a teacher: teacher_recipe instead of recipe) or trainer.precision=32-true"
)
"""What may keep a training from diverging."""
SHOWN = {"train/loss": "loss", "val/acc": "val"}
"""Metrics behind the progress bar, and what they are called there."""
WIDE, SHORT = 100, 16
"""Width of a terminal from which on the bar is as long as there is room; and its length in a narrower one."""
CHECK_EVERY = 50
"""Steps between two checks of the loss on devices that run asynchronously."""


class EpochSeed(L.Callback):
    """Seed the random numbers of every epoch (dropout) from the run's seed, the epoch and the rank alone.

    So an epoch gives the same result in an uninterrupted run and after resuming from the checkpoint before it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(derive("epoch", self.seed, trainer.current_epoch, trainer.global_rank))


class History(L.Callback):
    """Record every metric of every epoch and the training time, and keep `metrics.csv` up to date.

    The rows are part of the checkpoint, so that a resumed run continues them: Lightning's own CSV logger deletes them.

    Args:
        path: the CSV file.
        timed: whether to measure time; false where several trainings share the process.
    """

    def __init__(self, path: Path, timed: bool = True) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.seconds: float | None = 0.0 if timed else None
        """Training time without validation; None if other trainings shared it."""
        self.images = 0
        self.trains = False
        """Whether training has begun, so that a checkpoint was restored."""
        self._started = self._paused = 0.0
        self._validated = False

    def curve(self, name: str) -> list[float]:
        """Return the metric's value after each epoch, NaN where it was not measured; empty if it never was."""
        measured = any(name in row for row in self.rows)
        return [row.get(name, math.nan) for row in self.rows] if measured else []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.seconds = None if self.seconds is None else state_dict["seconds"]
        self.images = state_dict["images"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trains = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._paused, self._validated = time.perf_counter(), 0.0, False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused -= time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused += time.perf_counter()
        self._validated = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.y) * trainer.world_size

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.seconds is not None:
            self.seconds += time.perf_counter() - self._started - self._paused
        # The Trainer keeps an earlier epoch's validation in its metrics where one is left out.
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith("val/")
        }
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        columns = dict.fromkeys(name for row in self.rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(columns), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        with replaced(self.path) as temporary:
            temporary.write_text(text.getvalue())


class _Unchecked(NamedTuple):
    """A step whose loss has not been checked yet."""

    number: int
    learning_rate: float
    terms: dict[str, Tensor]
    loss: Tensor


class DivergenceCheck(L.Callback):
    """End a training whose loss is no longer finite; if every step is checked, before it updates any weight.

    Args:
        every: steps between two checks, at least 1; each one waits for the device.

    Raises:
        DivergedError: naming term, step and learning rate.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._unchecked: list[_Unchecked] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        terms = cast(dict[str, Tensor], pl_module.terms)
        self._unchecked.append(_Unchecked(trainer.global_step, rate, terms, loss.detach()))
        # Reading a value waits for the device: do it rarely, and always before a checkpoint is written.
        last = trainer.is_last_batch or trainer.global_step + 1 == trainer.max_steps
        if len(self._unchecked) < self.every and not last:
            return
        unchecked, self._unchecked = self._unchecked, []
        finite = torch.stack([step.loss for step in unchecked]).isfinite().tolist()
        if all(finite):
            return
        step = unchecked[finite.index(False)]
        bad = [f"the {name} loss is {term.item()}" for name, term in step.terms.items() if not torch.isfinite(term)]
        raise DivergedError(
            f"training diverged: {', '.join(bad) or 'the sum of the losses overflows'} at step {step.number} "
            f"(epoch {trainer.current_epoch}), learning rate {step.learning_rate:.3g}; {ADVICE}"
        )


class KeepPredictions(L.Callback):
    """Collect what `test_step` returns for every test image."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._parts = {}

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        for name, part in outputs.items():
            self._parts.setdefault(name, []).append(part.cpu())

    def predictions(self, trainer: L.Trainer) -> Predictions:
        """Return the logits of every test image, in the test split's order. All ranks have to call it: it gathers."""
        parts = {name: torch.cat(kept) for name, kept in self._parts.items()}
        if trainer.world_size > 1:
            gathered: list[dict[str, Tensor]] = [{}] * trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = {name: torch.cat([part[name] for part in gathered]) for name in parts}
        order = parts.pop("index").argsort()
        arrays = {
            name: (part.float() if part.is_floating_point() else part)[order].numpy() for name, part in parts.items()
        }
        return Predictions(**arrays)


class StopOnInterrupt(L.Callback):
    """End a training after the current batch if it is interrupted from another thread.

    Args:
        interrupted: returns whether the training is interrupted.
    """

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self.interrupted = interrupted

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.interrupted():
            raise SystemExit(130)  # at KeyboardInterrupt Lightning sets a signal handler: main thread only


class EpochBar(RichProgressBar):
    """A progress bar that fits into a line of 80 characters.

    It counts epochs from 1, as everything else here does: "Epoch 5/5" is the last of five. Of the metrics it has loss
    and accuracy; the loss's terms are in `metrics.csv`. Its colours are the terminal's own, whose theme makes them
    readable, light or dark.
    """

    def __init__(self) -> None:
        super().__init__(
            refresh_rate=10,  # a second; each takes a millisecond of the thread that starts a GPU's operations
            theme=RichProgressBarTheme(
                progress_bar="cyan",
                progress_bar_finished="green",
                progress_bar_pulse="cyan",
                processing_speed="dim",
                metrics="",
            ),
        )

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Return the columns; a narrow terminal has a short bar, and no speed, so that the metrics stay in the line."""
        columns: list[Any] = super().configure_columns(trainer)
        if shutil.get_terminal_size().columns >= WIDE:
            return columns
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = SHORT
        return [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what is shown behind the bar, under short names."""
        metrics = super().get_metrics(trainer, pl_module)
        return {short: metrics[name] for name, short in SHOWN.items() if name in metrics}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
