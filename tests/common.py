"""What tests in several folders need to name."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
