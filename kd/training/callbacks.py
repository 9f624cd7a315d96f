"""What happens around training: reproducible epochs, the curves, the checkpoints."""

import csv
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from kd.files import replaced
from kd.hashing import derive


class EpochSeed(L.Callback):
    """Seeds the random numbers of every epoch (dropout) from the run's seed and the epoch alone.

    So an epoch comes out the same whether the run got there in one go or was resumed from the checkpoint before it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(derive("epoch", self.seed, trainer.current_epoch, trainer.global_rank))


class History(L.Callback):
    """Collects every metric of every epoch, and the time that training took, and keeps `metrics.csv` up to date.

    It lives in the checkpoint, so that a resumed run goes on with the rows it had: Lightning's own CSV logger deletes
    them.

    Args:
        path: where the file goes.
        timed: whether the time that passes is this training's alone.
    """

    def __init__(self, path: Path, timed: bool = True) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.seconds: float | None = 0.0 if timed else None
        """That training took; None if some of it passed for others as well."""
        self.images = 0
        self._started = self._paused = 0.0

    def curve(self, name: str) -> list[float]:
        """The metric's value after each epoch; empty if it was never measured."""
        return [row[name] for row in self.rows if name in row]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.seconds = None if self.seconds is None else state_dict["seconds"]
        self.images = state_dict["images"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._paused = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused -= time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused += time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.y) * trainer.world_size

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.seconds is not None:
            self.seconds += time.perf_counter() - self._started - self._paused
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
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


class Heed(L.Callback):
    """Ends a training that is interrupted in another thread than its own, after the batch that it is at.

    Args:
        interrupted: whether it is.
    """

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self.interrupted = interrupted

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.interrupted():
            raise SystemExit(130)  # at KeyboardInterrupt Lightning sets a signal's handler, which no thread may


class WholeCheckpoints(TorchCheckpointIO):
    """Replaces a checkpoint in one step. Lightning's own goes through the system's temporary folder, which may lie on
    another file system: then the only checkpoint is overwritten in place, and lost if that is interrupted."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch's own writing to a file tells a full disk by an error of no clear kind
        torch.save(checkpoint, buffer)
        with replaced(target) as temporary:
            temporary.write_bytes(buffer.getbuffer())
