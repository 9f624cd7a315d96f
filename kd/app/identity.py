"""What decides a result: every key under which something finished is found again. No torch import.

Settings are plain values here, resolved: nested dictionaries as YAML has them.

* fingerprint, of a run: all settings but placement, observation, storage, and networks that take no part; the folder of
  the images counts, as two folders may be two data sets;
* teacher key, of a trained teacher in the store: its network, data, recipe and method, and its own teacher's key; not
  on how many images it is validated or tested;
* logit key, of a file of a teacher's logits: the teacher's weights and settings, the data, and what the views mean;
* cohort key, of jobs that can be trained side by side: the batches, the teacher, the pace and the machine.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from kd.errors import UserError
from kd.hashing import digest
from kd.runs.given import given_paths, weights_file

PLACEMENT = frozenset({"accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "enable_progress_bar"})
"""Settings of the trainer that decide where and with what display a training happens, not what comes of it."""

OBSERVING = frozenset(
    {"profiler", "detect_anomaly", "log_every_n_steps", "enable_model_summary", "num_sanity_val_steps"}
)
"""Settings of the trainer that observe a training and change neither its weights nor its figures."""

LIMITS = frozenset({"limit_val_batches", "limit_test_batches"})
"""Settings of the trainer that decide on how many images a network is measured, not what it becomes."""

IRRELEVANT = frozenset({"logger", "teacher_store", "threads", "spec"})
"""Top-level settings that decide nothing about the result."""

STORAGE = frozenset({"root", "in_memory", "workers"})
"""Settings of the data that decide where it lies and how it is fetched."""

MEASURED = frozenset({"also_test"})
"""Settings of the data that decide on which further images a network is tested, not what it becomes."""

UNCHANGED = {"fraction": 1.0, "noise": 0.0, "balance": "none"}
"""Settings of the data that decide what a teacher becomes, with the values by which they change nothing.

A key leaves them out then, so that teachers from before there was such a setting are found.
"""

LATER = {"channels": None, "transform": None, "decay_all": False}
"""Settings of data and recipes that earlier versions had not, with the values that leave all as it was."""

AFTER_TRAINING = frozenset({"keep_memory", "fold_teacher", "stored_logits", "stored_logits_gb"})
"""Speed-ups that change nothing about how a teacher is trained on labels."""

ROUNDING = {"fold_teacher": True, "stored_logits": "auto"}
"""Those that round what a network of a chain is taught, with the values of `speed=fast`, which a key leaves out."""

SHAPELESS = frozenset({"activation", "conv_dropout", "dropout", "head_dropout"})
"""Settings of networks that change no weight's shape."""

OF_ROLE = {
    "teacher": frozenset({"teacher", "teacher_recipe", "teacher_seed", "teacher_weights", "ensemble"}),
    "student": frozenset({"student", "recipe", "ensemble", "chain"}),
}
"""Top-level settings that decide nothing about the result where this network takes no part."""

SHORTHANDS = {"epochs": "epochs", "batch_size": "batch_size", "lr": "optimizer.lr"}
"""Top-level settings that act through the recipes alone, which have them resolved, and their names there."""


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what comes of a run; not where it happens, what it shows and where things lie.

    Nor what is measured beyond its own test split.
    """
    networks = settings["spec"]["networks"]
    absent = _absent(networks, settings["chain"])
    kept = {**without(settings, IRRELEVANT | SHORTHANDS.keys() | absent), "networks": networks}
    kept.setdefault("teacher_weights", None)  # as earlier versions had it of runs without a teacher
    kept["trainer"] = without(kept["trainer"], PLACEMENT | OBSERVING)
    kept["data"] = _without_unset(without(kept["data"], STORAGE | MEASURED))
    kept["data"]["source"] = _without_unset(without(kept["data"]["source"], STORAGE))
    kept["data"]["augment"] = _without_unset(kept["data"]["augment"])
    kept |= {name: _without_unset(kept[name]) for name in ("recipe", "teacher_recipe") if name in kept}
    if "student" not in networks:
        del kept["data"]["order_seed"]  # a teacher's order is that of its own seed
    return kept


def _without_unset(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of `LATER` that leave all as it was, so that runs of earlier versions are found."""
    return {name: value for name, value in settings.items() if name not in LATER or value != LATER[name]}


def fingerprint(settings: dict[str, Any]) -> str:
    """Name a run by all that decides its result, a teacher's weights by what is in their file."""
    known = _known(settings)
    measured = {name: settings["data"][name] for name in MEASURED}
    return digest({**known, **measured, "root": settings["data"].get("root")})


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what comes of a run, with the contents of weights in place of their files' names."""
    known = decisive(settings)
    contents = [_content(path) for path in given_paths(known["teacher_weights"])]
    if contents:
        known["teacher_weights"] = contents[0] if len(contents) == 1 else contents
    for role in ("teacher", "student"):
        if isinstance(known.get(role), dict):
            known[role] = by_content(known[role])
    return known


def by_content(network: dict[str, Any]) -> dict[str, Any]:
    """A network's settings with the content of the file that its training begins with in place of the file's name."""
    return {name: _content(v) if name == "pretrained" and v is not None else v for name, v in network.items()}


def _content(path: str) -> str:
    """The hash of the weights that a path means; the path itself if they cannot be read, which is told later."""
    try:
        file = weights_file(path)
        return hashlib.blake2b(file.read_bytes()).hexdigest() if file.is_file() else path
    except (OSError, TypeError, UserError):
        return path


def teacher_id(content: str, network: dict[str, Any]) -> str:
    """Name a teacher by its weights and by its settings, which decide what the weights make of an image.

    Args:
        content: what names the weights.
        network: its settings; the file that its training began with does not count.
    """
    return digest({"weights": content, "network": without(network, {"pretrained"})})


def group(settings: dict[str, Any]) -> str:
    """Name the runs that differ by seed, `data.root` and further test sets alone. Takes the settings with seed 0."""
    return digest(_known(settings))


def teacher_key(
    settings: dict[str, Any],
    data_id: str,
    network: dict[str, Any],
    recipe: dict[str, Any],
    seed: int,
    method: dict[str, Any] | None,
    taught_by: list[dict[str, Any]] | str | None,
) -> dict[str, Any]:
    """All that decides what a trained teacher becomes.

    Args:
        settings: of the run that wants it, of which the data, the trainer and the speed-ups count.
        data_id: hash of pixels and labels.
        network, recipe, seed: what is trained, and how.
        method: what it was taught with; None for the labels alone.
        taught_by: the keys of its own teachers, or the hash of given weights; None if it had none.
    """
    key = {
        "format": 2,
        "model": network,
        "data": {
            "id": data_id,
            "val_fraction": settings["data"]["val_fraction"],
            "split_seed": settings["data"]["split_seed"],
            "augment": {name: value for name, value in settings["data"]["augment"].items() if value is not None},
            **{name: settings["data"][name] for name, plain in UNCHANGED.items() if settings["data"][name] != plain},
        },
        "recipe": {name: value for name, value in _without_unset(recipe).items() if (name, value) != ("ema", None)},
        "speed": without(settings["speed"], AFTER_TRAINING),
        "seed": seed,
        "trainer": without(settings["trainer"], PLACEMENT | OBSERVING | LIMITS),
    }
    if method is None:
        return key
    speed = settings["speed"]
    usual = {name for name, value in ROUNDING.items() if speed[name] == value}
    of_teaching = without(speed, AFTER_TRAINING - ROUNDING.keys() | usual)
    return {**key, "speed": of_teaching, "method": method, "taught_by": taught_by}


def logit_key(settings: dict[str, Any], data_id: str, teacher_id: str, precision: str) -> dict[str, Any]:
    """All that decides what a teacher's logits are, and to which view of which image each belongs."""
    return {
        "format": 1,
        "teacher": teacher_id,
        "data": data_id,
        "crop": settings["data"]["augment"]["crop"],
        "folded": settings["speed"]["fold_teacher"],
        "precision": precision,
    }


def cohort_key(settings: dict[str, Any]) -> str:
    """What jobs have to have in common to be trained side by side, as text."""
    teachers = ("teacher", "teacher_recipe", "teacher_seed", "teacher_weights", "teacher_store", "ensemble", "chain")
    chained = {name: settings[name] for name in ("student", "recipe", "method", "spec")} if settings["chain"] else None
    shared = {
        "data": settings["data"],
        "teacher": [settings[name] for name in teachers],
        "chained": chained,
        "students": "student" in settings["spec"]["networks"],
        "pace": [settings["recipe"]["batch_size"], settings["recipe"]["epochs"]],
        "machine": [settings["trainer"], settings["speed"], settings["threads"]],
    }
    return json.dumps(shared, sort_keys=True)


def variant(overrides: Sequence[str], networks: Sequence[str], knobs: Iterable[str], chain: object = ()) -> str:
    """The overrides that a result record has no column for, and that set the run of these networks apart."""
    columns = {"method", *knobs, "seed", "student", "teacher", "data", "experiment"}
    silent = {"trainer", *IRRELEVANT}
    silent |= {f"trainer.{name}" for name in PLACEMENT | OBSERVING} | {f"data.{name}" for name in STORAGE | MEASURED}
    silent |= set() if "student" in networks else {"data.order_seed"}
    absent = _absent(networks, chain)

    def counts(override: str) -> bool:
        name = override.lstrip("+~").split("=")[0]
        first = re.split(r"[./]", name.rpartition("@")[2])[0]
        return name not in columns | silent and first != "logger" and first not in absent

    return " ".join(sorted(override for override in overrides if counts(override)))


def without(settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the settings without these names."""
    return {name: value for name, value in settings.items() if name not in set(names)}


def _absent(networks: Sequence[str], chain: object) -> frozenset[str]:
    absent: frozenset[str] = frozenset().union(*(names for role, names in OF_ROLE.items() if role not in networks))
    return absent - {"teacher_seed"} if chain else absent  # the seeds of a chain's networks come from it
