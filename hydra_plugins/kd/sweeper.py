"""Hydra's grid of jobs, resumable: `hydra/sweeper=resumable`, which conf/config.yaml chooses.

The same command with the same `hydra.sweep.dir` runs the jobs that are missing there, with any launcher.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf, open_dict

from kd.app import cli
from kd.app.compose import Command, plain
from kd.app.identity import fingerprint
from kd.app.run import check_command
from kd.errors import UserError
from kd.sweeps.jobs import Job, alone_in, place
from kd.sweeps.progress import Progress, count, table

ATTEMPTS = 3
"""How many times a job is launched, at most, whose launcher fails."""
QUIET = ("trainer.enable_progress_bar=false", "hydra.job_logging.root.handlers=[file]")
"""For jobs side by side: they write to their log files only."""


@dataclass
class ResumableSweeperConf:
    _target_: str = "hydra_plugins.kd.sweeper.ResumableSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="resumable", node=ResumableSweeperConf, provider="kd")


class ResumableSweeper(BasicSweeper):
    """The grid of Hydra's own sweeper, without jobs that are done, refused or repeated."""

    def sweep(self, arguments: list[str]) -> Any:
        directory = Path(self.config.hydra.sweep.dir)
        with alone_in(directory):
            OmegaConf.save(self.config, directory / "multirun.yaml")
            jobs = [self._job(number, overrides) for number, overrides in enumerate(self._grid(arguments))]
            left = place(jobs, directory)
            if not left and all(job.status == "refused" for job in jobs):
                raise UserError(jobs[0].why)
            progress = Progress(jobs, lambda line: print(line, flush=True))
            progress.update()
            try:
                returns = self._launch(left, progress)
            except BaseException:
                _show(jobs)
                print(f"continue with: {_command(directory)}", file=sys.stderr)
                raise
            _show(jobs)
            statuses = {job.status for job in jobs}
            if statuses - {"done", "skipped", "refused"}:
                raise UserError(f"{count(jobs)}; what is missing is tried again by: {_command(directory)}")
            if "refused" in statuses:
                raise UserError(count(jobs))
            return returns

    def _grid(self, arguments: list[str]) -> list[list[str]]:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (grid,) = self.split_arguments(parser.parse_overrides([*self._parse_config(), *arguments]), None)
        return grid

    def _job(self, number: int, overrides: Sequence[str]) -> Job:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.num = cfg.hydra.job.id = number
            name = str(cfg.hydra.sweep.subdir)
            launcher = self.config.hydra.launcher._target_
            command = Command.of(cfg, cfg.hydra, launcher)
            del cfg["hydra"]
        if Path(name).name != name:
            raise UserError(f"hydra.sweep.subdir={name}: jobs lie side by side in hydra.sweep.dir; give a single name")
        job = Job(tuple(overrides), fingerprint(plain(cfg)), name)
        try:
            check_command(command)
        except UserError as error:
            job.reason = str(error)
        return job

    def _launch(self, jobs: list[Job], progress: Progress) -> list[Sequence[JobReturn]]:
        sequential = self.config.hydra.launcher._target_.endswith(".BasicLauncher")
        returns = []
        for batch in self.split_overrides_to_chunks(jobs, 1 if sequential else self.max_batch_size) if jobs else ():
            with nullcontext() if sequential else progress.polling():
                returns.append(self._launch_with_retries(batch, () if sequential else QUIET, progress.print_line))
            progress.update()
        return returns

    def _launch_with_retries(
        self, jobs: list[Job], extra: Sequence[str], print_line: Callable[[str], None]
    ) -> Sequence[JobReturn]:
        """Launch jobs, and launch those again that are not finished when the launcher fails."""
        for _ in range(ATTEMPTS):
            left = [job for job in jobs if job.status not in ("done", "failed")]
            commands = [[*job.overrides, f"hydra.sweep.subdir='{job.directory.name}'", *extra] for job in left]
            try:
                returns = self.launcher.launch(commands, initial_job_idx=0)
            except Exception as error:
                reason, _, _ = str(error).partition("\n")
                print_line(f"the launcher failed: {reason}")
                for job in left:
                    job.wait()
                continue
            for job, returned in zip(left, returns, strict=True):
                if returned.status is not JobStatus.COMPLETED:
                    job.reason = cli.explain(returned._return_value, job.overrides)
            return returns
        for job in jobs:
            if job.status not in ("done", "failed"):
                job.reason = "its launcher died"
        return []


def _show(jobs: Sequence[Job]) -> None:
    from rich.console import Console

    Console().print("", table(jobs), sep="\n")


def _command(directory: Path) -> str:
    arguments = sys.argv[1:]
    if not any(argument.startswith("hydra.sweep.dir=") for argument in arguments):
        arguments = [*arguments, f"hydra.sweep.dir={directory}"]
    return f"{cli.program()} {shlex.join(arguments)}"
