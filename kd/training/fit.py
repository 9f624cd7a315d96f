"""One training, from its first epoch or its last checkpoint to its result record."""

import atexit
import logging
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from kd.data.module import DataModule
from kd.errors import DivergedError, UserError, reason_of
from kd.hashing import digest
from kd.runs.predictions import FILE as PREDICTIONS
from kd.runs.predictions import Predictions, near_chance
from kd.runs.predictions import write as write_predictions
from kd.runs.results import CURVES, FILE, Result, write
from kd.runs.status import CHECKPOINTS
from kd.runs.weights import not_finite, save_weights
from kd.training.also_test import Measured, measure
from kd.training.callbacks import ADVICE, EpochSeed, History, KeepPredictions
from kd.training.checkpoints import PREVIOUS, AtomicCheckpoints
from kd.training.device import device_name
from kd.training.loggers import Samples, TensorBoard, abandon, conclude, log_confusion, log_settings, name_run
from kd.training.memory import is_device_error, is_out_of_memory, out_of_memory
from kd.training.modules import Classifier
from kd.training.tabs import GradientNorms, Tabs

CHECKPOINT = Path(CHECKPOINTS, "last.ckpt")
DIVERGED = 10
"""A run has diverged if its test NLL is not finite or above this multiple of ln C, the NLL of guessing.

An overfitted network that is wrong about every image, and sure of it, has an NLL of some nats; this is 23 for ten
classes.
"""

log = logging.getLogger(__name__)


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
    single_process: bool = True,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
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
        single_process: whether the training is in this process only, so that the ranks and tasks that a launcher has
            put into the environment are none of its own.
        settings: the resolved configuration, shown by TensorBoard; by default the metadata.
        seed: of the random numbers of each epoch, such as dropout's; by default the record's.

    Returns:
        The completed record, status "done".

    Raises:
        DivergedError: if a loss is not finite, or training ends with weights that are not.
        UserError: if the checkpoint is damaged or another's, or memory does not suffice.
    """
    history, keep_predictions = History(directory / CURVES, timed), KeepPredictions()
    shown = metadata if settings is None else settings
    role = "student" if record.student or record.taught else "teacher"  # in a chain it may be either
    tabs = Tabs(role, data.images, record.command, shown)
    checkpoint = ModelCheckpoint(
        directory / CHECKPOINT.parent,
        filename=CHECKPOINT.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    own = [EpochSeed(record.seed if seed is None else seed), history, checkpoint, keep_predictions]
    name_run(logger, _title(record))
    if single_process:
        # As Lightning's data-parallel strategies set it; until then it is what the environment says.
        cast(Any, rank_zero_only).rank = 0
    trainer = make_trainer(
        callbacks=[*own, *callbacks, *_drawing(logger, tabs)],
        plugins=[
            AtomicCheckpoints(_identity(record, metadata), record.epochs),
            *([LightningEnvironment()] if single_process else []),
        ],
        logger=logger or False,
        default_root_dir=directory,
        log_every_n_steps=min(50, data.steps_per_epoch),
        **({} if len(data.val_index) else {"limit_val_batches": 0}),
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    if "SUBMITIT_EXECUTOR" in os.environ:
        # On Slurm SIGTERM announces the end of a job that Submitit queues again; with Lightning's own answer to it the
        # job would end by itself, and stay ended.
        cast(Any, trainer)._signal_connector.register_signal_handlers = lambda: None
    log_settings(trainer.loggers, shown)
    last = directory / CHECKPOINT if (directory / CHECKPOINT).exists() else None
    with _expected_warnings():
        try:
            with _restoring(last, history):
                trainer.fit(module, data, ckpt_path=last, weights_only=True)
            broken = not_finite(module.inference_net)
            if broken is not None:
                raise DivergedError(f"training diverged: {broken} ends with weights that are not finite; {ADVICE}")
            trainer.test(module, data, verbose=False)
            predictions = keep_predictions.predictions(trainer)  # before what one process does alone: the others wait
            further = measure(module, data, trainer)
        except BaseException as error:
            abandon(trainer.loggers)
            _end_others(trainer)
            if is_out_of_memory(error):
                raise out_of_memory(error, module, data, trainer) from error
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = reason_of(error)
                raise UserError(
                    f"speed.compile=true: torch cannot compile ({reason}); write speed.compile=false"
                ) from error
            raise

    record = _completed(record, trainer, data, history, predictions, further)
    if trainer.is_global_zero:
        # What cannot be made again comes first.
        write_predictions(predictions, directory / PREDICTIONS)
        facts = {"test_acc": record.test_acc, "test_images": record.test_images, "trial": record.trial}
        save_weights(module.inference_net, directory / weights, {**metadata, **facts})
        (directory / CHECKPOINT).with_name(PREVIOUS).unlink(missing_ok=True)
        write(record, directory / FILE)
        if record.trial:
            log.warning("this is a trial: %s", record.trial)
        log_confusion(trainer.loggers, predictions, data.images.classes, trainer.global_step)
        tabs.conclude(trainer, predictions)
        conclude(trainer.loggers, *_summary(record))
    return record


def _drawing(logger: Logger | None, tabs: Tabs) -> list[Callback]:
    """The callbacks that show a training in its logger."""
    if logger is None:
        return []
    if not isinstance(logger, TensorBoard):
        return [Samples()]
    return [Samples(), tabs, *([GradientNorms(logger.gradient_norms)] if logger.gradient_norms else [])]


@contextmanager
def _expected_warnings() -> Iterator[None]:
    """Leave out warnings about what is as it should be."""
    with warnings.catch_warnings():
        # From Lightning 2.6 with torch 2.14; a user cannot avoid it.
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        # A debug run may have fewer batches than that; the last one of an epoch is logged in any case.
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
        # It is not empty when a run is resumed, as intended.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # No validation images: only with limit_val_batches, as debug=fast_dev_run has it, does Lightning look.
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        yield


def _completed(
    record: Result,
    trainer: L.Trainer,
    data: DataModule,
    history: History,
    predictions: Predictions,
    further: Measured,
) -> Result:
    """Return the record with all that training and test have found."""
    class_acc = predictions.class_accuracy
    test = {name: value.item() for name, value in trainer.callback_metrics.items()}
    record = replace(
        record,
        train_images=len(data.train_index),
        noisy_labels=data.noisy_labels,
        val_acc=history.rows[-1].get("val/acc") if history.rows else None,
        test_acc=test["test/acc"],
        test_balanced_acc=float(np.nanmean(class_acc)),
        test_class_acc=class_acc.tolist(),
        test_images=len(predictions.labels),
        test_total=len(data.images.test_y),
        test_nll=test["test/nll"],
        test_ece=test["test/ece"],
        also_test_acc=further.acc,
        also_test_nll=further.nll,
        agreement=test.get("test/agreement"),
        train_seconds=history.seconds,
        images_per_second=history.images / history.seconds if history.seconds else None,
        device=device_name(trainer.strategy.root_device),
        precision=str(trainer.precision),
        trial=_trial(trainer, data, record.epochs, history.images, len(predictions.labels)),
        diverged=not test["test/nll"] <= DIVERGED * math.log(len(data.images.classes)),
        epoch_train_loss=history.curve("train/loss"),
        epoch_train_acc=history.curve("train/acc"),
        epoch_val_loss=history.curve("val/nll"),
        epoch_val_acc=history.curve("val/acc"),
        status="done",
    )
    if record.teacher_test_acc and record.test_images == record.test_total:  # else of other images than the teacher's
        record = replace(record, retention=test["test/acc"] / record.teacher_test_acc)
    return replace(record, warnings=[*record.warnings, *_doubts(record, predictions, data.images.classes)])


def _identity(record: Result, metadata: dict[str, Any]) -> str:
    """Name a training by what decides its result: settings, images and teacher."""
    # A name of the images is none of that, and figures that are computed from them vary with the machine.
    described = {name: value for name, value in metadata.items() if name not in ("dataset", "mean", "std")}
    return digest([described, record.fingerprint, record.teacher_id])


def _end_others(trainer: L.Trainer) -> None:
    """Have the processes that train along end with this one: they would wait for it for long, and keep their GPUs."""
    kill = getattr(trainer.strategy.launcher, "kill", None)
    if kill is not None:
        atexit.register(kill, signal.SIGKILL)  # not at once: Lightning ends the process whose children end


@contextmanager
def _restoring(checkpoint: Path | None, history: History) -> Iterator[None]:
    """Answer an error while a checkpoint is restored in one line: it does not fit."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if checkpoint is None or history.trains or is_out_of_memory(error) or is_device_error(error):
            raise
        reason = reason_of(error)
        raise UserError(
            f"this training cannot be continued from {checkpoint} ({type(error).__name__}: {reason}); move it away "
            "to begin anew"
        ) from error


def _trial(trainer: L.Trainer, data: DataModule, epochs: int, trained: int, tested: int) -> str | None:
    """Return what a run left out, by what it did and not by the settings that can bring this about; None for nothing.

    Args:
        trainer: after fit and test.
        data: all batches.
        epochs: number of epochs of the whole run.
        trained, tested: number of images that were trained and tested on, in all epochs together.
    """
    parts, total = [], len(data.images.test_y)
    if tested < total:
        parts.append(f"tested on {tested:,} of {total:,} images")
    done, planned = trained // data.batch_size, epochs * data.steps_per_epoch
    if done < planned:
        parts.append(f"trained on {done:,} of {planned:,} batches")
    batches = len(data.evaluation(data.val_index)) if len(data.val_index) else 0
    limit = trainer.limit_val_batches
    validated = limit if isinstance(limit, int) else int(limit * batches)
    if validated < batches:
        parts.append(f"validated on {validated} of {batches} batches")
    return ", ".join(parts) or None


def _doubts(record: Result, predictions: Predictions, classes: Sequence[str]) -> list[str]:
    """Return and log what a reader of the network's own figures should know; of a trial only that it diverged."""
    doubts = []
    if record.diverged:
        guessing = math.log(len(classes))
        doubts.append(f"training diverged: test NLL {record.test_nll:.4g}, and guessing has {guessing:.3g}; {ADVICE}")
    elif record.trial is None and record.test_acc is not None:
        chance = near_chance(record.test_acc, predictions.labels)
        if chance is not None:
            doubts.append(
                f"the {'student' if record.student else 'teacher'} reaches {100 * record.test_acc:.1f} %, {chance}"
            )
    untested = [classes[label] for label, acc in enumerate(record.test_class_acc) if math.isnan(acc)]
    if untested and record.trial is None:
        more = f" and {len(untested) - 3:,} more classes" if len(untested) > 3 else ""
        doubts.append(f"there are no test images of {', '.join(untested[:3])}{more}")
    for doubt in doubts:
        log.warning("%s", doubt)
    return doubts


def _title(record: Result) -> str:
    """Return a name of the run by its settings, as in "cnn16 logits T=4.0 alpha=0.1 seed=0"."""
    knobs = [f"{name}={value}" for name, value in record.knobs.items()]
    return " ".join([record.student or record.teacher or "", record.method, *knobs, f"seed={record.seed}"])


def _summary(record: Result) -> tuple[dict[str, Any], dict[str, float]]:
    fields = ("seed", "student", "teacher", "dataset", "epochs", "variant")
    settings = {
        "method": record.method,
        **{name: str(value) if isinstance(value, list) else value for name, value in record.knobs.items()},
        **{name: getattr(record, name) for name in fields},
    }
    outcomes = {
        name: getattr(record, name)
        for name in ("test_acc", "val_acc", "test_nll", "test_ece", "retention", "agreement")
    }
    return _without_none(settings), _without_none(outcomes)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
