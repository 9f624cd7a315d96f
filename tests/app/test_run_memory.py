"""Runs for which there is too little memory."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from kd.app import teacher
from kd.models.cnn import CNN
from kd.runs.results import read
from tests.common import SMALL
from tests.report.made import ALONE


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_run_refuses_a_network_that_memory_does_not_hold(run, tmp_path, monkeypatch, name):
    """Before any of it is taken: the largest `scale` has a thousand million parameters."""
    monkeypatch.setattr("kd.app.build.free_memory", lambda: 10**10)
    code, printed = run(*SMALL, "data.source.image_size=32", f"{name}.scale=512", "hydra.run.dir=run")
    assert code == 1
    assert f"error: a {name} of 1,090," in printed
    assert f"takes 17 GB of memory, and 10 GB are free; choose a smaller network, such as by {name}.scale" in printed
    assert not (tmp_path / "run").exists()


def test_network_of_a_chain_is_named_by_the_setting_that_sizes_it(run, monkeypatch):
    monkeypatch.setattr("kd.app.build.free_memory", lambda: 10**9)
    code, printed = run(*SMALL, "data.source.image_size=32", "method=logits", "chain=[{scale: 512}]")
    assert code == 1
    assert "error: a student of 1,090," in printed
    assert "choose a smaller network, such as by student.scale" in printed


@pytest.mark.parametrize(("name", "setting"), [("wrn16_1", "widen"), ("resnet9", "scale"), ("vgg8", "depth")])
def test_memory_is_saved_by_a_setting_that_the_network_has(run, monkeypatch, name, setting):
    monkeypatch.setattr("kd.app.build.free_memory", lambda: 1000)
    code, printed = run(*(one for one in SMALL if "student.scale" not in one), "method=standard", f"student={name}")
    assert code == 1
    assert f"choose a smaller network, such as by student.{setting}\n" in printed


CUDNN = RuntimeError("GET was unable to find an engine to execute this computation")
ELSEWHERE = ", choose another GPU by trainer.devices=[NUMBER], write trainer=cpu"


@pytest.mark.parametrize(
    ("device", "error", "elsewhere", "hint"),
    [
        ("cpu", MemoryError(), "", ""),
        ("cuda:1", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), ELSEWHERE, ""),
        ("cuda:1", CUDNN, ELSEWHERE, "; or cuDNN does not work here"),
    ],
)
def test_teacher_that_finds_no_memory_to_be_tested_is_told_in_a_line(run, monkeypatch, device, error, elsewhere, hint):
    """On a GPU that is full of others' work, a teacher from the store is the first to ask for memory."""

    def full(*_):
        monkeypatch.setattr("kd.app.build.Builder.device", torch.device(device))
        raise error

    monkeypatch.setattr("kd.app.teacher.verify", full)
    code, printed = run(*SMALL, "method=logits", "hydra.run.dir=run")
    assert code == 1
    lack = f"error: {device} has no memory to test the teacher; end what else runs there{elsewhere}, or give"
    assert f"{lack} data.in_memory=false{hint}\n" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_what_a_teachers_training_held_is_freed_on_a_device(monkeypatch, device):
    """A Trainer is a cycle of references, and on a GPU its images are a copy."""

    class Cycle:
        pass

    held = []

    def train(*_):
        cycle = Cycle()
        cycle.itself = cycle
        held.append(weakref.ref(cycle))

    monkeypatch.setattr(teacher, "train_network", train)
    monkeypatch.setattr(teacher, "write_card", lambda *_: None)
    monkeypatch.setattr(teacher, "_name", lambda *_, **__: "cnn32")
    monkeypatch.setattr(teacher, "_key", lambda *_: {})
    monkeypatch.setattr(teacher, "find_or_train", lambda store, key, train_it: train_it("place"))
    build = SimpleNamespace(device=torch.device(device), store=None, first_teachers=[])
    plan = SimpleNamespace(method=None, seed=0, recipe=SimpleNamespace(epochs=1))
    gc.disable()
    try:
        teacher._find(build, plan, ALONE, 0)
        assert (held[0]() is None) == (device == "cuda")
    finally:
        gc.enable()


def test_run_out_of_memory_names_the_batch_size_that_fits(run, tmp_path, monkeypatch):
    """A GPU with memory for forty images, simulated."""
    forward = CNN.forward

    def limited(net, x):
        if net.training and len(x) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(net, x)

    monkeypatch.setattr(CNN, "forward", limited)
    code, printed = run(*SMALL, "method=standard", "batch_size=64", "hydra.run.dir=run")
    assert code == 1
    assert "has no memory for steps of 64 images; batch_size=32 fits, as does a smaller network\n" in printed
    assert "Traceback" not in printed
    assert read(tmp_path / "run" / "result.json").status == "failed"
