"""Passes of a deployed network in a process of its own, and the memory that they take.

No torch import: the process of an ONNX file has ONNX Runtime and numpy alone.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kd.deploy.runtime import onnx_session, required

Pass = Callable[[], object]
"""One forward pass of the same images: normalised, (B, C, H, W), fp32, to logits."""
Prepare = Callable[[NDArray[np.float32]], Pass]


class Form(NamedTuple):
    """A form that a trained network is run in."""

    name: str
    """As it is shown."""
    suffix: str
    """Suffix of its file: .onnx for ONNX Runtime, .safetensors for PyTorch."""
    half: bool = False
    """Whether PyTorch computes in bf16, from weights in bf16."""
    int8: bool = False
    """Whether the ONNX file is quantised."""


FORMS = {
    "torch_fp32": Form("PyTorch fp32", ".safetensors"),
    "torch_bf16": Form("PyTorch bf16", ".safetensors", half=True),
    "onnx_fp32": Form("ONNX Runtime fp32", ".onnx"),
    "onnx_int8": Form("ONNX Runtime int8", ".onnx", int8=True),
}


class Passes:
    """A network in one of its forms, ready to run.

    Args:
        form: which.
        path: its file.
        shape: of an image, (C, H, W).
        threads: of the CPU that it may use, at least 1.
        trust: whether the file of weights may name any code; see `kd.load`.
    """

    def __init__(self, form: Form, path: Path, shape: tuple[int, ...], threads: int, trust: bool = False) -> None:
        self.shape = shape
        onnx = form.suffix == ".onnx"
        for library in ("onnxruntime",) if onnx else ("kd.inference", "kd.deploy.export"):
            required(library)
        self.memory = PeakMemory()  # libraries are there, the network is not
        self.prepare = _onnx(path, threads) if onnx else _torch(path, threads, form.half, trust)

    def of(self, batch: int) -> Pass:
        """Return a pass of that number of images, and begin to measure its memory."""
        images = np.random.default_rng(0).standard_normal((batch, *self.shape), np.float32)
        one = self.prepare(images)
        self.memory.restart()
        return one


class PeakMemory:
    """Peak of the resident set of this process, beyond what it was when this object was made. Linux alone has it."""

    def __init__(self) -> None:
        self.before = memory_of("self", "VmRSS")

    def restart(self) -> None:
        """Forget the peak so far."""
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def gb(self) -> float | None:
        """Return the peak since `restart`, in GB (10^9 bytes); None where the system does not tell."""
        peak = memory_of("self", "VmHWM")
        return None if peak is None or self.before is None else max(peak - self.before, 0) / 1e9


def memory_of(process: int | str | None, figure: str) -> int | None:
    """Return a figure of a process's memory, such as "VmHWM", in bytes; None where Linux does not tell it.

    Args:
        process: its id, or "self".
        figure: a line of /proc/PROCESS/status.
    """
    with suppress(OSError):
        found = re.search(rf"^{figure}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.M)
        return None if found is None else int(found[1]) * 1024
    return None


def _onnx(path: Path, threads: int) -> Prepare:
    session = onnx_session(path, threads)
    name = session.get_inputs()[0].name
    return lambda images: lambda: session.run(None, {name: images})


def _torch(path: Path, threads: int, half: bool, trust: bool) -> Prepare:
    import torch

    from kd.deploy.export import native
    from kd.inference import load

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)
    run = native(load(path, trust), half)
    return lambda images: partial(run, torch.from_numpy(images))
