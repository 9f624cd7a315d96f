import json
import subprocess
import sys

from tests.common import ROOT


def test_fuzz_counts_cases_of_the_kinds_that_are_given(tmp_path):
    script = [sys.executable, ROOT / "scripts" / "fuzz.py", "images", "parquet"]
    done = subprocess.run(
        [*script, "--cases", "20", "--json", "out.json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 cases in" in done.stdout
    assert done.stdout.rstrip().endswith("0 failed")
    outcomes = json.loads((tmp_path / "out.json").read_text())
    assert {kind: len(cases) for kind, cases in outcomes.items()} == {"images": 14, "parquet": 6}
    assert {case["verdict"] for cases in outcomes.values() for case in cases} == {"accepted", "refused"}
