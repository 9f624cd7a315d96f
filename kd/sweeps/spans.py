"""What a search tries of a setting: a range, as `--range` gives it. No torch import."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Context

from kd.errors import UserError
from kd.ranges import require

DIGITS = 4
"""Significant ones, of a value that is tried: enough to tell runs apart, and few enough to type."""

LARGEST = 1e300
"""Beyond it there is no distance between two ends."""


def limits_of(name: str, allowed: Mapping[str, str]) -> str | None:
    """Return what a setting may be, by its full name or the last part of it; None where that is unknown."""
    return allowed.get(name, allowed.get(name.rpartition(".")[2]))


@dataclass(frozen=True)
class Range:
    """What is searched for one setting, ends included."""

    name: str
    """In full, as in "recipe.optimizer.lr"."""
    low: float
    high: float
    log: bool = False
    """Whether the factor between two values counts, and not their difference."""

    @classmethod
    def parse(cls, text: str, allowed: Mapping[str, str]) -> "Range":
        """Read "NAME=LOW:HIGH" or "NAME=LOW:HIGH:log".

        Args:
            text: what to read.
            allowed: what settings may be, by their full names or the last part of these.

        Raises:
            UserError: if it is not of that form, is empty, or reaches beyond what the setting may be.
        """
        name, _, span = text.partition("=")
        ends, scale = span.split(":")[:2], span.split(":")[2:]
        try:
            low, high = (_number(end) for end in ends)
            if not name or scale not in ([], ["log"]):
                raise ValueError
        except ValueError:
            setting = "" if ":" in text else "; settings are given before --range"
            raise UserError(f"--range {text}: write NAME=LOW:HIGH or NAME=LOW:HIGH:log{setting}") from None
        if not low < high:
            raise UserError(f"--range {text}: {low:g} is not below {high:g}")
        if scale and low <= 0:
            raise UserError(f"--range {text}: a range with :log begins above 0")
        limits = limits_of(name, allowed)
        if limits is not None:
            try:
                require(name, low, limits)
                require(name, high, limits)
            except ValueError as error:
                raise UserError(f"--range {text}: {error}") from error
        if max(abs(low), abs(high)) > LARGEST:
            raise UserError(f"--range {text}: both ends must be finite")
        return cls(name, low, high, bool(scale))

    def __str__(self) -> str:
        return f"{self.name}={self.low:g}:{self.high:g}{':log' if self.log else ''}"

    def within(self, limits: Mapping[str, str], known: Mapping[str, float]) -> "Range":
        """Return what is left of the range once the other parts of sums are known.

        Args:
            limits: ranges, those of sums of knobs among them: {"alpha + beta": "[0, 1]"}.
            known: values of the other settings; of those still to be chosen, the least they can be.

        Raises:
            UserError: if nothing is left.
        """
        high = self.high
        for names, span in limits.items():
            parts = names.split(" + ")
            if len(parts) > 1 and self.name in parts:
                rest = sum(known[part] for part in parts if part != self.name)
                high = min(high, round(float(span[1:-1].split(",")[1]) - rest, 9))
                if high < self.low:
                    raise UserError(f"--range {self}: {names} must be in {span}, of which {rest:g} is already taken")
        return replace(self, high=high)

    def short(self, value: float) -> float:
        """Return the value with few digits, still in the range; never rounded up, as sums have upper ends."""
        if isinstance(value, int):
            return value
        return max(self.low, float(Context(prec=DIGITS, rounding=ROUND_DOWN).create_decimal_from_float(value)))


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)
