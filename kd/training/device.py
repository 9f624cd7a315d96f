"""Which device a training is on, what it is called, and in which precision it computes."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch


def device_type(accelerator: str) -> str:
    """Return what is trained on by Lightning's name of the accelerator: "cuda", "mps" or "cpu"."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "cuda"
    return "mps" if accelerator != "cpu" and torch.backends.mps.is_available() else "cpu"


def choose_device(accelerator: str, devices: object) -> torch.device:
    """Return the device for inference outside of a Trainer: this process's GPU if it trains on one, else the CPU.

    Args:
        accelerator: Lightning's name; anything but "cpu" is CUDA where CUDA is available.
        devices: the Trainer's devices, a number or a list of indices.
    """
    if device_type(accelerator) != "cuda":
        return torch.device("cpu")
    chosen = devices if isinstance(devices, Sequence) and not isinstance(devices, str) else None
    one = str(devices) == "1" if chosen is None else len(chosen) == 1
    # What tells the process's place, by Lightning's own launch or Slurm's; of one device it says nothing.
    index = 0 if one else int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    return torch.device("cuda", index if chosen is None else chosen[index])


def choose_precision(precision: str, accelerator: str) -> str:
    """Return Lightning's name of the precision: "auto" becomes bf16-mixed where the hardware supports bf16.

    Those are CPUs with AVX512-BF16 or AMX and GPUs from Ampere on. Elsewhere bf16 is emulated, up to twenty times
    slower than fp32.
    """
    if precision != "auto":
        return precision
    kind = device_type(accelerator)
    if kind == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        half = kind == "cpu" and bool({"avx512_bf16", "amx_bf16"} & {*_cpuinfo("flags").split()})
    return "bf16-mixed" if half else "32-true"


def device_name(device: torch.device) -> str:
    """Return a readable name: "NVIDIA H100", "AMD EPYC 9R14 (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpuinfo('model name') or platform.processor() or device.type} ({torch.get_num_threads()} threads)"


def _cpuinfo(key: str) -> str:
    """Return what Linux says of the first processor; "" where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
