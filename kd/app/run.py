"""One run, top to bottom: data, teacher, student, test, record, model card."""

import gc
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from kd.app import identity
from kd.app.check import check_command, knobs
from kd.app.compose import Command, plain
from kd.app.loading import loading
from kd.app.resume import to_be_typed
from kd.app.trainer import several_processes
from kd.errors import UserError
from kd.runs.given import given_paths
from kd.runs.provenance import git_revision, versions
from kd.runs.results import FILE, Result
from kd.runs.status import first_process, refusals, tracked, write_once

if TYPE_CHECKING:
    from lightning import Callback

    from kd.app.build import Builder

log = logging.getLogger(__name__)


def execute(
    command: Command, directory: Path, make_builder: "Callable[[Command], Builder] | None", program: str
) -> Result:
    """Check a command and run it, with a record from its start and a model card at its end.

    A finished run is not repeated; one without a card gets it.

    Args:
        command: the run.
        directory: the run directory.
        make_builder: makes the builder; None for one of a run that shares nothing.
        program: how the program was started, for the hint on how to continue.

    Raises:
        UserError: for a mistake in the settings, before anything is loaded.
    """

    def work(record: Result) -> Result:
        with refusals():
            check_command(command)
            with loading():
                from kd.app.build import Builder  # imports torch; wrong settings are refused before that

            build = (make_builder or Builder)(command)
        return run(build, record, directory)

    data_parallel = several_processes(plain(command.cfg.trainer))
    try:
        record = tracked(
            describe(command),
            directory,
            work,
            single=command.launcher is None,
            program=program,
            data_parallel=data_parallel,
            typed=to_be_typed(command.overrides),
        )
        if first_process(data_parallel):
            from kd.deploy.card import write_card  # imports numpy; mistakes are answered before that

            write_card(record, directory)
        return record
    finally:
        if command.launcher is not None:
            gc.collect()  # a Trainer refers to itself, and would hold its images for some ten more jobs of a process


def run(build: "Builder", record: Result, directory: Path, callbacks: "Sequence[Callback]" = ()) -> Result:
    """Prepare the teacher if one is wanted, then train and test the student if one is wanted."""
    from kd.app.teacher import also_tested, prepare_teacher
    from kd.app.train import train_network
    from kd.models.output import parameter_count
    from kd.teachers.store import copy_from_store

    with refusals():
        build.dry_run(directory)
    log.info("%s", build.images.summary)
    if record.data_id not in ("", build.images.id):
        raise UserError(
            f"the images are not those that this run was started with ({build.images.name}, data_id {record.data_id} "
            f"then and {build.images.id} now); put them back, or start a run of its own"
        )
    data_parallel = several_processes(build.settings["trainer"])
    record = replace(record, dataset=build.images.name, data_id=build.images.id)
    directory.mkdir(parents=True, exist_ok=True)
    write_once(record, directory / FILE, data_parallel)

    # A cohort shares what is prepared here: a member that wants no teacher must not prepare None for the others.
    prepared = build.shared("teacher", lambda: prepare_teacher(build, record)) if build.wants_teacher else None
    if prepared is not None:
        record = replace(
            record,
            teacher=prepared.name,
            teacher_id=prepared.teacher.id,
            teacher_params=parameter_count(prepared.teacher.net),
            teacher_test_acc=prepared.accuracy,
            warnings=prepared.warnings,
        )
        if "student" not in build.networks:
            return copy_from_store(prepared.directory, also_tested(build, prepared, record), directory, data_parallel)

    teacher = None if prepared is None else prepared.teacher
    log.info("training the student, method %s, seed %s", record.method, build.student.seed)
    result = train_network(build, build.student, teacher, record, directory, callbacks)
    if build.stored is not None:
        log.info(build.stored.summary())
    return result


def describe(command: Command) -> Result:
    """The result record as far as it is known before anything has happened."""
    cfg, choices = command.cfg, command.choices
    settings = plain(cfg)
    networks = settings["spec"]["networks"]
    own = knobs(settings)
    learner = settings["recipe"] if "student" in networks else settings["teacher_recipe"]
    order_seed = settings["data"]["order_seed"]
    teachers = len(given_paths(settings["teacher_weights"])) or settings["ensemble"]
    is_ensemble = teachers != 1 and "student" in networks
    teacher = f"{teachers} x {choices['teacher']}" if is_ensemble else choices["teacher"]
    return Result(
        method=choices["method"],
        knobs=own,
        taught=settings["method"] is not None,
        seed=settings["seed"] if is_number(settings["seed"]) else -1,  # a wrong value is refused later
        student=choices["student"] if "student" in networks else None,
        teacher=teacher if "teacher" in networks else None,
        dataset=choices["data"],
        epochs=learner["epochs"] if is_number(learner["epochs"]) else 0,
        order_seed=order_seed if "student" in networks and is_number(order_seed) else None,
        git=git_revision(),
        versions=versions(),
        status="running",
        command=shlex.join(command.overrides),
        cwd=command.cwd,
        config_dir=command.config_dir,
        variant=identity.variant(command.overrides, networks, own, settings["chain"]),
        fingerprint=identity.fingerprint(settings),
        group=identity.group(plain(OmegaConf.merge(cfg, {"seed": 0}))),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def is_number(value: object) -> bool:
    """Whether a setting is a number, which switches are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
