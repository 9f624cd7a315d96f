"""Ranges of a search."""

import random

import pytest

from kd.errors import UserError
from kd.ranges import RANGES, require_sum
from kd.sweeps.spans import Range


def test_range_parses_and_prints():
    assert Range.parse("T=1:16:log", RANGES) == Range("T", 1, 16, log=True)
    assert Range.parse("recipe.optimizer.lr=1e-3:0.1", RANGES) == Range("recipe.optimizer.lr", 0.001, 0.1)
    assert str(Range.parse("recipe.optimizer.lr=0.01:0.2:log", RANGES)) == "recipe.optimizer.lr=0.01:0.2:log"


def test_range_within_respects_a_sum():
    limits = {"alpha + beta": "[0, 1]"}
    assert Range("beta", 0.0, 1.0).within(limits, {"alpha": 0.3}).high == 0.7
    assert Range("beta", 0.0, 0.5).within(limits, {"alpha": 0.3}).high == 0.5
    assert Range("T", 1.0, 20.0).within(limits, {}).high == 20
    with pytest.raises(UserError, match=r"of which 0\.9 is already taken"):
        Range("beta", 0.2, 1.0).within(limits, {"alpha": 0.9})


def test_range_short_values_never_break_a_limit():
    """Including rounding: the methods accept every pair."""
    generator = random.Random(0)
    alpha, beta = Range("alpha", 0.05, 1.0), Range("beta", 0.03, 1.0)
    limits = {"alpha + beta": "[0, 1]"}
    for _ in range(2000):
        values = {"alpha": alpha.low, "beta": beta.low}
        for part in (alpha, beta):
            left = part.within(limits, values)
            # Half of the draws at the very end of what is left.
            drawn = generator.choice([left.high, generator.uniform(left.low, left.high)])
            values[part.name] = left.short(drawn)
            assert left.low <= values[part.name] <= left.high
        require_sum("[0, 1]", **values)


def test_range_short_keeps_four_digits():
    assert Range("T", 1.0, 20.0).short(3.7454011884736254) == 3.745
    assert Range("lr", 1e-5, 1.0).short(0.000123456) == 0.0001234
    assert Range("alpha", 0.00012345, 1.0).short(0.000123456) == 0.00012345
    assert Range("student.scale", 1, 99999).short(12345) == 12345


@pytest.mark.parametrize("text", ["data=digits", "student.scale=2", "T", "T=1..8", "T=1-8", "T=1,8"])
def test_range_without_a_colon_may_be_a_setting(text):
    with pytest.raises(UserError, match=r"write NAME=LOW:HIGH .*; settings are given before --range"):
        Range.parse(text, {})


@pytest.mark.parametrize("text", ["T=low:high", "T=1:8:2", "T=:8", "T=1:8:LOG", "=1:2", "T='1:4'"])
def test_range_of_another_form_names_the_form(text):
    with pytest.raises(UserError, match=r"write NAME=LOW:HIGH or NAME=LOW:HIGH:log$"):
        Range.parse(text, {})
