"""Ranges and kinds of the settings that every run has: tables for the command line and for the constructors.

The knobs of a method, such as T, have theirs in its file, conf/method/NAME.yaml (`spec.ranges`), and in its
constructor; a test compares the two.

It does not import torch, so that a mistake in a command is reported at once.
"""

from collections.abc import Sequence
from typing import TypeAlias, cast

RANGES = {
    "accumulate_grad_batches": "whole [1, inf)",
    "batch_size": "whole [1, inf)",
    "clip_norm": "[1e-6, inf)",
    "conv_dropout": "[0, 1)",
    "crop": "whole [0, inf)",
    "cutmix": "[0.01, 100]",
    "cutout": "whole [0, inf)",
    "delta": "[0, 1)",
    "depth": "whole [1, 1000]",
    "dropout": "[0, 1)",
    "ema": "(0, 1)",
    "ensemble": "whole [1, 100]",
    "epochs": "whole [1, 1000000]",
    "fraction": "(0, 1]",
    "gamma": "(0, 1]",
    "gradient_norms": "whole [1, inf)",
    "groups": "whole [1, 3]",
    "growth": "whole [1, 1000]",
    "head_dropout": "[0, 1)",
    "image_size": "whole [1, 4096]",
    "label_smoothing": "[0, 1]",
    "limit_test_batches": "(0, inf)",
    "limit_train_batches": "(0, inf)",
    "limit_val_batches": "[0, inf)",
    "lr": "[0, inf)",
    "mixup": "[0.01, 100]",
    "momentum": "[0, 1)",
    "noise": "[0, 1)",
    "num_nodes": "whole [1, inf)",
    "order_seed": "whole [0, inf)",
    "reduction": "whole [1, 1000]",
    "scale": "whole [1, 512]",
    "seed": "whole [0, 4294967296)",
    "size": "whole [1, 4096]",
    "split_seed": "whole [0, inf)",
    "stem": "whole [1, 4096]",
    "stored_logits_gb": "[0, inf)",
    "teacher_seed": "whole [0, 4294967296)",
    "strength": "[0, 1]",
    "threads": "whole [1, 1024]",
    "val_fraction": "[0, 1)",
    "warmup": "[0, 1)",
    "weight_decay": "[0, inf)",
    "widen": "whole [1, 1000]",
    "width": "(0, 16]",
    "workers": "whole [0, 1024]",
}
"""Ranges by the last part of the setting's name. A bracket includes its end, a parenthesis does not."""

SIDES = ("image_size", "size")
"""Settings that are one such number for squares, or two of them, height and width."""

Size: TypeAlias = int | Sequence[int]
"""Size of images in pixels: the height and width of squares, or [height, width]."""

SWITCH = "true or false"
TEXT = "text"
WHOLE_NUMBERS = "a list of whole numbers"
NAMES = "a list of names"
FOLDERS = "a list such as [DIR] of folders"
PATHS = "a path, or a list such as [A,B] of them"
KINDS = {
    **dict.fromkeys(("default_hp_metric", "enable_progress_bar", "flip", "fused", "in_memory", "pool"), SWITCH),
    **dict.fromkeys(("channels_last", "compile", "fold_teacher", "keep_memory", "packed_dropout"), SWITCH),
    **dict.fromkeys(("benchmark", "detect_anomaly"), SWITCH),
    **dict.fromkeys(("decay_all", "nesterov", "sync_batchnorm", "tensor_cores"), SWITCH),
    **dict.fromkeys(("preacts", "rescale", "standardize"), SWITCH),
    **dict.fromkeys(("name", "root", "teacher_store"), TEXT),
    **dict.fromkeys(("head", "pretrained", "target"), TEXT),
    **dict.fromkeys(("student.stages", "teacher.stages"), NAMES),
    "deterministic": "one of true, false, warn",
    "policy": "one of trivialaugment, randaugment",
    "precision": "one of auto, 16-mixed, 16-true, 32-true, 64-true, bf16-mixed, bf16-true, 16, 32, 64, bf16",
    **dict.fromkeys(("stages", "teacher_stages"), WHOLE_NUMBERS),
    "also_test": FOLDERS,
    "teacher_weights": PATHS,
    **dict.fromkeys(("data.channels", "data.source.channels"), "one of 1, 3"),
    "balance": "one of none, weights, sampling",
    "stored_logits": "one of auto, true, false",
}
"""What settings beside numbers take: a switch, text, a choice, a list. By the last part of the setting's name; by its
full name where a last part stands for different things."""


def require(name: str, value: object, span: str | None = None) -> None:
    """Check that a setting lies in its range, or is of its kind.

    Args:
        name: full name, as in "recipe.epochs".
        value: its value. Infinity and NaN are outside every range.
        span: the range or kind, by default that of the name's last part in `RANGES` or `KINDS`.

    Raises:
        ValueError: naming setting, range and value.
    """
    last = name.rpartition(".")[2]
    span = ({**RANGES, **KINDS}.get(name) or {**RANGES, **KINDS}[last]) if span is None else span
    if last in SIDES and isinstance(value, list | tuple):
        if len(value) != 2 or any(isinstance(side, list | tuple) for side in value):
            raise ValueError(f"{name} must be one number for squares, or [HEIGHT,WIDTH], {_got(value)}")
        for side in value:
            require(name, side, span)
        return
    if span[-1] not in "])":
        if not _is_of_kind(value, span):
            raise ValueError(f"{name} must be {span}, {_got(value)}")
        return
    kind, interval = ("whole number", span.removeprefix("whole ")) if span.startswith("whole ") else ("number", span)
    if isinstance(value, bool) or not isinstance(value, int if kind == "whole number" else int | float):
        raise ValueError(f"{name} must be a {kind} in {interval}, {_got(value)}")
    number = cast(float, value)
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    finite = abs(number) < 1e300  # also of whole numbers of any length
    if not (above and below and finite):
        shown = f"{number:g}" if finite or isinstance(value, float) else "a number of hundreds of digits"
        raise ValueError(f"{name} must be {'a whole number ' if kind != 'number' else ''}in {interval}, got {shown}")


def sides(name: str, size: Size) -> tuple[int, int]:
    """Check a size in pixels; return height and width.

    Raises:
        ValueError: as `require`.
    """
    require(name, size)
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


def size_text(size: Size) -> str:
    """Return a size in pixels as messages have it, width first: "32x32"."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return f"{width}x{height}"


def short_size(size: Size) -> str:
    """Return a size in pixels, the one number of squares: "32", else as `size_text`."""
    return f"{size}" if isinstance(size, int) else size_text(size)


def _is_of_kind(value: object, kind: str) -> bool:
    if kind == SWITCH:
        return isinstance(value, bool)
    if kind == TEXT:
        return isinstance(value, str) and value != ""
    if kind == NAMES:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if kind == WHOLE_NUMBERS:
        return isinstance(value, list | tuple) and all(type(item) is int for item in value)
    if kind == FOLDERS:
        return isinstance(value, list | tuple) and all(_is_of_kind(item, TEXT) for item in value)
    if kind == PATHS:
        return _is_of_kind(value, TEXT) or (_is_of_kind(value, FOLDERS) and value != [])
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return shown in kind.removeprefix("one of ").split(", ")


def _got(value: object) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"got {shown or 'no value'}"


def require_sum(span: str, **parts: float) -> None:
    """Check that some settings' sum lies in a span; rounding errors, as in 0.7 + 0.2 + 0.1, are ignored.

    Raises:
        ValueError: naming settings, span and values.
    """
    try:
        require("sum", round(sum(parts.values()), 9), span)
    except ValueError:
        values = " and ".join(f"{name}={value:g}" for name, value in parts.items())
        raise ValueError(f"{' + '.join(parts)} must be in {span}, got {values}") from None
