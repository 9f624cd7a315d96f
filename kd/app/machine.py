"""Refuse what this machine cannot do, before anything is trained: devices, BatchNorm over them, memory, few batches."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd.errors import UserError
from kd.training.device import choose_device

SIZES = ("scale", "widen", "width", "growth", "depth")
"""Settings of networks that make them smaller."""


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse devices that are not there.

    Args:
        trainer: its settings.

    Raises:
        UserError: naming the setting.
    """
    accelerator, devices = str(trainer["accelerator"]), trainer["devices"]
    if accelerator in ("cuda", "gpu", "mps"):
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not (any(found.values()) if accelerator == "gpu" else found[accelerator]):
            raise UserError(
                f"trainer.accelerator={accelerator}: torch {torch.__version__} finds no such device here; leave it "
                "out, or write trainer=cpu"
            )
    several_nodes = "num_nodes" in trainer and trainer["num_nodes"] > 1
    if several_nodes and not {"SLURM_JOB_ID", "MASTER_ADDR"} & os.environ.keys():
        raise UserError("trainer.num_nodes is for runs that a cluster's launcher has started on every node")
    on_gpus = choose_device(accelerator, 1).type == "cuda"
    count = torch.cuda.device_count() if on_gpus else os.cpu_count() or 1
    if str(devices).isdecimal() and int(devices) > count:
        raise UserError(f"trainer.devices={devices}: there are {count} here")
    if on_gpus and isinstance(devices, list) and any(int(place) >= count for place in devices):
        raise UserError(f"trainer.devices={devices}: there are {count} here, counted from 0")
    if trainer["sync_batchnorm"] and choose_device(accelerator, devices).type == "cpu":
        raise UserError("trainer.sync_batchnorm=true is for GPUs; write trainer.sync_batchnorm=false")


def check_sync_batchnorm(net: nn.Module) -> None:
    """Refuse BatchNorm layers that do more than that: a SyncBatchNorm takes the place of each, and of its hooks.

    Raises:
        UserError: naming the first.
    """
    for name, layer in net.named_modules():
        if not isinstance(layer, _BatchNorm) or isinstance(layer, nn.SyncBatchNorm):
            continue
        hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
        if type(layer).forward is not _BatchNorm.forward or any(hooks):
            raise UserError(
                f"trainer.sync_batchnorm=true: {name} ({type(layer).__name__}) does more than BatchNorm, and "
                "SyncBatchNorm would leave that out; write trainer.sync_batchnorm=false"
            )


def check_threads(threads: int | None) -> None:
    """Refuse threads that no processor runs; far too many end the process.

    Raises:
        UserError: with the number of cores.
    """
    cores = os.cpu_count() or 1
    if threads is not None and threads > 4 * cores:
        raise UserError(f"threads={threads} is far more than the {cores} cores here; leave it out for all")


def check_memory(name: str, network: Mapping[str, Any], count: int, free: int, device: torch.device) -> None:
    """Refuse a network that needs more memory than is free.

    Args:
        name: student or teacher.
        network: its settings.
        count: its parameters.
        free: bytes.
        device: where it is trained.

    Raises:
        UserError: with a setting that makes it smaller.
    """
    # Weights, gradients, two moments of an optimiser; where it is trained on a GPU, the weights until it is there.
    needed = count * (16 if device.type == "cpu" else 4)
    if needed > free:
        own = [key for key in SIZES if key in network]
        by = f", such as by {name}.{own[0]}" if own else ""
        raise UserError(
            f"a {name} of {count:,} parameters takes {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB are "
            f"free; choose a smaller network{by}"
        )


def check_limits(trainer: Mapping[str, Any], batches: Mapping[str, int]) -> None:
    """Refuse a share of the batches that is less than one of them, which Lightning finds out after training.

    Args:
        trainer: its settings.
        batches: how many there are of each split.

    Raises:
        UserError: naming the setting.
    """
    for split, count in batches.items():
        name = f"limit_{split}_batches"
        limit = trainer.get(name)
        if isinstance(limit, float) and limit > 0 and limit * count < 1:
            raise UserError(f"trainer.{name}={limit} is less than one of the {count} batches; give 1 for one")
