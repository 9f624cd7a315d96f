"""Settings of Lightning's Trainer, checked without loading it. No torch import."""

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kd.errors import UserError

SET_ELSEWHERE = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"), "epochs"),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), "recipe.clip_norm"),
    "logger": "logger",
    "overfit_batches": "debug=overfit",  # Lightning's leaves order and augmentation of these loaders as they are
    "default_root_dir": "hydra.run.dir",
    **dict.fromkeys(("callbacks", "plugins", "log_every_n_steps", "num_sanity_val_steps", "enable_model_summary"), ""),
    **dict.fromkeys(("barebones", "enable_checkpointing", "model_registry", "use_distributed_sampler"), ""),
    **dict.fromkeys(("limit_predict_batches", "inference_mode", "enable_autolog_hparams"), ""),
    **dict.fromkeys(("check_val_every_n_epoch", "val_check_interval", "reload_dataloaders_every_n_epochs"), ""),
}
"""Arguments of the Trainer that a run sets itself, and the setting that decides them, if there is one."""


def check_trainer(trainer: Mapping[str, Any], launcher: str | None) -> None:
    """Refuse arguments that the Trainer does not have or a run sets itself, and devices that cannot be used.

    Args:
        trainer: its settings.
        launcher: class that starts this job of a multirun, dotted; None for a run by itself.

    Raises:
        UserError: naming the setting.
    """
    for name in SET_ELSEWHERE.keys() & trainer.keys():
        setting = SET_ELSEWHERE[name]
        raise UserError(f"trainer.{name} is set by the run itself" + (f"; give {setting} instead" if setting else ""))
    known = trainer_arguments()
    for name in trainer.keys() - {"_target_"} - known if known else ():
        similar = difflib.get_close_matches(name, known - SET_ELSEWHERE.keys(), 1)
        meant = f"; did you mean +trainer.{similar[0]}?" if similar else ""
        raise UserError(f"trainer.{name}: the Trainer has no such argument{meant}")
    devices = trainer["devices"]
    numbers = devices if isinstance(devices, list) and devices else [devices]
    if not (devices in ("auto", -1) or all(str(number).isdecimal() for number in numbers)) or devices in (0, "0"):
        raise UserError(f"trainer.devices must be how many, which as in [0,1], or auto, got {devices}")
    strategy = str(trainer["strategy"])
    if strategy.startswith("ddp") and ("fork" in strategy or "spawn" in strategy or "notebook" in strategy):
        raise UserError(f"trainer.strategy={strategy} loses what its processes measure; write trainer.strategy=ddp")
    shared_out = launcher is not None and launcher.endswith(".AutoLauncher") and isinstance(devices, list)
    own = {**trainer, "devices": 1} if shared_out else trainer  # a process has one of the GPUs that are named
    if launcher is not None and not launcher.endswith(".SlurmLauncher") and several_processes(own):
        raise UserError(
            "training on several devices starts this command again in further processes, which a job of a multirun "
            "cannot be; sweep on one device, run the jobs one by one, or use hydra/launcher=slurm"
        )


def several_processes(trainer: Mapping[str, Any]) -> bool:
    """Whether a run with these settings of the Trainer is data-parallel, over processes that each start the program."""
    devices = trainer["devices"]
    single = len(devices) == 1 if isinstance(devices, list) else str(devices) == "1"
    several_nodes = str(trainer.get("num_nodes", 1)) != "1"
    return not single or several_nodes or str(trainer["strategy"]).startswith(("ddp", "fsdp", "deepspeed"))


@cache
def trainer_arguments() -> frozenset[str]:
    """The names of the Trainer's arguments, read from its source: to import it would take seconds."""
    package = importlib.util.find_spec("lightning")
    if package is None or package.origin is None:
        return frozenset()
    source = Path(package.origin).parent / "pytorch" / "trainer" / "trainer.py"
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    functions = [
        part
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
        for part in node.body
        if isinstance(part, ast.FunctionDef) and part.name == "__init__"
    ]
    return frozenset(
        argument.arg for function in functions for argument in function.args.kwonlyargs + function.args.args[1:]
    )
