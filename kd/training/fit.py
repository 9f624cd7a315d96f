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
from kd.training.callbacks import AtomicCheckpoints, EpochSeed, History, KeepPredictions
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
    callbacks: Sequence[Callback] = (),
    timed: bool = True,
) -> Result:
    """Fit, test with the last epoch's weights, and write weights, test predictions and the result record.

    Continues from `checkpoints/last.ckpt` if the directory has one.

    Args:
        module: network, loss and recipe.
        data: batches.
        record: the fields that are known beforehand.
        directory: the run directory.
        weights: file name of the weights.
        metadata: stored in the weights, beside the test accuracy.
        make_trainer: returns the Lightning Trainer for callbacks, plugins, logger, directory and intervals.
        logger: receives scalars and pictures; None for no logger.
        callbacks: further callbacks, which may end the training early by raising an exception.
        timed: whether to record the training time; false where several trainings share the process.

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
    keep_predictions = KeepPredictions()
    all_callbacks: list[Callback] = [EpochSeed(record.seed), history, checkpoint, keep_predictions, *callbacks]
    if logger is not None:
        all_callbacks.append(Pictures(data.images.classes))
    trainer = make_trainer(
        callbacks=all_callbacks,
        plugins=[AtomicCheckpoints()],
        logger=logger or False,
        default_root_dir=directory,
        log_every_n_steps=min(50, data.steps_per_epoch),
        **({} if len(data.val_index) else {"limit_val_batches": 0}),
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    last = directory / CHECKPOINT
    if last.exists() and not zipfile.is_zipfile(last):
        raise UserError(f"{last} is damaged; remove it to begin this training anew")
    with warnings.catch_warnings():
        # From Lightning 2.6 with torch 2.14; a user cannot avoid it.
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        # A debug run may have fewer batches than that; the last one of an epoch is logged in any case.
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
        # It is not empty when a run is resumed, as intended.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        try:
            trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
            trainer.test(module, data, verbose=False)
        except BaseException:
            abandon(trainer.loggers)
            raise

    predictions = keep_predictions.predictions(trainer)
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
        save_weights(module.inference_net, directory / weights, {**metadata, "test_acc": record.test_acc})
        conclude(trainer.loggers, *_summary(record))
        write(record, directory / FILE)
    return record


def parameter_count(net: nn.Module) -> int:
    """Return the number of trainable and frozen parameters, without buffers."""
    return sum(p.numel() for p in net.parameters())


def device_name(device: torch.device) -> str:
    """Return a readable name: "NVIDIA H100", "AMD EPYC 9R14 (2 threads)"."""
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
    return _without_none(settings), _without_none(outcomes)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
