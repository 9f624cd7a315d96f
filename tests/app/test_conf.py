"""Every file in conf/ gives the constructors that it names what they take."""

import ast
import inspect
import os
import subprocess
import sys
from functools import cache

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from kd.app.check import leaves
from kd.app.compose import compose, plain
from kd.ranges import KINDS, RANGES
from kd.training.threads import SPINNING
from tests.common import CONF, ROOT

GROUPS = {
    "data": ("data.source", "data.augment"),
    "student": ("student",),
    "teacher": ("teacher",),
    "speed": ("speed",),
    "trainer": ("trainer",),
    "logger": ("logger",),
    "recipe": ("recipe.optimizer", "recipe.schedule"),
    "recipe/optimizer": ("recipe.optimizer",),
    "recipe/schedule": ("recipe.schedule",),
    "debug": ("trainer",),
}
GIVEN = {
    "student": {"num_classes": 10, "image_size": 32},
    "teacher": {"num_classes": 10, "image_size": 32},
    "logger": {"save_dir": "."},
    "recipe.optimizer": {"params": []},
    "recipe.schedule": {"optimizer": None, "total_steps": 1},
}
"""What the builder adds, by the path of the node."""
FILES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


ALONE = {"recipe", "debug"}
"""Groups whose files set what those of other groups set, too."""
TOGETHER = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in [*GROUPS, "method"]
    if group not in ALONE
}
ROUNDS = [
    tuple(f"{group}={stems[place % len(stems)]}" for group, stems in TOGETHER.items())
    for place in range(max(map(len, TOGETHER.values())))
]
"""Choices of files, one of every other group at a time: composing takes longer than what is tested."""


@cache
def composed(*choices):
    return compose(list(choices)).cfg


def cfg_of(group, choice):
    return composed(f"{group}={choice}") if group in ALONE else composed(*ROUNDS[TOGETHER[group].index(choice)])


@pytest.mark.parametrize(("group", "choice"), FILES, ids="=".join)
def test_file_gives_what_its_target_takes(group, choice):
    cfg = cfg_of(group, choice)
    for path in GROUPS[group]:
        node = OmegaConf.select(cfg, path)
        if node is None:  # logger=none
            continue
        settings = OmegaConf.to_container(node, resolve=True)
        settings.pop("_partial_", None)
        target = settings.pop("_target_")
        inspect.signature(get_object(target)).bind(**settings, **GIVEN.get(path, {}))


def test_every_group_is_checked():
    """Experiments and methods have tests of their own; launchers belong to Hydra; `shared` is part of other files."""
    experiments = {"experiment", "experiment/cifar100", "experiment/cifar100/fast", "experiment/shared"}
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    assert groups - GROUPS.keys() == {".", "method", *experiments, "hydra/launcher", "data/shared"}


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_threads_wait_as_they_should_before_torch_is_loaded(given):
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    code = (
        "import os, sys\nfrom kd.app.cli import main\nsys.argv = ['train.py', 'data=digits', 'T=0']\n"
        f"try: main()\nexcept SystemExit: print({{n: os.environ.get(n) for n in {ours}}}, 'torch' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean | given, capture_output=True, text=True)
    found, _, torch_loaded = done.stdout.strip().splitlines()[-1].rpartition(" ")
    assert ast.literal_eval(found) == ({"GOMP_SPINCOUNT": None, **given} if given else SPINNING), done.stderr
    assert torch_loaded == "False"


def test_check_knows_what_every_switch_and_list_of_conf_takes():
    """A switch without an entry in the tables would take any text, and count it as true."""
    alone = [
        f"{path.parent.name}={path.stem}" for group in (*ALONE, "experiment") for path in (CONF / group).glob("*.yaml")
    ]
    unknown = set()
    for choices in (*ROUNDS, *([choice] for choice in alone)):
        settings = plain(composed(*choices))
        for name, value in leaves({key: part for key, part in settings.items() if key not in ("spec", "chain")}):
            last = name.rpartition(".")[2]
            if isinstance(value, bool | list) and not last.startswith("_"):
                known = last in RANGES or last in KINDS or name in settings["spec"]["ranges"]
                unknown |= set() if known else {name}
    assert unknown == {
        "assistants",
        "recipe.schedule.milestones",
        "trainer.fast_dev_run",
    }  # checked where they are used
