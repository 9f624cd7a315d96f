"""Search for the knobs that give the best validation accuracy: Optuna over the same entry point as train.py.

Hydra's own Optuna sweeper pins an Optuna of years ago and breaks as soon as its study is to be kept in a file, and
it can neither prune a run nor continue one. So this script takes values from a current Optuna and does each run itself.
"""

import argparse
import logging
import math
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Context
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.app import cli
from kd.app.check import knobs
from kd.app.compose import Command, compose, plain, run_wide
from kd.app.run import check_command, describe, number, run
from kd.errors import UserError
from kd.hashing import derive
from kd.ranges import RANGES, require
from kd.runs.results import FILE, Result, read
from kd.runs.status import tracked, write_once

STUDY = "study.db"
LEARNING_RATE = "recipe.optimizer.lr"
QUIET = ("trainer.enable_progress_bar=false",)
BEST = 5
DIGITS = 4
"""Significant ones, of a value that is tried: enough to tell runs apart, and few enough to type."""


@dataclass(frozen=True)
class Range:
    """What is searched for one setting, ends included."""

    name: str
    """In full, as in "recipe.optimizer.lr"."""
    low: float
    high: float
    log: bool = False
    """Whether the factor between two values counts, and not their difference."""

    @classmethod
    def parse(cls, text: str, allowed: Mapping[str, str]) -> "Range":
        """Read "NAME=LOW:HIGH" or "NAME=LOW:HIGH:log".

        Args:
            text: what to read.
            allowed: what settings may be, by their full names or the last part of these.

        Raises:
            UserError: if it is not of that form, is empty, or reaches beyond what the setting may be.
        """
        name, _, span = text.partition("=")
        ends, scale = span.split(":")[:2], span.split(":")[2:]
        try:
            low, high = (_number(end) for end in ends)
            if not name or scale not in ([], ["log"]):
                raise ValueError
        except ValueError:
            raise UserError(f"--range {text}: write NAME=LOW:HIGH or NAME=LOW:HIGH:log") from None
        if not low < high:
            raise UserError(f"--range {text}: {low:g} is not below {high:g}")
        if scale and low <= 0:
            raise UserError(f"--range {text}: a range with :log begins above 0")
        span = allowed.get(name, allowed.get(name.rpartition(".")[2]))
        if span is not None:
            try:
                require(name, low, span)
                require(name, high, span)
            except ValueError as error:
                raise UserError(f"--range {text}: {error}") from error
        return cls(name, low, high, bool(scale))

    def __str__(self) -> str:
        return f"{self.name}={self.low:g}:{self.high:g}{':log' if self.log else ''}"

    def within(self, limits: Mapping[str, str], known: Mapping[str, float]) -> "Range":
        """What is left of the range once the other parts of sums are known.

        Args:
            limits: ranges, those of sums of knobs among them: {"alpha + beta": "[0, 1]"}.
            known: values of the other settings; of those still to be chosen, the least they can be.

        Raises:
            UserError: if nothing is left.
        """
        high = self.high
        for names, span in limits.items():
            parts = names.split(" + ")
            if len(parts) > 1 and self.name in parts:
                rest = sum(known[part] for part in parts if part != self.name)
                high = min(high, round(float(span[1:-1].split(",")[1]) - rest, 9))
                if high < self.low:
                    raise UserError(f"--range {self}: {names} must be in {span}, of which {rest:g} is already taken")
        return replace(self, high=high)

    def short(self, value: float) -> float:
        """The value with few digits, still in the range; never rounded up, as sums have upper ends."""
        if isinstance(value, int):
            return value
        return max(self.low, float(Context(prec=DIGITS, rounding=ROUND_DOWN).create_decimal_from_float(value)))


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


@dataclass(frozen=True)
class Search:
    """A search: its ranges, its directory, and the settings of its runs."""

    directory: Path
    overrides: tuple[str, ...]
    """What all trials have in common, as for train.py."""
    ranges: tuple[Range, ...]
    limits: dict[str, str]
    """What the method's knobs, and sums of them, may be."""
    fixed: dict[str, float]
    """The knobs that are not searched."""
    seed: int
    trials: int
    """How many are to be finished."""

    def settings(self, values: dict[str, float]) -> list[str]:
        """The overrides of one trial."""
        return [*self.overrides, *(f"{name}={value!r}" for name, value in values.items())]

    def compose(self, values: dict[str, float]) -> tuple[Command, DictConfig]:
        """The run of one trial, and Hydra's node beside it."""
        return compose([*QUIET, *self.settings(values)], launcher="search")

    @property
    def lowest(self) -> dict[str, float]:
        """The corner of the ranges that every limit allows, if any value is allowed at all."""
        return {part.name: part.low for part in self.ranges}

    def values(self, trial: Any) -> dict[str, float]:
        """The values of a trial; the same each time that they are requested."""
        values = self.lowest
        for part in self.ranges:
            part = part.within(self.limits, {**self.fixed, **values})
            suggest = trial.suggest_int if isinstance(part.low, int) else trial.suggest_float
            values[part.name] = part.short(suggest(part.name, part.low, part.high, log=part.log))
        return values


def plan(options: argparse.Namespace) -> Search:
    """Return the search of a command.

    Raises:
        UserError: if there is nothing to search, or no way to judge it.
    """
    command, hydra = compose(options.overrides)
    cfg = command.cfg
    if hydra.sweeper.params:
        raise UserError("an experiment that is a grid of runs cannot be searched; give the settings that it is to have")
    if "student" not in cfg.spec.networks:
        raise UserError("there is no student to search the knobs of; choose another method")
    refuse_test_split(cfg.data.val_fraction)
    limits: dict[str, str] = plain(cfg.spec.ranges)
    given = [Range.parse(text, RANGES | limits) for text in options.range]
    names = [part.name for part in given]
    fixed = {override.lstrip("+").partition("=")[0]: override for override in options.overrides}
    for name in names:
        if name in fixed:
            raise UserError(f"{name} is searched by --range and set by {fixed[name]}; leave out one of the two")
        if names.count(name) > 1:
            raise UserError(f"--range {name}=... is given more than once")
    spans = usual_spans(cfg, limits)
    usual = [
        Range.parse(f"{name}={span}", RANGES | limits)
        for name, span in spans.items()
        if name not in {*names, *fixed} and not (name == LEARNING_RATE and "lr" in {*names, *fixed})
    ]
    ranges = tuple(typed(part, cfg, options.overrides) for part in [*usual, *given])
    if not ranges:
        raise UserError("every knob is set, nothing is left to search; leave one out or give --range NAME=LOW:HIGH")
    own = knobs(plain(cfg), run_wide())
    search = Search(
        options.directory,
        tuple(options.overrides),
        ranges,
        limits,
        {name: value for name, value in own.items() if number(value, None) is not None},
        options.seed,
        options.trials,
    )
    for part in ranges:
        part.within(search.limits, {**search.fixed, **search.lowest})
    check_command(search.compose(search.lowest)[0])
    return search


def usual_spans(cfg: DictConfig, limits: Mapping[str, str]) -> dict[str, str]:
    """Where settings are searched unless --range says otherwise.

    The method's knobs that are decimal numbers: all of their range, where it has an end, else from half of the set
    value to ten times that. The learning rate: from a tenth of the set one to ten times that.
    """
    spans = {}
    for name, span in limits.items():
        value = cfg.get(name) if " + " not in name else None
        if not isinstance(value, float):
            continue
        low, high = (float(end) for end in span[1:-1].split(","))
        if math.isfinite(high):
            margin = (high - low) / 100  # keeps off an end that does not belong to the range
            low, high = low + margin * (span[0] == "("), high - margin * (span[-1] == ")")
            spans[name] = f"{low:g}:{high:g}"
        elif value > 0:
            spans[name] = f"{value / 2:g}:{10 * value:g}:log"
    rate = OmegaConf.select(cfg, LEARNING_RATE)
    if number(rate, 0):
        spans[LEARNING_RATE] = f"{rate / 10:g}:{rate * 10:g}:log"
    return spans


def refuse_test_split(val_fraction: Any, images: int | None = None) -> None:
    if val_fraction == 0 or images == 0:
        raise UserError(
            f"data.val_fraction={val_fraction} leaves no image for validation, and nothing may be chosen by the test "
            "split; give a larger one"
        )


def typed(part: Range, cfg: DictConfig, overrides: Sequence[str]) -> Range:
    """The range, of whole numbers where the setting is one."""
    value = OmegaConf.select(cfg, part.name)
    if number(value, None) is None:
        method = next((override for override in overrides if override.startswith("method=")), "the default method")
        raise UserError(f"there is no number '{part.name}' with {method} that could be searched")
    whole = isinstance(value, int)
    if whole and not (isinstance(part.low, int) and isinstance(part.high, int)):
        raise UserError(f"--range {part}: {part.name} is a whole number")
    return part if whole else replace(part, low=float(part.low), high=float(part.high))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other searches out of a directory, at most until this process ends, however it ends."""
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


def open_study(search: Search) -> Any:
    """The study that the directory holds, or a new one.

    Raises:
        UserError: if it is one of another search, or not to be read.
    """
    import optuna
    from sqlalchemy.exc import DatabaseError

    file = search.directory / STUDY
    if not file.exists() and list(search.directory.glob(f"*/{FILE}")):
        raise UserError(f"{search.directory} holds runs, but no search; choose another directory")
    command, _ = search.compose(search.lowest)
    wanted = {
        "settings": describe(command).fingerprint,
        "ranges": [str(part) for part in search.ranges],
        "seed": search.seed,
    }
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name="search",
            direction="maximize",
            pruner=pruner(command.cfg.recipe.epochs),
            load_if_exists=True,
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(f"{file} cannot be used: {getattr(error, 'orig', error)}") from error
    if "search" not in study.user_attrs:
        study.set_user_attr("search", wanted)
    elif study.user_attrs["search"] != wanted:
        ranges = " ".join(study.user_attrs["search"]["ranges"])
        raise UserError(
            f"{search.directory} holds another search ({ranges}, --seed {study.user_attrs['search']['seed']}, or other "
            "settings); choose another directory"
        )
    return study


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
    command, _ = search.compose(search.lowest)
    build = Builder(command)
    build.dry_run(search.directory)
    refuse_test_split(command.cfg.data.val_fraction, images=len(build.data(build.student).val_index))
    record = describe(command)
    prepare_teacher(build, replace(record, dataset=build.images.name, data_id=build.images.id))
    for log in logs:
        log.setLevel(logging.WARNING)  # in every trial they would print the same


def search_on(search: Search) -> Any:
    """Do what is missing; returns the study."""
    import optuna
    from optuna.trial import TrialState

    study = open_study(search)
    done = len(finished(study))
    if done < search.trials:
        if study.trials:
            print(f"{done} of {search.trials} trials are finished, the search goes on", flush=True)
        prepare(search)
    while (done := len(finished(study))) < search.trials:
        left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        number = number_of(left[0]) if left else len(counted(study))
        # Anew for every trial: a search that was interrupted in between draws what it would have drawn.
        study.sampler = optuna.samplers.TPESampler(seed=derive("trial", search.seed, number))
        if left:
            take_up(study, left[0])
        trial = study.ask()
        trial.set_user_attr("number", number)
        for epoch, accuracy in (left[0].intermediate_values if left else {}).items():
            trial.report(accuracy, epoch)
        values = search.values(trial)
        outcome = attempt(search, trial, values)
        place = f"{done + 1:{len(str(search.trials))}}/{search.trials}"
        print(f"[{place}] trial {number} {as_text(values)}: {outcome}{best(study)}", flush=True)
    return study


def take_up(study: Any, left: Any) -> None:
    """Put a trial that a killed process left running into the queue again, as nobody else can be at work on it."""
    from optuna.trial import TrialState

    study.set_user_attr("taken_up", [*study.user_attrs.get("taken_up", []), left.number])
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # there is, if it was killed right here
        study.enqueue_trial(left.params)
    study.tell(left.number, state=TrialState.FAIL)


def counted(study: Any) -> list[Any]:
    """All trials, less those whose place another has taken."""
    from optuna.trial import TrialState

    taken_up = study.user_attrs.get("taken_up", [])
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.number not in taken_up and trial.state is not TrialState.WAITING]


def finished(study: Any) -> list[Any]:
    return [trial for trial in counted(study) if trial.state.is_finished()]


def number_of(trial: Any) -> int:
    """The trial's number in the search, which names its directory; it keeps it when it is taken up again."""
    return int(trial.user_attrs.get("number", trial.number))


def attempt(search: Search, trial: Any, values: dict[str, float]) -> str:
    """Do the run of one trial and record it in the study; return its outcome in words."""
    from optuna.exceptions import StorageInternalError
    from optuna.trial import TrialState

    try:
        result = do(search, trial, values)
    except Exception as error:
        if isinstance(error, StorageInternalError | OSError) or isinstance(error.__cause__, OSError):
            raise  # a full disk is none of the trial's doing
        reason = cli.explain(error, search.overrides)
        trial.set_user_attr("error", reason)
        trial.study.tell(trial, state=TrialState.FAIL)
        return f"failed, {reason}"
    if result.status == "pruned":
        trial.study.tell(trial, state=TrialState.PRUNED)
        return str(result.error)
    trial.study.tell(trial, result.val_acc)
    return f"val {percent(result.val_acc)}"


def do(search: Search, trial: Any, values: dict[str, float]) -> Result:
    """A run as train.py does it, with its record and its directory, that reports to its trial."""
    from optuna import TrialPruned

    directory = search.directory / str(number_of(trial))
    command, hydra = search.compose(values)
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(command.cfg, directory / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), directory / ".hydra" / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, directory / ".hydra" / "overrides.yaml")

    def work(record: Result) -> Result:
        from kd.app.build import Builder

        check_command(command)
        try:
            return run(Builder(command), record, directory, callbacks=[report_to(trial)])
        except TrialPruned as pruned:
            record = replace(record, status="pruned", error=str(pruned))
            write_once(record, directory / FILE)
            return record

    return tracked(describe(command), directory, work)


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


def ranked(study: Any) -> list[Any]:
    """The trials that ran to their end, the best by validation accuracy first, the earlier one of equals."""
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(done, key=lambda trial: (-trial.value, trial.number))


def best(study: Any) -> str:
    trials = ranked(study)
    return f" | best {percent(trials[0].value)} (trial {number_of(trials[0])})" if trials else ""


def conclude(search: Search, study: Any) -> None:
    """Show the best trials and the command that repeats the first of them.

    Raises:
        UserError: if there is none.
    """
    from rich.console import Console
    from rich.table import Table

    trials = ranked(study)
    if not trials:
        reason = study.trials[0].user_attrs.get("error", "pruned")
        raise UserError(f"of {len(study.trials)} trials none came to its end; the first: {reason}")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("trial")
    for heading in (*(part.name for part in search.ranges), "val acc", "test acc"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials[:BEST]:
        knobs = (f"{value:g}" for value in search.values(trial).values())
        test = read(search.directory / str(number_of(trial)) / FILE).test_acc
        table.add_row(str(number_of(trial)), *knobs, percent(trial.value), percent(test))
    Console().print("", table, "", sep="\n")
    command = ["python", "train.py", *search.settings(search.values(trials[0]))]
    print(f"the best again: {shlex.join(command)}")


def as_text(values: dict[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in values.items())


def percent(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else f"{100 * accuracy:.2f} %"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="The same command again continues the search. Searched are the method's knobs (all of their range;\n"
        "one without an upper end from half of the set value to ten times that) and the learning rate (from a tenth\n"
        "of the set one to tenfold); not what an OVERRIDE sets.\n\n"
        "examples:\n"
        "  python scripts/search.py searches/first --trials 30 method=logits data=digits\n"
        "  python scripts/search.py searches/second method=feature T=4 --range recipe.optimizer.lr=0.01:0.2:log",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="SEARCH_DIR", help="where study and runs are kept")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="settings of every run, as for train.py")
    parser.add_argument("--trials", type=int, default=30, metavar="N", help="how many to finish (default: 30)")
    parser.add_argument(
        "--range",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=LOW:HIGH[:log]",
        help="search this instead of, or beside, the knobs; after all overrides",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of values (default: 0)")
    return parser.parse_intermixed_args()


def search_with(options: argparse.Namespace) -> None:
    if options.trials < 1:
        raise UserError(f"--trials must be at least 1, got {options.trials}")
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("the search needs Optuna: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(format="%(message)s")
    search = plan(options)
    for name, settings in search.compose(search.lowest)[1].job_logging.loggers.items():
        logging.getLogger(name).setLevel(settings.level)
    with locked(search.directory):
        try:
            study = search_on(search)
        except optuna.exceptions.StorageInternalError as error:
            raise UserError(f"the study cannot be saved: {error.__cause__ or error}") from error
        conclude(search, study)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    try:
        search_with(options)
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the first into the second
        print(f"the search goes on with: python {shlex.join(sys.argv)}", file=sys.stderr)
        return 130
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"search.py: {cli.explain(error, options.overrides)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
