"""The file of weights that a user names: itself, or the run directory that it lies in. No torch import."""

from pathlib import Path

from kd.errors import UserError

WEIGHTS = ("student.safetensors", "teacher.safetensors")
"""The file of a run directory, in order of preference."""


def weights_file(path: str | Path) -> Path:
    """Return the file of weights that a path means, "~" expanded; whether it can be read is not looked at.

    Raises:
        UserError: for a directory without weights of a run.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not found:
        raise UserError(f"no weights in {path}: it has neither {' nor '.join(WEIGHTS)}")
    return found[0]
