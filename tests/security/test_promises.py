import re

import pytest

from tests.common import ROOT

LINES = (ROOT / "SECURITY.md").read_text().splitlines()
PROMISES = [
    line for line in LINES if line.startswith("| ") and not line.endswith(("| promise | test |", "---- |", ":--- |"))
]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row.split("|")[1].strip())
def test_every_promise_has_a_test(row):
    names = re.findall(r"`(test_\w+)`", row.split("|")[-2])
    assert names
    assert [name for name in names if f"def {name}(" not in TESTS] == []
