"""Trained networks as files that other programs run (ONNX, `torch.export`, ExecuTorch), checked against the network."""

import copy
import io
import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kd.data.stored import Pixels
from kd.deploy.runtime import EXECUTORCH, first_line, onnx_session, required
from kd.errors import UserError
from kd.files import replaced
from kd.inference import Predictor, load
from kd.ranges import sides
from kd.runs.weights import save_weights
from kd.terminal import with_progress
from kd.training.performance import folded

OPSET = 20
"""Operator set of ONNX: the newest that ONNX Runtime 1.20 runs in full."""
INPUT = "images"
BATCH = 256
"""Images that are run together."""

Rows = NDArray[np.uint8]
"""(B, H, W, C), pixels."""
Logits = NDArray[np.float32]
"""(B, number of classes)."""


class Deployed(nn.Module):
    """A trained network as a program of others calls it: a tensor in, a tensor out, BatchNorm folded.

    Args:
        predictor: the trained network.
        preprocessing: whether it takes uint8 pixels (B, H, W, C) and returns probabilities; else it takes normalised
            images (B, C, H, W) in fp32 and returns logits. Either has a row for each image.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, predictor: Predictor, preprocessing: bool) -> None:
        super().__init__()
        self.kind = f"a network of {type(predictor.net).__name__}"
        self.net = folded(copy.deepcopy(predictor.net))  # which it returns if it cannot trace it
        self.preprocessing = preprocessing
        self.shape = (len(predictor.mean), *sides("image_size", predictor.image_size))
        self.temperature = predictor.temperature
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (predictor.mean, predictor.std))
        # Subtracted first, as an addition after the product would be in int8, too, by its own scale.
        self.register_buffer("offset", (255 * mean).float()[:, None, None])
        self.register_buffer("scale", (1 / (255 * std)).float()[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if not self.preprocessing:
            logits: Tensor = self.net(images).logits
            return logits
        return torch.softmax(self.net(self._normalised(images)).logits / self.temperature, dim=1)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.offset) * self.scale

    def example(self, n: int = 2) -> Tensor:
        """Return n black images as `forward` takes them."""
        channels, height, width = self.shape
        if self.preprocessing:
            return torch.zeros(n, height, width, channels, dtype=torch.uint8)
        return torch.zeros(n, *self.shape)

    def inputs(self, pixels: Rows) -> Tensor:
        """Return images as `forward` takes them."""
        images = torch.from_numpy(pixels)
        return images if self.preprocessing else self._normalised(images)


def to_onnx(deployed: Deployed, path: Path, facts: dict[str, Any]) -> None:
    """Write an ONNX file, one without a second file for its weights, whose batch may have any size.

    Args:
        deployed: the network.
        path: of the file.
        facts: what the file's metadata say, as JSON each.

    Raises:
        UserError: without the extra `export`, or for a network that the exporter cannot trace.
    """
    onnx = required("onnx")
    required("onnxscript")
    try:
        with _quiet():
            program = torch.onnx.export(
                deployed,
                (deployed.example(),),
                input_names=[INPUT],
                output_names=["probabilities" if deployed.preprocessing else "logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter may raise anything about foreign code
        raise UserError(f"{deployed.kind} cannot be exported to ONNX{_reason(error, deployed)}") from error
    if program is None:
        raise UserError(f"{deployed.kind} cannot be exported to ONNX")
    model = program.model_proto
    for node in (node for graph in (model.graph, *model.functions) for node in graph.node):
        del node.metadata_props[:]  # where it was in the source code: paths of this machine
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    with replaced(path) as temporary:
        onnx.save(model, str(temporary))


def to_torch_export(deployed: Deployed, path: Path, facts: dict[str, Any]) -> None:
    """Write a `torch.export` archive (.pt2), which `torch.export.load` reads without kd.

    Args:
        deployed, path, facts: as `to_onnx`; the facts are the extra file kd.json in the archive.

    Raises:
        UserError: for a network that the exporter cannot trace.
    """
    program = _traced(deployed, torch.export.Dim("batch"), "by torch.export")
    with replaced(path) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file, extra_files={"kd.json": json.dumps(facts)})


def to_executorch(deployed: Deployed, path: Path, facts: dict[str, Any]) -> None:
    """Write an ExecuTorch program (.pte) for XNNPACK, whose batch may have up to `BATCH` images.

    Args:
        deployed, path, facts: as `to_onnx`; the facts are what the program's method `kd` returns, as JSON.

    Raises:
        UserError: without the package executorch, or for a network that cannot be traced or lowered.
    """
    exir = required("executorch.exir", EXECUTORCH)
    xnnpack = required("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXECUTORCH)
    # The example is of the largest batch, as ExecuTorch makes room for a multiple of it, whatever the bound.
    program = _traced(deployed, torch.export.Dim("batch", max=BATCH), "to ExecuTorch", BATCH)
    try:
        with _quiet():
            lowered = exir.to_edge_transform_and_lower(
                program, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods={"kd": json.dumps(facts)}
            )
            content = lowered.to_executorch().buffer
    except Exception as error:
        raise UserError(f"{deployed.kind} cannot be lowered to ExecuTorch{_reason(error, deployed)}") from error
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def _traced(deployed: Deployed, batch: Any, how: str, images: int = 2) -> torch.export.ExportedProgram:
    try:
        with _quiet():
            program = torch.export.export(deployed, (deployed.example(images),), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise UserError(f"{deployed.kind} cannot be exported {how}{_reason(error, deployed)}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def to_safetensors(predictor: Predictor, path: Path, facts: dict[str, Any], half: bool = False) -> None:
    """Write weights that `kd.load` reads.

    Args:
        predictor: the trained network.
        path: of the file.
        facts: metadata of the run's own file of weights.
        half: whether the weights of layers are in bf16. Vectors, such as biases and those of BatchNorm, stay in fp32:
            they take no room, and variances lose by it.
    """
    net = copy.deepcopy(predictor.net)
    if half:
        for weight in net.parameters():
            if weight.ndim > 1 and weight.is_floating_point():
                weight.data = weight.data.bfloat16()
    save_weights(net, path, facts)


def native(predictor: Predictor, half: bool = False) -> Callable[[Tensor], Tensor]:
    """Return the network as PyTorch runs it in eager mode: BatchNorm folded, channels last.

    Args:
        predictor: the trained network.
        half: whether it computes in bf16.

    Returns:
        Normalised images (B, C, H, W), fp32 -> logits (B, number of classes), fp32.
    """
    net = Deployed(predictor, preprocessing=False).to(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if half else torch.float32
    net = net.to(dtype)

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        logits: Tensor = net(images.to(dtype, memory_format=torch.channels_last))
        return logits.float()

    return run


Runner = Callable[[Tensor], Logits]
"""Runs an exported file: images as it takes them -> its output, (B, C)."""


def onnx_runner(path: Path, threads: int | None = None) -> Runner:
    """Return ONNX Runtime with a file, on the processor.

    Args:
        path: the file.
        threads: of one operation; None for all cores.

    Raises:
        UserError: without the extra `export`, or for a file that it cannot run.
    """
    session = onnx_session(path, threads)
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Logits:
        try:
            output: Logits = session.run(None, {name: images.numpy()})[0]
        except Exception as error:  # such as of a network that has the size of its batch fixed inside it
            raise UserError(f"the exported file does not run on {len(images)} images: {first_line(error)}") from error
        return output

    return run


def torch_export_runner(path: Path) -> Runner:
    """Return the program in a .pt2 archive of ours."""
    with open(path, "rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Logits:
        with torch.no_grad():
            output: Logits = module(images).numpy()
        return output

    return run


def safetensors_runner(path: Path, trust: bool = False, half: bool = False) -> Runner:
    """Return PyTorch with the network of a file of weights; see `kd.load` and `native`."""
    run = native(load(path, trust), half)

    def to_numpy(images: Tensor) -> Logits:
        logits: Logits = run(images).numpy()
        return logits

    return to_numpy


def executorch_runner(path: Path) -> Runner:
    """Return the program in a .pte file of ours.

    Raises:
        UserError: without the package executorch.
    """
    runtime = required("executorch.runtime", EXECUTORCH)
    method = runtime.Runtime.get().load_program(str(path)).load_method("forward")

    def run(images: Tensor) -> Logits:
        output: Logits = method.execute([images.contiguous()])[0].numpy()
        return output

    return run


def batches(images: Pixels, what: str, size: int = BATCH) -> Iterator[Rows]:
    """Yield uint8 images (N, C, H, W) batch by batch, as (B, H, W, C), with a bar that says what is done to them."""
    for start in with_progress(range(0, len(images), size), what):
        yield images[start : start + size].permute(0, 2, 3, 1).contiguous().numpy()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters warn of, log and print of their own workings: what they cannot do is an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException, deployed: Deployed) -> str:
    """Return where in the network an exporter failed, if that is known, and what it says; it names the operator."""
    names = {id(module): name for name, module in deployed.net.named_modules() if name}
    foreign = (str(Path(torch.__file__).parent), __file__)
    part, code, cause = "", "", cast(BaseException | None, error)
    while cause is not None:
        for frame, line in traceback.walk_tb(cause.__traceback__):
            module, file = frame.f_locals.get("self"), frame.f_code.co_filename
            if id(module) in names:
                part = f"{names[id(module)]} ({type(module).__name__})"
            if part and not file.startswith(foreign):
                code = f", {Path(file).name}:{line}"
        cause = cause.__cause__ or cause.__context__
    place = f", in {part}{code}" if part else ""
    return f"{place}: {first_line(error)}"
