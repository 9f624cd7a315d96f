"""ONNX Runtime, and what the extra `export` brings. No torch import: a process with this alone shows what it needs."""

import importlib
from pathlib import Path
from typing import Any

from kd.errors import UserError

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors", "executorch": ".pte"}
"""Suffixes of files by the formats that a network is exported to."""
EXTRA = "pip install -e '.[export]'"
EXECUTORCH = (
    "pip install executorch; or write --format torch_export, which ExecuTorch's own tools read where it is installed"
)


def required(module: str, install: str = EXTRA) -> Any:
    """Import a module of an extra.

    Args:
        module: its name.
        install: the command that installs it.

    Raises:
        UserError: with that command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise UserError(f"this needs {package}, which is not installed: {install}") from error


def onnx_session(path: Path, threads: int | None = None) -> Any:
    """Return an `onnxruntime.InferenceSession` of a file, on the processor.

    Args:
        path: the file.
        threads: of an operation, while operations run one after the other: with 1 the caller's thread is the only one.
            None for all cores.

    Raises:
        UserError: without the extra `export`, or for a file that it cannot run.
    """
    runtime = required("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path}: ONNX Runtime cannot run it: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return what an exporter or a runtime says, which is often a report of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
