"""Ranges of the settings that every run has: one table for the command line and for the constructors.

The knobs of a method, such as T, have theirs in its file, conf/method/NAME.yaml (`spec.ranges`), and in its
constructor; a test compares the two.

It does not import torch, so that a mistake in a command is reported at once.
"""

import math

RANGES = {
    "batch_size": "whole [1, inf)",
    "clip_norm": "(0, inf)",
    "conv_dropout": "[0, 1)",
    "crop": "whole [0, inf)",
    "cutout": "whole [0, inf)",
    "depth": "whole [1, inf)",
    "dropout": "[0, 1)",
    "ensemble": "whole [1, inf)",
    "epochs": "whole [1, inf)",
    "gamma": "(0, 1]",
    "head_dropout": "[0, 1)",
    "image_size": "whole [1, inf)",
    "label_smoothing": "[0, 1]",
    "lr": "[0, inf)",
    "momentum": "[0, 1)",
    "order_seed": "whole [0, inf)",
    "scale": "whole [1, inf)",
    "seed": "whole [0, 4294967296)",
    "split_seed": "whole [0, inf)",
    "stored_logits_gb": "[0, inf)",
    "teacher_seed": "whole [0, 4294967296)",
    "threads": "whole [1, inf)",
    "val_fraction": "[0, 1)",
    "warmup": "[0, 1)",
    "weight_decay": "[0, inf)",
    "widen": "whole [1, inf)",
    "workers": "whole [0, inf)",
}
"""Ranges by the last part of the setting's name. A bracket includes its end, a parenthesis does not."""


def require(name: str, value: object, span: str | None = None) -> None:
    """Check that a setting lies in its range.

    Args:
        name: full name, as in "recipe.epochs".
        value: its value. Infinity and NaN are outside every range.
        span: the range, by default that of the name's last part in `RANGES`.

    Raises:
        ValueError: naming setting, range and value.
    """
    span = RANGES[name.rpartition(".")[2]] if span is None else span
    kind, interval = ("whole number", span.removeprefix("whole ")) if span.startswith("whole ") else ("number", span)
    if isinstance(value, bool) or not isinstance(value, int if kind == "whole number" else int | float):
        raise ValueError(f"{name} must be a {kind} in {interval}, got {value}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below and math.isfinite(value)):
        raise ValueError(f"{name} must be {'a whole number ' if kind != 'number' else ''}in {interval}, got {value:g}")


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
