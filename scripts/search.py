"""Search for the knobs that give the best validation accuracy: Optuna over the same entry point as train.py.

Hydra's own Optuna sweeper pins an Optuna of years ago and breaks as soon as its study is to be kept in a file, and
it can neither prune a run nor continue one. So this script asks a current Optuna for values and does each run itself.
"""

import argparse
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.app import cli
from kd.app.check import KNOBS
from kd.errors import UserError
from kd.hashing import derive
from kd.runs.results import FILE, Result, read
from kd.runs.status import recorded, write_once
from kd.search import Range

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402

STUDY = "study.db"
LEARNING_RATE = "recipe.optimizer.lr"
SPANS = {"T": "1:20:log", "alpha": "0:1", "beta": "0:1"}
"""Where knobs are searched unless --range says otherwise; the learning rate: from a tenth of the set one to tenfold."""
QUIET = ("trainer.enable_progress_bar=false",)
BEST = 5


@dataclass(frozen=True)
class Search:
    """What is looked for, where, and with what settings."""

    directory: Path
    overrides: tuple[str, ...]
    """What all trials have in common, as for train.py."""
    ranges: tuple[Range, ...]
    limits: dict[str, str]
    """Of sums of knobs."""
    fixed: dict[str, float]
    """The knobs that are not searched."""
    seed: int
    trials: int
    """How many are to be finished."""

    def settings(self, values: dict[str, float]) -> list[str]:
        """The overrides of one trial."""
        return [*self.overrides, *(f"{name}={value!r}" for name, value in values.items())]

    def compose(self, values: dict[str, float]) -> DictConfig:
        """The configuration of one trial."""
        return composed([*QUIET, *self.settings(values)])

    @property
    def lowest(self) -> dict[str, float]:
        """The corner of the ranges that every limit allows, if any value is allowed at all."""
        return {part.name: part.low for part in self.ranges}

    def values(self, trial: Any) -> dict[str, float]:
        """What a trial tries. A trial that has been asked before answers the same."""
        values = self.lowest
        for part in self.ranges:
            part = part.within(self.limits, {**self.fixed, **values})
            suggest = trial.suggest_int if isinstance(part.low, int) else trial.suggest_float
            values[part.name] = part.short(suggest(part.name, part.low, part.high, log=part.log))
        return values


def composed(overrides: Sequence[str]) -> DictConfig:
    """What `train.py` would compose, and Hydra knows of it: there `train.describe` finds choices and overrides."""
    cfg = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [name for name in cfg if name != "hydra"])


def plan(options: argparse.Namespace) -> Search:
    """The search that a command asks for.

    Raises:
        UserError: if there is nothing to search, or no way to judge it.
    """
    cfg = composed(options.overrides)
    if HydraConfig.get().sweeper.params:
        raise UserError("an experiment that is a grid of runs cannot be searched; give the settings that it is to have")
    if "student" not in cfg.roles:
        raise UserError("there is no student to search the knobs of; choose another method")
    refuse_test_split(cfg.data.val_fraction)
    given = [Range.parse(text) for text in options.range]
    names = [part.name for part in given]
    fixed = {override.lstrip("+").partition("=")[0]: override for override in options.overrides}
    for name in names:
        if name in fixed:
            raise UserError(f"{name} is searched by --range and set by {fixed[name]}; leave out one of the two")
        if names.count(name) > 1:
            raise UserError(f"--range {name}=... is given more than once")
    rate = OmegaConf.select(cfg, LEARNING_RATE)
    spans = {name: span for name, span in SPANS.items() if name in cfg}
    if train.number(rate, 0):
        spans[LEARNING_RATE] = f"{rate / 10:g}:{rate * 10:g}:log"
    usual = [Range.parse(f"{name}={span}") for name, span in spans.items() if name not in {*names, *fixed}]
    ranges = tuple(typed(part, cfg, options.overrides) for part in [*usual, *given])
    if not ranges:
        raise UserError("every knob is set, nothing is left to search; leave one out or give --range NAME=LOW:HIGH")
    search = Search(
        options.directory,
        tuple(options.overrides),
        ranges,
        train.plain(cfg.limits),
        {name: cfg[name] for name in KNOBS if name in cfg},
        options.seed,
        options.trials,
    )
    for part in ranges:
        part.within(search.limits, {**search.fixed, **search.lowest})
    train.refuse_mistakes(search.compose(search.lowest), launcher="search")
    return search


def refuse_test_split(val_fraction: Any, images: int | None = None) -> None:
    if val_fraction == 0 or images == 0:
        raise UserError(
            f"data.val_fraction={val_fraction} leaves no image for validation, and nothing may be chosen by the test "
            "split; give a larger one"
        )


def typed(part: Range, cfg: DictConfig, overrides: Sequence[str]) -> Range:
    """The range, of whole numbers where the setting is one."""
    value = OmegaConf.select(cfg, part.name)
    if train.number(value, None) is None:
        method = next((override for override in overrides if override.startswith("method=")), "the default method")
        raise UserError(f"there is no number '{part.name}' with {method} that could be searched")
    whole = isinstance(value, int)
    if whole and not (isinstance(part.low, int) and isinstance(part.high, int)):
        raise UserError(f"--range {part}: {part.name} is a whole number")
    return part if whole else replace(part, low=float(part.low), high=float(part.high))


@contextmanager
def held(directory: Path) -> Iterator[None]:
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
    cfg = search.compose(search.lowest)
    asked = {
        "settings": train.describe(cfg).fingerprint,
        "ranges": [str(part) for part in search.ranges],
        "seed": search.seed,
    }
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name="search",
            direction="maximize",
            pruner=pruner(cfg.recipe.epochs),
            load_if_exists=True,
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(f"{file} cannot be used: {getattr(error, 'orig', error)}") from error
    if "asked" not in study.user_attrs:
        study.set_user_attr("asked", asked)
    elif study.user_attrs["asked"] != asked:
        ranges = " ".join(study.user_attrs["asked"]["ranges"])
        raise UserError(
            f"{search.directory} holds another search ({ranges}, --seed {study.user_attrs['asked']['seed']}, or other "
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
    log = logging.getLogger("kd.teachers.store")
    log.setLevel(logging.INFO)
    cfg = search.compose(search.lowest)
    make = train.Workshop(cfg)
    make.rehearsal(search.directory)
    refuse_test_split(cfg.data.val_fraction, images=len(make.data(cfg.recipe, cfg.seed).val_index))
    if "teacher" in cfg.roles:
        train.find_teacher(make, train.describe(cfg))
    log.setLevel(logging.WARNING)  # in every trial it would say the same


def look(search: Search) -> Any:
    """Do what is missing; returns the study."""
    import optuna
    from optuna.trial import TrialState

    study = open_study(search)
    finished = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    done = len(study.get_trials(states=finished))
    if done < search.trials:
        if study.trials:
            print(f"{done} of {search.trials} trials are finished, the search goes on", flush=True)
        prepare(search)
    while (done := len(study.get_trials(states=finished))) < search.trials:
        # A trial that a killed process left running is taken up again, as nobody else can be at work on it.
        left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        number = left[0].number if left else len(study.trials)
        # Anew for every trial: a search that was interrupted in between draws what it would have drawn.
        study.sampler = optuna.samplers.TPESampler(seed=derive("trial", search.seed, number))
        trial = optuna.trial.Trial(study, left[0]._trial_id) if left else study.ask()
        values = search.values(trial)
        outcome = attempt(search, trial, values)
        place = f"{done + 1:{len(str(search.trials))}}/{search.trials}"
        print(f"[{place}] trial {number} {spoken(values)}: {outcome}{best(study)}", flush=True)
    return study


def attempt(search: Search, trial: Any, values: dict[str, float]) -> str:
    """Do the run of one trial and tell the study; returns what came of it, in words."""
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
    """A run as train.py does it, with its record and its directory, and the trial watching."""
    from optuna import TrialPruned

    directory = search.directory / str(trial.number)
    cfg = search.compose(values)
    hydra = HydraConfig.instance().cfg
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, directory / ".hydra" / "config.yaml")
    OmegaConf.save(hydra, directory / ".hydra" / "hydra.yaml")
    OmegaConf.save(hydra.hydra.overrides.task, directory / ".hydra" / "overrides.yaml")

    def work(record: Result) -> Result:
        train.refuse_mistakes(cfg, launcher="search")
        try:
            return train.run(cfg, record, directory, watchers=[watcher(trial)])
        except TrialPruned as pruned:
            record = replace(record, status="pruned", error=str(pruned))
            write_once(record, directory / FILE)
            return record

    return recorded(train.describe(cfg), directory, work)


def watcher(trial: Any) -> Any:
    """Tells the trial the validation accuracy of each epoch, and ends the run if the study sees no hope in it."""
    import lightning as L
    from optuna import TrialPruned

    class Watcher(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            epoch, accuracy = trainer.current_epoch, float(trainer.callback_metrics["val/acc"])
            known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if epoch not in known:  # it is, if the process was killed between here and the checkpoint
                trial.report(accuracy, epoch)
            if epoch + 1 < trainer.max_epochs and trial.should_prune():
                raise TrialPruned(f"pruned after epoch {epoch + 1} at val {percent(accuracy)}")

    return Watcher()


def ranked(study: Any) -> list[Any]:
    """The trials that ran to their end, the best by validation accuracy first, the earlier one of equals."""
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(done, key=lambda trial: (-trial.value, trial.number))


def best(study: Any) -> str:
    trials = ranked(study)
    return f" | best {percent(trials[0].value)} (trial {trials[0].number})" if trials else ""


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
        test = read(search.directory / str(trial.number) / FILE).test_acc
        table.add_row(str(trial.number), *knobs, percent(trial.value), percent(test))
    Console().print("", table, "", sep="\n")
    command = ["python", "train.py", *search.settings(search.values(trials[0]))]
    print(f"the best again: {shlex.join(command)}")


def spoken(values: dict[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in values.items())


def percent(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else f"{100 * accuracy:.2f} %"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="The same command again continues the search. Searched are T from 1 to 20, alpha and beta from 0 to 1,\n"
        "as far as the method has them, and the learning rate from a tenth of the set one to tenfold; not what an\n"
        "OVERRIDE sets.\n\n"
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


def run(options: argparse.Namespace) -> None:
    if options.trials < 1:
        raise UserError(f"--trials must be at least 1, got {options.trials}")
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("the search needs Optuna: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.basicConfig(format="%(message)s")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        search = plan(options)
        for name, settings in HydraConfig.get().job_logging.loggers.items():
            logging.getLogger(name).setLevel(settings.level)
        with held(search.directory):
            try:
                study = look(search)
            except optuna.exceptions.StorageInternalError as error:
                raise UserError(f"the study cannot be saved: {error.__cause__ or error}") from error
            conclude(search, study)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    try:
        run(options)
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
