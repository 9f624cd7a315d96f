"""Forms of a trained network: what a thread is, what memory is, what the counts are, which points are best."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kd.deploy.export import Deployed, native, to_onnx, to_safetensors
from kd.deploy.runtime import onnx_session
from kd.deploy.table import Row, Timing, pareto, quartiles, to_markdown
from kd.deploy.timing import FORMS, Passes
from kd.inference import Predictor, load
from kd.models.output import Output
from kd.report.statistics import Interval
from kd.runs.weights import load_weights
from tests.common import ROOT
from tests.deploy.common import weights


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("weights") / "student.safetensors")


@pytest.fixture(scope="module")
def onnx_file(file):
    to_onnx(Deployed(load(file), False), file.with_suffix(".onnx"), {})
    return file.with_suffix(".onnx")


def test_one_thread_of_onnx_runtime_is_one_within_and_between_operations(onnx_file):
    options = onnx_session(onnx_file, 1).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    before = len(os.listdir("/proc/self/task"))
    session = onnx_session(onnx_file, 1)
    session.run(None, {"images": np.zeros((64, 3, 8, 8), np.float32)})
    assert len(os.listdir("/proc/self/task")) == before  # no thread beside the caller's


def test_process_of_an_onnx_file_has_no_torch_and_one_of_pytorch_has_the_threads(file, onnx_file):
    program = (
        "import sys; from pathlib import Path; from kd.deploy.timing import *\n"
        f"passes = Passes(FORMS['onnx_fp32'], Path({str(onnx_file)!r}), (3, 8, 8), 1); passes.of(2)()\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        f"passes = Passes(FORMS['torch_bf16'], Path({str(file)!r}), (3, 8, 8), 1); passes.of(2)()\n"
        "import torch; print(torch.get_num_threads(), torch.get_num_interop_threads(), passes.memory.gb() is not None)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "True"], done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux alone tells a peak")
def test_peak_memory_forgets_what_was_before_the_restart():
    """In a process of its own: this one may give back memory at any time."""
    program = (
        "import numpy as np; from kd.deploy.timing import PeakMemory\n"
        "memory, found = PeakMemory(), []\n"
        "del (held := [np.ones(200 << 17)])[0]; found.append(memory.gb())\n"  # 210 MB, and given back
        "memory.restart(); found.append(memory.gb())\n"
        "np.ones(50 << 17).sum(); found.append(memory.gb())\n"
        "print(*found)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    first, forgotten, second = map(float, done.stdout.split())
    assert first > 0.2
    assert forgotten < 0.05
    assert 0.05 < second < 0.1


@pytest.mark.parametrize("half", [False, True])
def test_file_of_weights_for_inference_is_read_by_load(file, tmp_path, half):
    predictor = load(file)
    to_safetensors(predictor, tmp_path / "a.safetensors", load_weights(file)[1], half)
    again = load(tmp_path / "a.safetensors")
    x = torch.randn(50, 3, 8, 8)
    differ = (again(x).logits - predictor(x).logits).abs().max()
    assert 0 < differ < 0.3 if half else differ == 0
    tensors = load_weights(tmp_path / "a.safetensors")[0]
    of_layers = {tensor.dtype for tensor in tensors.values() if tensor.ndim > 1}
    assert of_layers == {torch.bfloat16 if half else torch.float32}
    assert {t.dtype for t in tensors.values() if t.ndim == 1} == {torch.float32}
    fast = native(again, half)(x)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, predictor(x).logits.detach(), atol=0.5 if half else 1e-4, rtol=0)


def test_pareto_line_has_what_nothing_else_beats():
    points = [(3, 90), (1, 80), (2, 79), (2, 85), (3, 89), (4, 90), (1, 70)]
    assert [points[i] for i in pareto(points)] == [(1, 80), (2, 85), (3, 90)]


def test_table_shows_median_and_quartiles():
    near = Interval(0.8, 0.9)
    row = Row("a|b", "run", "torch_bf16", 100, 0.85, near, -0.01, Interval(-0.02, 0), 0.99, 1234, 5_000_000, 1.5)
    row.timings = [Timing(2, batch, [0.004, 0.001, 0.002], 12.3) for batch in (1, 256)]
    header, _, line = to_markdown([row]).splitlines()
    assert "ms an image, batch 1, 2 threads" in header
    assert line.startswith(r"| a\|b | PyTorch bf16 | 85.00 (80.00 to 90.00) | -1.00 (-2.00 to +0.00) | 1,234 | 5.0 M |")
    assert line.endswith("| 2.00 (1.50 to 3.00) | 128,000 (85,333 to 170,667) | 12 | 12 |")
    assert quartiles([0.5]) == (0.5, 0.5)


class Part(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.part = Part()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        embedding = self.part(self.stem(x)).mean((2, 3))
        return Output(self.classifier(embedding), (), embedding)


class Exotic(Untraceable):
    def forward(self, x):
        embedding = torch.special.bessel_j0(self.stem(x)).mean((2, 3))
        return Output(self.classifier(embedding), (), embedding)


@pytest.mark.parametrize(
    ("net", "answer"),
    [
        (
            Untraceable,
            r"^a network of Untraceable cannot be exported to ONNX, in part \(Part\), test_table.py:\d+: Guard",
        ),
        (Exotic, "^a network of Exotic cannot be exported to ONNX: .* No ONNX function found for .*bessel_j0"),
    ],
)
def test_network_that_cannot_be_traced_is_told_with_its_part_or_operator(tmp_path, capsys, net, answer):
    from kd.errors import UserError

    deployed = Deployed(Predictor(net(), ["a", "b", "c"], 8, [0.5] * 3, [0.2] * 3), False)
    with pytest.raises(UserError, match=answer) as error:
        to_onnx(deployed, tmp_path / "file.onnx", {})
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_passes_take_any_batch(onnx_file):
    passes = Passes(FORMS["onnx_fp32"], onnx_file, (3, 8, 8), 1)
    assert [passes.of(n)()[0].shape for n in (1, 7)] == [(1, 3), (7, 3)]
