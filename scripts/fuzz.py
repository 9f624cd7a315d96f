"""Try thousands of damaged files and wrong commands, and count what survived; the program is tests/fuzz/."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]], environment)
