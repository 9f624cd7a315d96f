"""One training, from its first epoch or its last checkpoint to its result record."""

import errno
import platform
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from kd.callbacks import EpochSeed, History, WholeCheckpoints
from kd.data.module import DataModule
from kd.errors import UserError
from kd.lit import Classifier
from kd.logs import Pictures, conclude
from kd.results import FILE, Result, read, write
from kd.weights import save_weights

CHECKPOINT = Path("checkpoints/last.ckpt")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(
    module: Classifier,
    data: DataModule,
    record: Result,
    directory: Path,
    weights: str,
    metadata: dict[str, Any],
    make_trainer: Callable[..., L.Trainer],
    logger: Logger | None,
) -> Result:
    """Fit, test with the last epoch's weights, and leave weights and result record in the run directory.

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

    Returns:
        The completed record, status "done".
    """
    history = History(directory / "metrics.csv")
    checkpoint = ModelCheckpoint(
        directory / CHECKPOINT.parent,
        filename=CHECKPOINT.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    watchers: list[Callback] = [EpochSeed(record.seed), history, checkpoint]
    if logger is not None:
        watchers.append(Pictures(data.images.classes))
    trainer = make_trainer(
        callbacks=watchers,
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
        trainer.fit(module, data, ckpt_path=resumable if resumable.exists() else None, weights_only=True)
        trainer.test(module, data, verbose=False)

    test = {name: value.item() for name, value in trainer.callback_metrics.items()}
    record = replace(
        record,
        val_acc=next(reversed(history.curve("val/acc")), None),
        test_acc=test["test/acc"],
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


def versions() -> str:
    """What the run was made with, as one line."""
    packages = ("torch", "lightning", "torchmetrics", "hydra-core", "kd")
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def git_revision() -> str:
    """The commit that this code is at, "-dirty" behind it if files differ from it; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _summary(record: Result) -> tuple[dict[str, Any], dict[str, float]]:
    settings = {
        name: getattr(record, name)
        for name in ("method", "T", "alpha", "beta", "seed", "student", "teacher", "dataset", "epochs", "variant")
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


def recorded(record: Result, directory: Path, work: Callable[[Result], Result]) -> Result:
    """Do the run, and keep its status in `result.json` from the first moment: running, done, failed, interrupted.

    A run that the directory says is done is not done again.

    Raises:
        UserError: if the directory holds another run.
        SystemExit: 130 if interrupted.
    """
    with _held(directory):
        return _recorded(record, directory, work)


def _held(directory: Path) -> AbstractContextManager[object]:
    """Keeps other runs out of the directory; the further processes of a data-parallel run belong to the first."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return nullcontext()
    try:
        return FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is at work in {directory}") from error


def _recorded(record: Result, directory: Path, work: Callable[[Result], Result]) -> Result:
    path = directory / FILE
    if path.exists():
        previous = read(path)
        if previous.fingerprint != record.fingerprint:
            raise UserError(
                f"{directory} holds a run of another configuration ({previous.method}, seed {previous.seed}, "
                f"{previous.date}); choose another hydra.run.dir, or give the settings with which it was started"
            )
        if previous.status == "done":
            return previous
    write_once(record, path)
    try:
        return work(record)
    except (KeyboardInterrupt, SystemExit) as error:
        write_once(replace(record, status="interrupted"), path)
        print(f"interrupted; continue with: python train.py resume={directory}", file=sys.stderr)
        raise SystemExit(130) from error
    except Exception as error:
        # On a full disk not even this may fit; the first error is the one to hear of.
        with suppress(OSError):
            write_once(replace(record, status="failed", error=str(error)), path)
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(
                f"cannot save the run: {error.strerror}; once there is space, continue with: "
                f"python train.py resume={directory}"
            ) from error
        raise


@rank_zero_only
def write_once(record: Result, path: Path) -> None:
    """Write the record, from one process of a data-parallel run only."""
    write(record, path)
