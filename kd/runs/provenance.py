"""Where figures come from: versions, commit, machine, command. No torch import."""

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def versions() -> str:
    """Return the versions of Python and the main packages, as one line."""
    packages = ("torch", "lightning", "torchmetrics", "hydra-core", "kd")
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # as kd in a checkout that was never installed
        return "unknown"


def git_revision() -> str:
    """Return the commit of this code, with "-dirty" appended if files differ from it; "" outside its repository.

    Such as where it is installed below the folder of another project.
    """

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.CalledProcessError):
        return ""


def measured_by(program: str, device: str) -> dict[str, Any]:
    """Return what figures of a benchmark need beside them: where, when, and with what they were measured.

    Args:
        program: its path in the repository; the arguments are those of this process.
        device: its name.
    """
    return {
        "device": device,
        "system": platform.platform(),
        "versions": versions(),
        "git": git_revision(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", program, *sys.argv[1:]]),
    }
