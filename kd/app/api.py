"""Runs from Python, as in a notebook: what `python train.py` does, without the command line."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

from kd.app.cli import job, prepared
from kd.app.compose import run_composed
from kd.errors import UserError
from kd.runs.results import Result, collect


def train(*settings: str) -> Result:
    """Train and test as `python train.py SETTINGS` does, in this process, and return the record of the run.

    >>> kd.train("data=digits", "method=logits", "T=4", "hydra.run.dir=runs/first").test_acc  # doctest: +SKIP

    Args:
        settings: as on the command line: "T=4", "student=wrn22_2", "resume=RUN_DIR".

    Raises:
        UserError: for a mistake in them, several values of a setting, or a run that fails by the user's own doing.
        HydraException, OmegaConfBaseException: for an unknown setting or choice.
    """
    with _as_it_was():
        _, command = prepared(list(settings))
        if command is None:
            raise UserError("kd.train is one run; a sweep is a program of its own: python train.py -m ...")
        try:
            outcome = run_composed(command, job)
        finally:
            gc.collect()  # a Trainer refers to itself, and would hold its images for some ten more runs of a loop
    if isinstance(outcome, Exception):
        raise outcome
    return cast(Result, outcome)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Have Hydra raise what goes wrong, and put back at the end what a program may change, and a library may not.

    A run sets up logging, and Hydra holds one configuration a process. A run that is continued goes to where it was
    started, and has processes of its own take no modules from there.
    """
    here, environment, program = Path.cwd(), dict(os.environ), sys.argv[0]
    root, hydra = logging.getLogger(), Singleton.get_state()
    handlers, level = root.handlers[:], root.level
    known: list[Any] = cast(Any, logging)._handlerList  # all of which a new configuration closes
    open_ones, known[:], root.handlers[:] = known[:], [], []
    GlobalHydra.instance().clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        known[:0], root.handlers[:] = open_ones, handlers
        root.setLevel(level)
        Singleton.set_state(hydra)
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[0] = program


def results(*folders: str | os.PathLike[str]) -> list[Result]:
    """Return the records of all runs below some folders, in any state; `status` of those that count is "done".

    >>> [(run.method, run.seed, run.test_acc) for run in kd.results("multirun")]  # doctest: +SKIP

    Raises:
        UserError: if no folder is given, one does not exist or holds no record, or none of the records can be read.
    """
    if not folders:
        raise UserError('give a folder with runs, as in kd.results("multirun")')
    return collect([Path(folder) for folder in folders]).results
