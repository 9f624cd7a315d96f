"""What is asked of a run's settings before anything is loaded: are they right, and which of them decide the result.

Settings are plain values here: nested dictionaries as YAML has them. No torch import.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.hashing import digest
from kd.ranges import RANGES, require, require_sum

KNOBS = ("T", "alpha", "beta")

WHERE = {"accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "enable_progress_bar"}
"""Settings of the trainer that decide where and with what show a training happens, not what comes of it."""


MAY_BE_NULL = {"clip_norm", "threads"}

ASIDE = {"logger", "teacher_store", "threads", "limits"}
"""Top-level settings that decide nothing about the result."""

STORAGE = {"root", "in_memory", "workers"}
"""Settings of the data that decide where it lies and how it is fetched."""

OF_ROLE = {
    "teacher": {"teacher", "teacher_recipe", "teacher_seed", "ensemble"},
    "student": {"student", "recipe", "ensemble"},
}
"""Top-level settings that decide nothing about the result where this network takes no part."""

AFTERWARDS = {"keep_memory", "fold_teacher", "stored_logits", "stored_logits_gb"}
"""Speed-ups that change nothing about how a teacher is trained."""


def check(settings: dict[str, Any], run_wide: Sequence[str], read: str, launcher: str | None) -> None:
    """Refuse what would otherwise surprise late, or never.

    Args:
        settings: all of them, resolved.
        run_wide: names of the top-level settings that every method has.
        read: the method's own part of the configuration, unresolved.
        launcher: class that starts this job of a multirun, dotted; None for a run by itself.

    Raises:
        UserError: for a number outside its range, a knob that nothing reads, settings that exclude each other.
    """
    if launcher is not None and not launcher.endswith(".SlurmLauncher") and _several_processes(settings["trainer"]):
        raise UserError(
            "training on several devices starts this command again in further processes, which a job of a multirun "
            "cannot be; sweep on one device, run the jobs one by one, or use hydra/launcher=slurm"
        )
    for name, value in settings.items():
        if isinstance(value, dict | None) or name in run_wide:
            continue
        if f"${{{name}}}" not in read:
            raise UserError(f"{name}={value}: this method has no such knob, so nothing would come of it")
    for name, value in sorted(_leaves(settings), key=lambda leaf: leaf[0].count(".")):  # what others refer to first
        kind = name.rpartition(".")[2]
        if kind not in RANGES or (kind in MAY_BE_NULL and value is None):
            continue
        try:
            require(name, value)
        except ValueError as error:
            raise UserError(str(error)) from error
    for names, span in settings["limits"].items():
        try:
            require_sum(span, **{name: settings[name] for name in names.split(" + ")})
        except ValueError as error:
            raise UserError(str(error)) from error
    if launcher is not None and launcher.endswith(".CohortLauncher") and "Wandb" in str(settings["logger"]):
        raise UserError("W&B takes one run at a time in a process; take another logger, or leave out the cohort")
    weights = settings["teacher_weights"]
    if weights is not None and settings["method"] is None:
        raise UserError("teacher_weights is for methods that learn from a teacher; this one does not")
    if weights is not None and settings["ensemble"] != 1:
        raise UserError("teacher_weights is one teacher; ensemble is for those of the store")
    if weights is not None and not Path(weights).expanduser().is_file():
        raise UserError(f"no weights at {weights}")


def _several_processes(trainer: dict[str, Any]) -> bool:
    devices = trainer["devices"]
    one = len(devices) == 1 if isinstance(devices, list) else str(devices) == "1"
    return not one or str(trainer["strategy"]).startswith(("ddp", "fsdp", "deepspeed"))


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what comes of a run; not where it happens, what it shows and where things lie."""
    kept = without(settings, ASIDE | _absent(settings["roles"]))
    if kept.get("ensemble") == 1:
        del kept["ensemble"]  # as in runs from before there were any
    kept["trainer"] = without(kept["trainer"], WHERE)
    kept["data"] = without(kept["data"], STORAGE)
    kept["data"]["source"] = without(kept["data"]["source"], STORAGE)
    return kept


def fingerprint(settings: dict[str, Any]) -> str:
    """Names a run by all that decides its result, a teacher's weights by what is in their file."""
    known = decisive(settings)
    weights = known["teacher_weights"]
    if weights is not None and Path(weights).expanduser().is_file():
        known["teacher_weights"] = hashlib.blake2b(Path(weights).expanduser().read_bytes()).hexdigest()
    return digest({**known, "root": settings["data"].get("root")})


def without(settings: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """All but some."""
    return {name: value for name, value in settings.items() if name not in names}


def _absent(roles: Sequence[str]) -> set[str]:
    return set().union(*(names for role, names in OF_ROLE.items() if role not in roles))


def variant(overrides: Sequence[str], roles: Sequence[str]) -> str:
    """The overrides that a result record has no column for, and that set the run of these networks apart."""
    columns = ("method", *KNOBS, "seed", "student", "teacher", "data", "experiment")
    silent = ("logger", "trainer", "teacher_store", "threads", *(f"trainer.{name}" for name in WHERE))
    silent += tuple(f"data.{name}" for name in STORAGE)
    absent = _absent(roles)

    def tells(override: str) -> bool:
        name = override.lstrip("+~").split("=")[0]
        first = re.split(r"[./]", name.rpartition("@")[2])[0]
        return name not in columns and name not in silent and first != "logger" and first not in absent

    return " ".join(sorted(override for override in overrides if tells(override)))


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
