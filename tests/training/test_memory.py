import os
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.errors import UserError
from kd.training.memory import fitting_batch_size, free_memory, is_device_error, is_out_of_memory, out_of_memory
from kd.training.modules import Classifier
from kd.training.optim import one_cycle


class SmallMemory(nn.Module):
    """A network on a device that has memory for a number of images a step, forward and backward pass alike."""

    def __init__(self, net: nn.Module, forward: int, backward: int, error: Exception) -> None:
        super().__init__()
        self.net, self.forward_limit, self.backward_limit, self.error = net, forward, backward, error

    def forward(self, x):
        self.check(x, self.forward_limit)
        output = self.net(x)
        if output.logits.requires_grad:
            output.logits.register_hook(partial(self.check, limit=self.backward_limit))
        return output

    def check(self, x, limit):
        if len(x) > limit:
            raise self.error


ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
NO_ENGINE = RuntimeError("FIND was unable to find an engine to execute this computation")
"""What torch makes of cuDNN's trial of algorithms, each of which lacked memory."""
ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20971520 bytes.")


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("error", [ON_GPU, NO_ENGINE, ON_CPU], ids=["gpu", "cudnn", "cpu"])
@pytest.mark.parametrize(
    ("forward", "backward", "answer"),
    [
        (11, 11, "batch_size=10 fits"),
        (19, 9, "batch_size=5 fits"),
        (19, 4, "batch_size=2 fits"),
        (19, 0, "not even one image a step fits; choose a smaller network"),
        (0, 0, "not even one image a step fits; choose a smaller network"),
    ],
)
def test_out_of_memory_names_the_batch_size_that_fits(
    tiny_net, noise, trainer, forward, backward, answer, error, precision
):
    net = SmallMemory(tiny_net(), forward, backward, error)
    module = Classifier(net, 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0))
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=20, seed=0)
    lightning = trainer(max_epochs=1, precision=precision)
    with pytest.raises(type(error)) as raised:
        lightning.fit(module, data)
    assert is_out_of_memory(raised.value)
    message = str(out_of_memory(raised.value, module, data, lightning))
    assert message.startswith("the device, cpu, has no memory for steps of 20 images; ")
    assert answer in message


def test_fitting_batch_size_frees_the_activations_of_a_failed_try(tiny_net, noise, trainer):
    """Else the smaller steps after it have less memory than they would have in a training."""
    kept, left = [], []

    class Activations:
        pass

    class FailsBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.activations = Activations()
            kept.append(weakref.ref(ctx.activations))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ON_GPU

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net()

        def forward(self, x):
            left.append(sum(activations() is not None for activations in kept))
            output = self.net(x)
            return output._replace(logits=FailsBackward.apply(output.logits))

    module = Classifier(Net(), 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0))
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=20, seed=0)
    assert fitting_batch_size(module, trainer(), next(iter(data.train_dataloader()))) is None
    assert left == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("ranks", "answer"), [(2, "try batch_size=10, or a"), (4, "try batch_size=8, or a"), (16, "choose a")]
)
def test_out_of_memory_among_several_processes_tries_no_step(tiny_net, noise, trainer, ranks, answer):
    """A step that gathers from all processes, as that of crd does, would wait for the others for good."""
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=20, seed=0)
    data.setup("fit")
    one_of_several = SimpleNamespace(world_size=ranks, strategy=SimpleNamespace(root_device="cuda:1"))
    message = str(out_of_memory(ON_GPU, None, data, one_of_several))
    assert message == f"the device, cuda:1, has no memory for steps of 20 images; {answer} smaller network"


def test_out_of_memory_for_all_images_at_once(tiny_net, noise, trainer, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DataModule, "shared", full)
    module = Classifier(tiny_net(), 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0))
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=20, seed=0)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        trainer(max_epochs=1).fit(module, data)
    assert "give data.in_memory=false" in str(out_of_memory(raised.value, module, data, trainer()))


def test_free_memory_is_within_the_machines():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert whole / 1000 < free_memory() <= whole


@pytest.mark.parametrize(
    ("error", "memory", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True, True),
        (RuntimeError("CUDA error: out of memory"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True, True),
        (NO_ENGINE, True, False),
        (torch.distributed.DistBackendError("unhandled system error"), False, True),
        (RuntimeError("Error(s) in loading state_dict for Classifier"), False, False),
        (UserError("the disk is out of memory"), False, False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_errors_of_memory_and_of_devices_are_told_from_others(error, memory, device):
    assert (is_out_of_memory(error), is_device_error(error)) == (memory, device)


def test_free_memory_is_what_a_container_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr("kd.training.memory.CONTAINER", tmp_path)
    host = free_memory()
    (tmp_path / "memory.max").write_text("9000000\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000000\nactive_file 7\n")
    assert free_memory() == 5_000_000  # cached files are given back
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == pytest.approx(host, rel=0.2)
