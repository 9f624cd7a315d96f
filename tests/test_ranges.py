import math

import pytest

from kd.ranges import RANGES, require, require_sum, short_size, sides, size_text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("T", 0, "(0, inf)"), "T must be in (0, inf), got 0"),
        (("T", -1.5, "(0, inf)"), "T must be in (0, inf), got -1.5"),
        (("T", math.inf, "(0, inf)"), "T must be in (0, inf), got inf"),
        (("T", math.nan, "(0, inf)"), "T must be in (0, inf), got nan"),
        (("T", "hot", "(0, inf)"), "T must be a number in (0, inf), got hot"),
        (("T", None, "(0, inf)"), "T must be a number in (0, inf), got null"),
        (("T", True, "(0, inf)"), "T must be a number in (0, inf), got true"),
        (("beta", -1, "[0, inf)"), "beta must be in [0, inf), got -1"),
        (("beta", 1.5, "[0, 1]"), "beta must be in [0, 1], got 1.5"),
        (("alpha", 1.1, "[0, 1]"), "alpha must be in [0, 1], got 1.1"),
        (("alpha", math.nan, "[0, 1]"), "alpha must be in [0, 1], got nan"),
        (("alpha", -math.inf, "[0, 1]"), "alpha must be in [0, 1], got -inf"),
        (("student.conv_dropout", 1), "student.conv_dropout must be in [0, 1), got 1"),
        (("recipe.epochs", 0), "recipe.epochs must be a whole number in [1, 1000000], got 0"),
        (("recipe.epochs", 1.5), "recipe.epochs must be a whole number in [1, 1000000], got 1.5"),
    ],
)
def test_require_names_setting_range_and_value(arguments, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        require(*arguments)
    assert str(error.value) == message


def test_require_accepts_the_ends_of_a_range():
    for value in (0, 0.5, 1):
        require("label_smoothing", value)
    require("T", 1e-3, "(0, inf)")
    require("beta", 30_000, "[0, inf)")
    require("data.crop", 0)


@pytest.mark.parametrize("span", sorted(set(RANGES.values())))
def test_ranges_are_all_parsed(span):
    with pytest.raises(ValueError, match=r"must be in|must be a whole number in"):
        require("x", -1, span)


def test_require_sum_ignores_rounding():
    require_sum("[0, 1]", alpha=0.7, beta=0.1 + 0.2)
    with pytest.raises(ValueError, match=r"^alpha \+ beta must be in \[0, 1\], got alpha=0.8 and beta=0.3$"):
        require_sum("[0, 1]", alpha=0.8, beta=0.3)


@pytest.mark.parametrize("name", ["data.image_size", "student.size"])
def test_require_takes_one_side_or_height_and_width(name):
    for size in (1, 4096, [48, 64], (1, 4096)):
        require(name, size)
    for size, message in (
        ([48], r"must be one number for squares, or \[HEIGHT,WIDTH\], got \[48\]"),
        ([1, 2, 3], r"must be one number for squares, or \[HEIGHT,WIDTH\], got \[1, 2, 3\]"),
        ([0, 8], r"must be a whole number in \[1, 4096\], got 0"),
        ([8, "8"], r"must be a whole number in \[1, 4096\], got 8"),
        ("48x64", r"must be a whole number in \[1, 4096\], got 48x64"),
        ([[8, 8], 8], r"must be a whole number in \[1, 4096\], got \[8, 8\]|one number for squares"),
    ):
        with pytest.raises(ValueError, match=f"^{name} .*{message}"):
            require(name, size)


def test_size_text_has_the_width_first():
    assert (sides("image_size", 8), sides("image_size", [48, 64])) == ((8, 8), (48, 64))
    assert (size_text(8), size_text([48, 64]), short_size(8), short_size([48, 64])) == ("8x8", "64x48", "8", "64x48")
