import subprocess
import sys

from tests.common import ROOT


def test_kill_finds_the_same_end_after_a_kill_at_a_file_operation(tmp_path):
    script = [sys.executable, ROOT / "scripts" / "kill.py", "--every", "150"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills at" in done.stdout
    assert "0 with another end" in done.stdout
