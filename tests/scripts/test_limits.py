"""What a step asks of a machine, counted, and what the machine can do, measured."""

import pytest
import torch

from kd.models.cnn import CNN
from kd.models.output import multiply_adds
from scripts.limits import Limits, Work

KB = 4 * 256  # of 256 numbers in fp32


def counted(step):
    with Work() as work:
        step()
    return work.figures()


def test_work_counts_reads_and_writes_of_operations():
    a, b = torch.ones(256), torch.ones(256)
    assert counted(lambda: a + b) == {"flops": {}, "product_bytes": 0, "other_bytes": 3 * KB}
    assert counted(lambda: a.add_(b))["other_bytes"] == 3 * KB
    assert counted(lambda: a.copy_(b))["other_bytes"] == 2 * KB
    assert counted(lambda: torch._foreach_mul_([a, b], 2.0))["other_bytes"] == 4 * KB
    assert counted(lambda: a.view(16, 16).t()[1:].unsqueeze(0))["other_bytes"] == 0
    one = torch.ones(1).expand(256)
    assert counted(lambda: one.clone())["other_bytes"] == 4 + KB


def test_work_counts_products_by_precision():
    x = torch.ones(4, 8)
    assert counted(lambda: x @ x.T) == {"flops": {"fp32": 2 * 4 * 8 * 4}, "product_bytes": 4 * 80, "other_bytes": 0}
    with torch.autocast("cpu", torch.bfloat16):
        assert counted(lambda: x @ x.T)["flops"] == {"bf16": 2 * 4 * 8 * 4}


def test_work_counts_a_training_step():
    net = CNN(4, 10, 16, "relu", 0.0, 0.0)
    x = torch.randn(2, 3, 16, 16)
    forward = 2 * 2 * multiply_adds(net, 16)
    assert sum(counted(lambda: net(x))["flops"].values()) == forward
    step = counted(lambda: net(x).logits.sum().backward())
    # Backward is two products for each, but the first layer's, whose input needs no gradient.
    first = 2 * 2 * 16 * 16 * 4 * 27
    assert step["flops"] == {"fp32": 3 * forward - first}
    assert step["product_bytes"] > step["other_bytes"] / 10 > 0


def test_limits_are_measured():
    limits = Limits(torch.device("cpu"), seconds=0, shrink=64).measure()
    assert list(limits) == ["fp32", "bf16", "copy", "triad"]
    assert all(1e6 < rate < 1e15 for rate in limits.values())


@pytest.mark.parametrize(("precision", "side"), [("bf16-mixed", 32), ("32-true", 4)])
def test_limits_multiply_small_matrices_where_bf16_is_emulated(monkeypatch, precision, side):
    """Large ones take a minute there."""
    monkeypatch.setattr("scripts.limits.choose_precision", lambda *_: precision)
    limits = Limits(torch.device("cpu"), seconds=0, shrink=64)
    assert limits.halves.shape == (2, side, side)
    assert limits.matrices.shape == (2, 32, 32)
    assert limits.measure()["bf16"] > 1e4
