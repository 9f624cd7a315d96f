"""One training, from its first epoch or its last checkpoint to its result record."""

import platform
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn

from kd.data.module import DataModule
from kd.errors import UserError
from kd.runs.predictions import FILE as PREDICTIONS
from kd.runs.predictions import write as write_predictions
from kd.runs.results import FILE, Result, write
from kd.runs.status import CHECKPOINTS
from kd.runs.weights import save_weights
from kd.training.callbacks import EpochSeed, History, WholeCheckpoints
from kd.training.loggers import Pictures, abandon, conclude
from kd.training.modules import Classifier

CHECKPOINT = Path(CHECKPOINTS, "last.ckpt")


def train(
    module: Classifier,
    data: DataModule,
    record: Result,
    directory: Path,
    weights: str,
    metadata: dict[str, Any],
    make_trainer: Callable[..., L.Trainer],
    logger: Logger | None,
    watchers: Sequence[Callback] = (),
    timed: bool = True,
) -> Result:
    """Fit, test with the last epoch's weights, and leave weights, test predictions and result record in the directory.

    Continues from `checkpoints/last.ckpt` if the directory has one.

    Args:
        module: network, loss and recipe.
        data: batches.
        record: what is known of the run beforehand.
        directory: the run directory.
        weights: file name of the weights.
        metadata: kept in the weights, beside the test accuracy.
        make_trainer: makes the Lightning Trainer, given callbacks, plugins, logger, directory and intervals.
        logger: where scalars and pictures go, if anywhere.
        watchers: further callbacks, which may end the training early by raising what they like.
        timed: whether the time that passes is this training's alone, and goes on record.

    Returns:
        The completed record, status "done".
    """
    history = History(directory / "metrics.csv", timed)
    checkpoint = ModelCheckpoint(
        directory / CHECKPOINT.parent,
        filename=CHECKPOINT.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [EpochSeed(record.seed), history, checkpoint, *watchers]
    if logger is not None:
        callbacks.append(Pictures(data.images.classes))
    trainer = make_trainer(
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        logger=logger or False,
        default_root_dir=directory,
        log_every_n_steps=min(50, data.steps_per_epoch),
        limit_val_batches=None if len(data.val_index) else 0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    resumable = directory / CHECKPOINT
    if resumable.exists() and not zipfile.is_zipfile(resumable):
        raise UserError(f"{resumable} is damaged; remove it to begin this training anew")
    with warnings.catch_warnings():
        # From Lightning 2.6 with torch 2.14; nothing that a user could do anything about.
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        # It is not empty when a run is resumed, and that is the point.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        try:
            trainer.fit(module, data, ckpt_path=resumable if resumable.exists() else None, weights_only=True)
            trainer.test(module, data, verbose=False)
        except BaseException:
            abandon(trainer.loggers)
            raise

    predictions = module.predictions()
    test = {name: value.item() for name, value in trainer.callback_metrics.items()}
    record = replace(
        record,
        val_acc=next(reversed(history.curve("val/acc")), None),
        test_acc=test["test/acc"],
        test_images=len(predictions.labels),
        test_nll=test["test/nll"],
        test_ece=test["test/ece"],
        agreement=test.get("test/agreement"),
        train_seconds=history.seconds,
        images_per_second=history.images / history.seconds if history.seconds else None,
        device=device_name(trainer.strategy.root_device),
        precision=str(trainer.precision),
        epoch_train_loss=history.curve("train/loss"),
        epoch_train_acc=history.curve("train/acc"),
        epoch_val_loss=history.curve("val/nll"),
        epoch_val_acc=history.curve("val/acc"),
        status="done",
    )
    if record.teacher_test_acc:
        record = replace(record, retention=test["test/acc"] / record.teacher_test_acc)
    if trainer.is_global_zero:
        write_predictions(predictions, directory / PREDICTIONS)
        save_weights(module.net, directory / weights, {**metadata, "test_acc": record.test_acc})
        conclude(trainer.loggers, *_summary(record))
        write(record, directory / FILE)
    return record


def parameter_count(net: nn.Module) -> int:
    """Number of trainable and frozen parameters; buffers do not count."""
    return sum(p.numel() for p in net.parameters())


def device_name(device: torch.device) -> str:
    """What a person calls it: "NVIDIA H100", "AMD EPYC 9R14 (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor() or device.type} ({torch.get_num_threads()} threads)"


def _summary(record: Result) -> tuple[dict[str, Any], dict[str, float]]:
    fields = ("seed", "student", "teacher", "dataset", "epochs", "variant")
    settings = {
        "method": record.method,
        **{name: str(value) if isinstance(value, list) else value for name, value in record.knobs.items()},
        **{name: getattr(record, name) for name in fields},
    }
    outcomes = {
        f"hp/{name}": getattr(record, name)
        for name in ("test_acc", "val_acc", "test_nll", "test_ece", "retention", "agreement")
    }
    return _known(settings), _known(outcomes)


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
