"""Knobs in tables, labels and on axes: those of the records, without any list of methods."""

import re
from collections.abc import Iterable

from kd.report.text import NUMBER, shortened
from kd.runs.results import Knob, Result

COMMON = ("T", "alpha", "beta")
"""Knobs of the form that methods share. Their columns come first, and a CSV has them even where they are empty."""


def knob_names(runs: Iterable[Result]) -> list[str]:
    """Return the knobs of some runs: the common ones first, then the others in order of first appearance."""
    names = dict.fromkeys(name for run in runs for name in run.knobs)
    return [*(name for name in COMMON if name in names), *(name for name in names if name not in COMMON)]


def knob_columns(runs: Iterable[Result], taken: Iterable[str]) -> dict[str, str]:
    """Return the knobs of a CSV by their headers, which differ from a knob's name only where that is taken."""
    names = dict.fromkeys((*COMMON, *knob_names(runs)))
    reserved = set(taken)
    return {f"knob_{name}" if name in reserved else name: name for name in names}


def knob_value(value: Knob | None) -> object:
    """Return what a CSV holds for a knob: numbers in full precision, all else as text."""
    return _typed(value) if isinstance(value, bool | list) else value


def knob_text(value: Knob) -> str:
    """Write a knob as on the command line, floats with six digits, a long text or list shortened."""
    return shortened(_typed(value))


def _typed(value: Knob) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: Knob) -> float | None:
    """Return a knob as a number, also one written as text; None for all else, such as booleans and what no axis has."""
    if isinstance(value, bool | list) or (isinstance(value, str) and not NUMBER.fullmatch(value)):
        return None
    return float(value) if abs(float(value)) < 1e100 else None


def natural(text: str) -> list[str | float]:
    """Return a key that sorts numbers within a text as numbers: "scale=8" before "scale=16"."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+\.?\d*)", text))]


def sort_key(value: Knob | None) -> tuple[object, ...]:
    """Return a key that sorts the values of one knob: absent, then numbers, then text."""
    if value is None:
        return (0,)
    as_number = number(value)
    return (2, natural(knob_text(value))) if as_number is None else (1, as_number)
