"""Hydra's grid of jobs, resumable: `hydra/sweeper=resumable`, which conf/config.yaml chooses.

The same command with the same `hydra.sweep.dir` runs the jobs that are missing there, with any launcher.
"""

import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins.kd.cohort import compose_job
from kd.app import cli
from kd.app.arguments import quoted
from kd.app.check import check_command
from kd.app.compose import Command, plain, without_hydra
from kd.app.explain import EXPECTED, explain
from kd.app.identity import fingerprint
from kd.app.programs import command_line
from kd.app.resume import SWEEP
from kd.errors import RefusedError, UserError, described, reason_of
from kd.sweeps import plan
from kd.sweeps.jobs import Job, alone_in, forget_frames, place, settle
from kd.sweeps.progress import LONG, Progress, console, count, reasons, table

ATTEMPTS = 3
"""How many times a job is launched, at most, whose launcher fails."""
QUIET = "trainer.enable_progress_bar=false"
"""For jobs side by side."""
NO_TEXT = ("null", "true", "false", "nan", "inf")
"""What Hydra takes for another value than text."""
LONGEST_NAME = 250
"""Bytes of a job's name: a file's has 255 on most disks, and `.txt` is added to it."""
MOST = 10_000
"""The most jobs of a sweep: one more zero in a range is not to compose configurations for hours."""


@dataclass
class ResumableSweeperConf:
    _target_: str = "hydra_plugins.kd.sweeper.ResumableSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="resumable", node=ResumableSweeperConf, provider="kd")


class ResumableSweeper(BasicSweeper):
    """The grid of Hydra's own sweeper, without jobs that are done, refused or repeated."""

    def sweep(self, arguments: list[str]) -> Any:
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise UserError(f"hydra.sweeper.max_batch_size must be at least 1, got {self.max_batch_size}")
        jobs = [self._job(number, overrides) for number, overrides in enumerate(self._grid(arguments))]
        if all(job.reason is not None for job in jobs):
            raise UserError(str(jobs[0].reason))
        if not self.config.hydra.sweep.dir:
            raise UserError("hydra.sweep.dir= names no folder; leave it out, or give one")
        directory = Path(self.config.hydra.sweep.dir)
        with alone_in(directory):
            OmegaConf.save(self.config, directory / SWEEP)
            left = place(jobs, directory.absolute())  # a job may change the working directory
            progress = Progress(jobs, _print)
            if left or any(job.status == "refused" for job in jobs):
                progress.update()
            else:
                print(f"{'the run was' if len(jobs) == 1 else f'all {len(jobs)} jobs were'} done before; nothing to do")
            try:
                returns = self._launch(left, progress)
            except BaseException as error:
                if isinstance(error, UserError) and all(job.status == "waiting" for job in left):
                    _remove(directory)
                    raise
                settle(left)
                with suppress(OSError, SystemExit):  # nobody reads it any more, such as `tee` after Ctrl-C
                    _show(jobs, directory)
                print(f"continue with: {_command(directory)}", file=sys.stderr)
                raise
            statuses = {job.status for job in jobs}
            if statuses == {"refused"}:
                _remove(directory)
                raise UserError(jobs[0].why)
            _show(jobs, directory)
            if statuses - {"done", "skipped", "refused"}:
                raise UserError(f"{count(jobs)}; what is missing is tried again by: {_command(directory)}")
            if "refused" in statuses:
                raise UserError(f"{count(jobs)}, for the reasons above")
            return returns

    def _grid(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of each job.

        Raises:
            UserError: if a setting has no value, has no single values, or all have too many.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        sizes = [_size(override) for override in overrides if override.is_sweep_override()]
        if math.prod(sizes) > MOST:
            raise UserError(f"this sweep has more than {MOST:,} jobs; run fewer at a time")
        (grid,) = self.split_arguments(overrides, None)
        return grid

    def _job(self, number: int, overrides: Sequence[str]) -> Job:
        name = ""
        try:
            cfg = compose_job(self.hydra_context, self.config, number, overrides)
            name = str(cfg.hydra.sweep.subdir)
            command = Command.of(without_hydra(cfg), cfg.hydra, self.config.hydra.launcher._target_)
            if cfg.hydra.sweeper.params != self.config.hydra.sweeper.params:
                chosen = command.choices.get("experiment")
                raise UserError(f"experiment={chosen} is a sweep of its own; run it by itself")
            if Path(name).name != name or name in ("", ".."):
                place = f"hydra.sweep.subdir={name}"
                raise UserError(f"{place}: jobs lie side by side in hydra.sweep.dir; give a single name")
            if len(os.fsencode(name)) > LONGEST_NAME:
                longer = f"the name of its directory is longer than {LONGEST_NAME} bytes"
                raise UserError(f"{longer}; choose another hydra.sweep.subdir")
            check_command(command)
        except EXPECTED as error:  # such as method=standard,logits T=1,4
            return Job(tuple(overrides), "", name, explain(error, overrides))
        return Job(tuple(overrides), fingerprint(plain(command.cfg)), name)

    def _quiet(self) -> tuple[str, ...]:
        """Return overrides for jobs side by side, which write to their log files only."""
        logging = self.config.hydra.job_logging  # unresolved, as it names the directory of a job
        if "handlers" not in (logging.get("root") or {}):
            return (QUIET,)
        files = "file" if "file" in (logging.get("handlers") or {}) else ""
        return QUIET, f"hydra.job_logging.root.handlers=[{files}]"

    def _launch(self, jobs: list[Job], progress: Progress) -> list[Sequence[JobReturn]]:
        if not jobs:
            return []
        sequential = self.config.hydra.launcher._target_.endswith(".BasicLauncher")
        size, extra = (1, ()) if sequential else (self.max_batch_size, self._quiet())
        returns = []
        for batch in self.split_overrides_to_chunks(jobs, size):
            with nullcontext() if sequential else progress.polling():
                returns.append(self._launch_with_retries(batch, extra))
            progress.update()
        return returns

    def _launch_with_retries(self, jobs: list[Job], extra: Sequence[str]) -> Sequence[JobReturn]:
        """Launch jobs, and launch those again that are not finished when the launcher fails.

        Raises:
            UserError: if the launcher has not even begun a job.
        """
        failures: list[str] = []
        for _ in range(ATTEMPTS):
            left = [job for job in jobs if job.status not in ("done", "failed")]
            left.sort(key=lambda job: job.record is not None)  # last what may have brought the launcher down
            commands = [[*job.overrides, *_place(job), *extra] for job in left]
            try:
                returns = self.launcher.launch(commands, initial_job_idx=0)
            except Exception as error:
                failures.append(reason_of(error))
                for job in left:
                    job.wait()
                continue
            for failure in failures:
                _print(f"the launcher failed: {failure}; what was not finished was launched again")
            for job, returned in zip(left, returns, strict=True):
                outcome = returned._return_value
                if returned.status is not JobStatus.COMPLETED:
                    if isinstance(outcome, EXPECTED):
                        job.reason = explain(outcome, job.overrides)
                    else:  # the record knows the place, and the job's log has the traceback
                        job.reason = (job.record and job.record.error) or described(outcome)
                    if isinstance(outcome, RefusedError):
                        job.directory = None
                returned.cfg = returned.hydra_cfg = None  # of many jobs, and none is read again
                forget_frames(outcome)
            return returns
        if all(job.status == "waiting" for job in jobs):
            launcher = self.config.hydra.runtime.choices["hydra/launcher"]
            raise UserError(f"hydra/launcher={launcher} could not start a job: {failures[-1]}")
        settle(jobs)
        for job in jobs:
            if job.status not in ("done", "failed"):
                job.reason = f"its launcher failed: {failures[-1]}"
        return []


def _place(job: Job) -> tuple[str, str]:
    """Return overrides for the directory of a job, whatever the job's own settings would make of it."""
    folder = quoted("hydra.sweep.dir", str(job.directory.parent))
    return folder, quoted("hydra.sweep.subdir", job.directory.name)


def _print(line: str) -> None:
    """Print a line at once; jobs go on if nobody reads it any more, as after `| head`."""
    with suppress(OSError):
        print(line, flush=True)


def _size(override: Override) -> int:
    """Return how many values an override stands for, at most one more than a sweep may have jobs."""
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: a sweep needs single values, such as {override.key_or_group}=0,1,2; "
            "scripts/search.py searches within an interval"
        )
    number = sum(1 for _ in islice(override.sweep_string_iterator(), MOST + 1))
    if number == 0:
        raise UserError(f"{override.input_line} stands for no value, so that there is nothing to run")
    return number


def _remove(directory: Path) -> None:
    """Remove the directory of a sweep that ran no job, unless it holds anything else."""
    with suppress(OSError):
        if {path.name for path in directory.iterdir()} <= {SWEEP, plan.FILE, ".lock"}:
            shutil.rmtree(directory)


def _show(jobs: Sequence[Job], directory: Path) -> None:
    """Print the table of jobs, the reasons of what is missing, and how to go on with the results."""
    console().print("", table(jobs), sep="\n")
    if len(jobs) > LONG:
        print(f"The best 10 of {len(jobs)} jobs, and those that are missing.")
    print("", *reasons(jobs), sep="\n")
    print(f"{count(jobs)} in {command_line([str(directory)])}")
    if any(job.status in ("done", "skipped") for job in jobs) and cli.program().startswith("python "):
        print(f"tables and figures: {command_line(['python', 'scripts/report.py', str(directory)])}")
    sys.stdout.flush()


def _command(directory: Path) -> str:
    """Return the command that continues the sweep, to be pasted into a shell."""
    arguments = [part for part in sys.argv[1:] if part.lstrip("+").partition("=")[0] != "hydra.sweep.dir"]
    place = f"hydra.sweep.dir={directory}"
    # What begins with a digit may be a number, and then has another text.
    if not re.fullmatch(r"[A-Za-z/][A-Za-z0-9/_.-]*", str(directory)) or str(directory).lower() in NO_TEXT:
        place = quoted("hydra.sweep.dir", str(directory))
    return f"{cli.program()} {command_line([*arguments, place])}"
