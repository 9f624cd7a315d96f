"""Numbers as people read them; blank where unknown."""

from kd.report.effects import Probability
from kd.report.rows import Spread
from kd.report.statistics import FEWEST, Interval

TOO_FEW = "too few seeds"
"""In place of an interval, where other rows have one."""


def decimals(value: float | None, digits: int = 3) -> str:
    """Write a number with so many digits after the point."""
    return "" if value is None else f"{value:,.{digits}f}"


def percent(fraction: float | None, digits: int = 2, unit: str = "") -> str:
    """Write a fraction in percent."""
    return "" if fraction is None else f"{100 * fraction:.{digits}f}{unit}"


def interval_text(interval: Interval | None, sign: str = "", n: int = FEWEST) -> str:
    """Write an interval of fractions in percent, as in "+0.55 to +1.19"; with few seeds, why there is none."""
    if interval is None:
        return TOO_FEW if 0 < n < FEWEST else ""
    return " to ".join(f"{100 * bound:{sign}.2f}" for bound in interval)


def points(fraction: float | None) -> str:
    """Write a difference of fractions in points."""
    return "" if fraction is None else f"{100 * fraction:+.2f}"


def p_value(value: float | None) -> str:
    """Write a p value, as in "0.012"."""
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def probability(found: Probability | None) -> str:
    """Write a probability with its interval, in percent."""
    if found is None:
        return ""
    return f"{100 * found.estimate:.0f} ({100 * found.interval.low:.0f} to {100 * found.interval.high:.0f})"


def plus_minus(spread: Spread | None) -> str:
    """Write mean and spread in percent, as in "84.80 ± 0.23"."""
    if spread is None:
        return ""
    return percent(spread.mean) + ("" if spread.std is None else f" ± {percent(spread.std)}")


def parameters(count: int | None) -> str:
    """Write a number of parameters or operations, as in "1.07 M"."""
    if count is None:
        return ""
    if count >= 1e9:
        return f"{count / 1e9:.2f} G"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def duration(seconds: float | None) -> str:
    """Write seconds, as in "1.5 min"."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
