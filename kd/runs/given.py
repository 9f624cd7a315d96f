"""The file of weights that a user names: itself, or the run directory that it lies in. No torch import."""

import os
import shlex
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.runs.results import FILE, read

STUDENT_WEIGHTS = "student.safetensors"
TEACHER_WEIGHTS = "teacher.safetensors"
WEIGHTS = (STUDENT_WEIGHTS, TEACHER_WEIGHTS)
"""The file of a run directory, in order of preference."""


def given_paths(setting: Any) -> list[str]:
    """Return the paths that `teacher_weights` names: one, those of a list, or none for null; unchecked."""
    return [] if setting is None else list(setting) if isinstance(setting, list) else [setting]


def weights_file(path: str | Path) -> Path:
    """Return the file of weights that a path means, "~" expanded; whether it can be read is not looked at.

    Raises:
        UserError: for a directory without weights of a run.
    """
    path = Path(os.path.expanduser(path))  # an unknown ~user stays as it is
    if not os.path.isdir(path):  # unlike Path.is_dir, without an error for a name that is too long
        return path
    found = [path / name for name in WEIGHTS if os.path.isfile(path / name)]
    if not found:
        raise UserError(f"no weights in {path}: {_why_none(path)}")
    return found[0]


def _why_none(directory: Path) -> str:
    """Return why a directory has no weights, by its record, and what to do about it."""
    try:
        record = read(directory / FILE)
    except UserError:
        below = sorted(file.parent for name in WEIGHTS for file in directory.glob(f"*/{name}"))
        return f"it has neither {' nor '.join(WEIGHTS)}{f'; there are some in {below[0]}' if below else ''}"
    reason = (record.error or "for an unknown reason").strip().partition("\n")[0]
    how_to_go_on = f"continue it by python train.py resume={shlex.quote(str(directory))}"
    return {
        "running": f"its run has not ended; if it was killed, {how_to_go_on}",
        "interrupted": f"its run was interrupted; {how_to_go_on}",
        "failed": f"its run failed: {reason}",
        "pruned": "its run was ended early by a search",
        "done": "its run is done, but they were removed",
    }[record.status]
