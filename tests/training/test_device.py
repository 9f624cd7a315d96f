"""The device of a training, its name and its precision."""

from pathlib import Path

import pytest
import torch

from kd.training.device import choose_device, choose_precision, device_name

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fma avx512f avx512_bf16", "bf16-mixed"), ("avx512f amx_bf16", "bf16-mixed"), ("avx512f avx2", "32-true")],
)
def test_choose_precision_follows_the_processor(monkeypatch, flags, expected):
    monkeypatch.setattr("kd.training.device._cpuinfo", lambda key: {"flags": flags}[key])
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("32-true", "cpu") == "32-true"
    assert choose_precision("bf16-true", "cpu") == "bf16-true"


def test_device_name_is_that_of_the_processor(monkeypatch):
    text = "model\t\t: 17\nmodel name\t: AMD: EPYC\nflags\t\t: fma avx512_bf16\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert device_name(CPU) == f"AMD: EPYC ({torch.get_num_threads()} threads)"
    assert choose_precision("auto", "cpu") == "bf16-mixed"


def test_choose_device_is_the_gpu_of_the_training(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 1) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cpu", 1) == CPU
    assert [choose_device("auto", devices).index for devices in (1, "auto", [3, 2])] == [0, 0, 3]
    monkeypatch.setenv("SLURM_LOCALID", "3")  # which srun sets, and a command of one's own does not
    assert choose_device("gpu", 4).index == 3
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [choose_device("gpu", devices).index for devices in (2, "auto", [3, 2])] == [1, 1, 2]
    assert [choose_device("gpu", devices).index for devices in (1, "1", [3])] == [0, 0, 3]
