"""Search for the knobs that give the best validation accuracy: Optuna over the same entry point as train.py.

Hydra's own Optuna sweeper pins an Optuna of years ago and breaks as soon as its study is to be kept in a file, and
it can neither prune a run nor continue one. So this script takes values from a current Optuna and does each run itself.
"""

import argparse
import gc
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from trials import counted, finished, next_trial, number_of, ranked

from kd.app.check import check_command
from kd.app.explain import explain
from kd.app.programs import command_line, refuse_setting, run_program
from kd.app.run import describe, run
from kd.app.search import Search, plan, refuse_test_split
from kd.deploy.card import write_card
from kd.errors import UserError
from kd.runs.results import FILE, Result, read
from kd.runs.status import tracked, write_once
from kd.sweeps.progress import console
from kd.terminal import Parser, positive, whole

STUDY = "study.db"
BEST = 5


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other searches out of a directory, at most until this process ends, however it ends.

    A directory that this makes is removed if the search ends before it has anything in it.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another search is at work in {directory}; wait for it, or choose another one") from error
    try:
        yield
    finally:
        lock.release()
        if made and {path.name for path in directory.iterdir()} <= {".lock"}:
            shutil.rmtree(directory)


@contextmanager
def opened_study(search: Search) -> Iterator[Any]:
    """Open the study that the directory holds, or a new one.

    Raises:
        UserError: if it is one of another search, or not to be read.
    """
    import optuna
    from sqlalchemy.exc import DatabaseError
    from sqlalchemy.pool import NullPool

    file = search.directory / STUDY
    command = search.compose(search.lowest)
    wanted = {
        "settings": describe(command).fingerprint,
        "ranges": [str(part) for part in search.ranges],
        "seed": search.seed,
    }
    try:
        # No connection is kept beyond its use but that of the session, which is closed below.
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"poolclass": NullPool})
        study = optuna.create_study(
            storage=storage,
            study_name="search",
            direction="maximize",
            pruner=pruner(command.cfg.recipe.epochs),
            load_if_exists=True,
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(f"{file} cannot be used: {getattr(error, 'orig', error)}") from error
    try:
        if "search" not in study.user_attrs:
            study.set_user_attr("search", wanted)
        elif study.user_attrs["search"] != wanted:
            ranges = " ".join(study.user_attrs["search"]["ranges"])
            raise UserError(
                f"{search.directory} holds another search ({ranges}, --seed {study.user_attrs['search']['seed']}, or "
                "other settings); choose another directory"
            )
        yield study
    finally:
        storage.remove_session()


def pruner(epochs: int) -> Any:
    """Ends a run whose best epoch so far is below the median of the others at the same epoch.

    Not in the first half of the epochs, in which a low learning rate looks better than it is, and not before there are
    five to compare with.
    """
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 2)


def prepare(search: Search) -> None:
    """Build everything once and have the teacher trained: what would fail in every trial is no trial's failure."""
    from kd.app.build import Builder
    from kd.app.teacher import prepare_teacher

    logs = [logging.getLogger(name) for name in ("kd.teachers", "kd.app.teacher")]
    for log in logs:
        log.setLevel(logging.INFO)
    command = search.compose(search.lowest)
    build = Builder(command)
    build.dry_run(search.directory)
    refuse_test_split(command.cfg.data.val_fraction, images=len(build.data(build.student).val_index))
    record = describe(command)
    prepare_teacher(build, replace(record, dataset=build.images.name, data_id=build.images.id))
    for log in logs:
        log.setLevel(logging.WARNING)  # in every trial they would print the same


def search_on(search: Search) -> None:
    """Do what is missing, and print what came of it."""
    new = not (search.directory / STUDY).exists()
    if new:
        if list(search.directory.glob(f"*/{FILE}")):
            raise UserError(f"{search.directory} holds runs, but no search; choose another directory")
        prepare(search)  # before there is a study, so that a search that is refused here can be mended
    with opened_study(search) as study:
        make_trials(search, study, new)
        conclude(search, study)


def make_trials(search: Search, study: Any, new: bool) -> None:
    """Make the trials that the study lacks; a new one was prepared for."""
    done = len(finished(study))
    if done >= search.trials:
        print(f"{done} trials were finished before; give a larger --trials for more")
    elif not new:
        print(f"{done} of {search.trials} trials are finished, the search goes on", flush=True)
        prepare(search)
    while (done := len(finished(study))) < search.trials:
        trial = next_trial(study, search.seed)
        values = search.values(trial)
        outcome = attempt(search, trial, values)
        place = f"{done + 1:{len(str(search.trials))}}/{search.trials}"
        print(f"[{place}] trial {number_of(trial)} {as_text(values)}: {outcome}{best_so_far(study)}", flush=True)


def attempt(search: Search, trial: Any, values: dict[str, float]) -> str:
    """Do the run of one trial and record it in the study; return its outcome in words."""
    from optuna.exceptions import StorageInternalError
    from optuna.trial import TrialState

    try:
        result = run_trial(search, trial, values)
    except Exception as error:
        if isinstance(error, StorageInternalError | OSError) or isinstance(error.__cause__, OSError):
            raise  # a full disk is none of the trial's doing
        if not isinstance(error, UserError) and not ranked(trial.study):
            raise  # every trial would fail so; this one is taken up again once that is mended
        reason = explain(error, search.overrides)
        trial.set_user_attr("error", reason)
        trial.study.tell(trial, state=TrialState.FAIL)
        return f"failed, {reason}"
    if result.status == "pruned":
        trial.study.tell(trial, state=TrialState.PRUNED)
        return str(result.error)
    trial.study.tell(trial, result.val_acc)
    return f"val {percent(result.val_acc)}"


def run_trial(search: Search, trial: Any, values: dict[str, float]) -> Result:
    """Do a run as train.py does it, with its record and its directory, that reports to its trial."""
    from optuna import TrialPruned

    directory = search.directory / str(number_of(trial))
    command = search.compose(values)
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(command.cfg, directory / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": command.hydra}), directory / ".hydra" / "hydra.yaml")
    OmegaConf.save(command.hydra.overrides.task, directory / ".hydra" / "overrides.yaml")

    def work(record: Result) -> Result:
        from kd.app.build import Builder

        check_command(command)
        try:
            return run(Builder(command), record, directory, callbacks=[report_to(trial)])
        except TrialPruned as pruned:
            seen = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
            curve = [seen[epoch] for epoch in sorted(seen)]
            latest = read(directory / FILE)  # by now it names the images
            record = replace(latest, status="pruned", error=str(pruned), epoch_val_acc=curve)
            write_once(record, directory / FILE)
            return record

    try:
        record = tracked(describe(command), directory, work)
    finally:
        gc.collect()  # a Trainer refers to itself, and would hold its images for some ten more trials
    write_card(record, directory)
    return record


def report_to(trial: Any) -> Any:
    """A callback that reports each epoch's validation accuracy, and ends a run that the study prunes."""
    import lightning as L
    from optuna import TrialPruned

    class ReportToTrial(L.Callback):
        def __init__(self) -> None:
            # Reported already, if the process was killed between that and the checkpoint.
            self.known = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            epoch, accuracy = trainer.current_epoch, float(trainer.callback_metrics["val/acc"])
            if epoch not in self.known:
                trial.report(accuracy, epoch)
            if epoch + 1 < trainer.max_epochs and trial.should_prune():
                raise TrialPruned(f"pruned after epoch {epoch + 1} at val {percent(accuracy)}")

    return ReportToTrial()


def best_so_far(study: Any) -> str:
    trials = ranked(study)
    return f" | best {percent(trials[0].value)} (trial {number_of(trials[0])})" if trials else ""


def conclude(search: Search, study: Any) -> None:
    """Show the best trials and the command that repeats the first of them.

    Raises:
        UserError: if there is none.
    """
    from rich.table import Table

    trials = ranked(study)
    if not trials:
        every = counted(study)
        reason = every[0].user_attrs.get("error", "pruned")
        raise UserError(f"of {len(every)} trials none came to its end; the first: {reason}")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("trial", no_wrap=True)
    last = [part.name.rpartition(".")[2] for part in search.ranges]  # full names do not fit into 80 columns
    names = [name if last.count(name) == 1 else part.name for name, part in zip(last, search.ranges, strict=True)]
    for heading in (*names, "val acc", "test acc"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials[:BEST]:
        knobs = (f"{value:g}" for value in search.values(trial).values())
        test = read(search.directory / str(number_of(trial)) / FILE).test_acc
        table.add_row(str(number_of(trial)), *knobs, percent(trial.value), percent(test))
    console().print("", table, "", sep="\n")
    own = [] if search.config_dir is None else [f"--config-dir={search.config_dir}"]
    command = ["python", "train.py", *own, *search.settings(search.values(trials[0]))]
    print(f"the best again: {command_line(command)}")
    print(f"tables and figures: {command_line(['python', 'scripts/report.py', str(search.directory)])}")


def as_text(values: dict[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in values.items())


def percent(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else f"{100 * accuracy:.2f} %"


def arguments() -> argparse.Namespace:
    parser = Parser(
        description=__doc__.splitlines()[0],
        epilog="The same command again continues the search. Searched are the method's knobs that are decimal numbers\n"
        "(all of their range; of one wider than 1,000 from half of the set value to ten times that) and the learning\n"
        "rate (from a tenth of the set one to tenfold); not what an OVERRIDE sets.\n\n"
        "examples:\n"
        "  python scripts/search.py searches/first --trials 30 method=logits data=digits\n"
        "  python scripts/search.py searches/second method=feature T=4 --range recipe.optimizer.lr=0.01:0.2:log",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", nargs="?", type=Path, metavar="SEARCH_DIR", help="where study and runs are kept")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="settings of every run, as for train.py")
    parser.add_argument("--trials", type=positive, default=30, metavar="N", help="how many to finish (default: 30)")
    parser.add_argument(
        "--range",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=LOW:HIGH[:log]",
        help="search this instead of, or beside, the knobs; after all overrides",
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="a folder of configuration files of one's own, as for train.py"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the choice of values (default: 0)")
    options = parser.parse_intermixed_args()
    if options.directory is None:
        raise UserError("give a folder for the study and its runs: python scripts/search.py SEARCH_DIR ...; see --help")
    refuse_setting(str(options.directory), "scripts/search.py SEARCH_DIR")
    return options


def search_with(options: argparse.Namespace) -> None:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("the search needs Optuna: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(format="%(message)s")
    folder = options.config_dir and Path(os.path.abspath(os.path.expanduser(options.config_dir)))
    if folder and not folder.is_dir():
        raise UserError(f"--config-dir={options.config_dir}: no such folder")
    search = plan(options.directory, options.overrides, options.range, options.seed, options.trials, folder)
    for name, settings in search.compose(search.lowest).hydra.job_logging.loggers.items():
        logging.getLogger(name).setLevel(settings.level)
    with locked(search.directory):
        try:
            search_on(search)
        except optuna.exceptions.StorageInternalError as error:
            raise UserError(f"the study cannot be saved: {error.__cause__ or error}") from error
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the first into the second
            print(f"the search goes on with: {command_line(['python', *sys.argv])}", file=sys.stderr)
            raise KeyboardInterrupt from None


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    return run_program("search.py", arguments, search_with)


if __name__ == "__main__":
    sys.exit(main())
