"""What tests of parquet files share."""

import pytest

from kd.data.parquet import parquet
from kd.errors import UserError

NAMES = ("cat", "dog", "eel")
LABELS = [0, 1, 2, 2, 1, 0]


def assert_refused(root, *needles):
    """Check that the data set is refused in one line that has these words."""
    with pytest.raises(UserError) as caught:
        parquet(root)
    for needle in needles:
        assert str(needle) in str(caught.value)
    assert "\n" not in str(caught.value)
