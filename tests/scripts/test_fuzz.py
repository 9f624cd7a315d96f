import json

from tests import processes
from tests.common import ROOT


def test_fuzz_counts_cases_of_the_kinds_that_are_given(tmp_path):
    """By the program that scripts/fuzz.py becomes, which `test_programs.py` starts."""
    arguments = ("images", "parquet", "--cases", "20", "--json", "out.json")
    done = processes.run(ROOT / "tests" / "fuzz" / "__main__.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 cases in" in done.stdout
    assert done.stdout.rstrip().endswith("0 failed")
    outcomes = json.loads((tmp_path / "out.json").read_text())
    assert {kind: len(cases) for kind, cases in outcomes.items()} == {"images": 14, "parquet": 6}
    assert {case["verdict"] for cases in outcomes.values() for case in cases} == {"accepted", "refused"}
