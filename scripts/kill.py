"""Kill a run at each of its file operations and compare the end; the program is tests/fuzz/kill.py."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz.kill", *sys.argv[1:]], environment)
