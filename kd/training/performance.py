"""Speed-ups that do not change what a network learns. `speed=reference` switches all of them off."""

import copy
import ctypes
import platform
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from kd.ranges import require
from kd.training.device import device_type
from kd.training.threads import spin_while_alone


@dataclass(frozen=True)
class Speed:
    """The speed-ups in use; docs/speed.md describes each and its measured gain.

    Args:
        channels_last: memory format of images and convolutions.
        packed_dropout: see `PackedDropout`; it has an effect on CPUs only.
        fused: read by the optimisers' configuration.
        compile: compile the student with torch.compile.
        tensor_cores: TF32 multiplication in place of fp32 on CUDA, and cuDNN's benchmark of algorithms.
        keep_memory: see `keep_memory`; it has an effect on CPUs only.
        fold_teacher: see `prepare_teacher`.
        stored_logits: keep the teacher's logits, see `kd.teachers.logit_cache`; "auto" for yes on CPUs, where
            looking them up takes a hundredth of the time of computing them.
        stored_logits_gb: largest size of one such file, in GB (10^9 bytes), at least 0.

    Raises:
        ValueError: for a size below 0 or a word other than "auto".
    """

    channels_last: bool
    packed_dropout: bool
    fused: bool
    compile: bool
    tensor_cores: bool
    keep_memory: bool
    fold_teacher: bool
    stored_logits: bool | str
    stored_logits_gb: float

    def __post_init__(self) -> None:
        require("speed.stored_logits_gb", self.stored_logits_gb)
        if self.stored_logits not in (True, False, "auto"):
            raise ValueError(f"speed.stored_logits must be true, false or auto, got {self.stored_logits}")

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def stores_logits(self, accelerator: str) -> bool:
        """Return whether to keep the teacher's logits in a run on that accelerator, by Lightning's name."""
        return device_type(accelerator) == "cpu" if self.stored_logits == "auto" else bool(self.stored_logits)

    def configure_process(self, threads: int | None, device: torch.device) -> None:
        """Apply the settings that are global to the process.

        Args:
            threads: CPU threads per operation; None leaves it to OMP_NUM_THREADS or the number of cores.
            device: the device of the training.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if torch.get_num_threads() > 1:
            spin_while_alone()
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if self.tensor_cores else "highest")
            torch.backends.cudnn.allow_tf32 = self.tensor_cores
            torch.backends.cudnn.benchmark = self.tensor_cores
        elif self.keep_memory:
            keep_memory()

    def prepare_student(self, net: nn.Module) -> nn.Module:
        """Prepare the network for training, in place, and return it; names and values of its weights stay."""
        net.to(memory_format=self.memory_format)
        if self.channels_last:
            for module in net.modules():
                if isinstance(module, nn.Flatten):
                    module.register_forward_pre_hook(_keep_layout)
        if self.packed_dropout:
            for module in net.modules():
                if type(module) is nn.Dropout:
                    module.__class__ = PackedDropout  # not another module: it may have hooks, as of `kd.wrap`
        if self.compile:
            # The optimiser DOT and the pictures of gradients go backward through a step's graph more than once.
            torch._functorch.config.donated_buffer = False
            net.compile()
        return net

    def prepare_teacher(self, net: nn.Module, half: bool) -> nn.Module:
        """Return a copy for inference: each BatchNorm folded into the convolution before it, in bf16 if `half`.

        A network that torch.fx cannot trace keeps its BatchNorm.
        """
        net = copy.deepcopy(net).eval().requires_grad_(False)
        if self.fold_teacher:
            net = folded(net)
            if half:
                net = net.to(torch.bfloat16)
        return net.to(memory_format=self.memory_format)


def _keep_layout(flatten: nn.Module, args: tuple[Tensor]) -> None:
    """Convert the gradient to the layout of the flattened feature maps: pooling is slow where the two differ."""
    if args[0].requires_grad and args[0].is_contiguous(memory_format=torch.channels_last):
        args[0].register_hook(  # type: ignore[no-untyped-call]
            lambda grad: grad.contiguous(memory_format=torch.channels_last)
        )


def folded(net: nn.Module) -> nn.Module:
    """Return a copy with each BatchNorm folded into the convolution before it, for inference.

    A network that torch.fx cannot trace is itself returned.
    """
    try:
        folded: nn.Module = fuse(net)
    except (TraceError, TypeError, ValueError, RuntimeError, KeyError):
        return net  # control flow that depends on values, hooks, foreign code
    return folded.eval().requires_grad_(False)


class PackedDropout(nn.Dropout):
    """Dropout that draws 16 random bits per element: a quarter of a call to the generator, which is sequential.

    The rate is exact to 2^-17. On a GPU it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = (bits[: x.numel()] >= round(self.p * 2**16) - 2**15).to(x.dtype).mul_(1 / (1 - self.p))
        # In the memory order of x, to avoid a transposition in the product.
        return x * keep.as_strided(x.shape, x.stride()) if _dense(x) else x * keep.view(x.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def keep_memory() -> None:
    """Let glibc keep freed memory, instead of returning it to the system and allocating it again every step.

    Activations are large enough to be mapped anew each time, at the cost of a page fault for every 4 kB. Does nothing
    with another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 * 2**20)
    libc.mallopt(arena_max, 1)  # the arenas of further threads are too small for activations
