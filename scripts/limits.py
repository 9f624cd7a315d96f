"""What a machine can do at most, and what a training step asks of it. `benchmark.py` and `gpu_check.py` use them."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kd.training.device import choose_precision

SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices."""
FLOATS = {"cpu": 2**25, "cuda": 2**28}
"""Numbers in each array of the memory's measurements: more than caches hold."""

EMULATED = 8
"""How many times smaller the matrices' sides are where the processor has no instructions for bf16."""

OVERWRITING = (torch.ops.aten.copy_, torch.ops.aten.fill_, torch.ops.aten.zero_)
"""Operations that do not read the tensor that they write."""


class Work(TorchDispatchMode):
    """Counts what runs within it: floating-point operations, and bytes that the operations read and write.

    Every operation is taken to read its inputs and to write its outputs once, as one does that finds nothing in a
    cache; views cost nothing. What is fused within an operation is counted as torch's operators are, from outside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        """Operations of convolutions and products of matrices, by what they multiply: "fp32", "tf32", "bf16"."""
        self.product_bytes = 0
        """Moved by these."""
        self.other_bytes = 0
        """Moved by all other operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        arguments = list(func._schema.arguments)
        values = [*args, *(kwargs.get(argument.name) for argument in arguments[len(args) :])]
        written = [
            value
            for argument, value in zip(arguments, values, strict=True)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        made = [output] if any(value.alias_info is None for value in func._schema.returns) else []
        if not made and not written:
            return output  # a view
        read = values[1:] if func._overloadpacket in OVERWRITING else values
        moved = sum(map(_bytes, tree_leaves([read, written, made])))
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            self.other_bytes += moved
        else:
            self.flops[_multiplied(args)] += int(count(*args, **kwargs, out_val=output))
            self.product_bytes += moved
        return output

    def figures(self) -> dict[str, Any]:
        """Return the counts as they are written to JSON."""
        return {"flops": dict(self.flops), "product_bytes": self.product_bytes, "other_bytes": self.other_bytes}


def _bytes(value: object) -> int:
    if not isinstance(value, Tensor):
        return 0
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())


def _multiplied(args: Any) -> str:
    tensors = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
    if tensors and tensors[0].dtype == torch.bfloat16:
        return "bf16"
    return "tf32" if tensors and tensors[0].is_cuda and torch.backends.cudnn.allow_tf32 else "fp32"


class Limits:
    """Measures a device's limits, each for a moment: products of matrices in FLOP/s, memory in bytes/s.

    Args:
        device: the processor or GPU.
        seconds: at least for each of them; two repetitions at any rate.
        shrink: divides the sides of matrices and the lengths of arrays, for a trial.
    """

    def __init__(self, device: torch.device, seconds: float = 0.1, shrink: int = 1) -> None:
        self.device, self.seconds = device, seconds
        side, floats = SIDE[device.type] // shrink, FLOATS[device.type] // shrink
        # Of random numbers: products of zeros are faster on some devices.
        self.matrices = torch.randn(2, side, side, device=device)
        self.halves = self.matrices.bfloat16()
        if device.type == "cpu" and choose_precision("auto", "cpu") == "32-true":  # emulated, for a minute if as large
            self.halves = self.halves[:, : side // EMULATED, : side // EMULATED].contiguous()
        self.arrays = torch.randn(3, floats, device=device)

    def measure(self) -> dict[str, float]:
        """Return the best rate of each: "fp32", "bf16" and on CUDA "tf32"; "copy" (a = b), "triad" (a = b + s c)."""
        a, b, c = self.arrays
        size = a.numel() * a.element_size()
        found = {"fp32": self._product(self.matrices), "bf16": self._product(self.halves)}
        if self.device.type == "cuda":
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            found["tf32"] = self._product(self.matrices)
            torch.set_float32_matmul_precision(before)
        found["copy"] = 2 * size / self._shortest(lambda: a.copy_(b))
        found["triad"] = 3 * size / self._shortest(lambda: torch.add(b, c, alpha=0.5, out=a))
        return found

    def _product(self, matrices: Tensor) -> float:
        """Return the FLOP/s of multiplying two matrices."""
        left, right = matrices
        return 2 * len(left) ** 3 / self._shortest(lambda: left @ right)

    def _shortest(self, work: Callable[[], object]) -> float:
        """Return the shortest time in seconds; the first repetition, which prepares, is not one."""
        self._run(work)
        taken = [self._run(work)]
        while sum(taken) < self.seconds:
            taken.append(self._run(work))
        return min(taken)

    def _run(self, work: Callable[[], object]) -> float:
        started = self._now()
        work()
        return self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
