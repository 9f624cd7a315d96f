"""Runs for which there is too little memory."""

import pytest
import torch

from kd.models.cnn import CNN
from kd.runs.results import read
from tests.common import SMALL


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
