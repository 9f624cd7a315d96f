"""The plan of a search: which settings are searched, between which values, and what is refused before it begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.app.check import check_command, knobs, leaves, nearest
from kd.app.compose import Command, compose, plain
from kd.app.explain import OTHER_NAMES
from kd.app.identity import SHORTHANDS, fingerprint
from kd.app.programs import check_settings
from kd.app.run import is_number
from kd.errors import UserError
from kd.ranges import RANGES
from kd.sweeps.spans import Range, limits_of

LEARNING_RATE = "recipe.optimizer.lr"
QUIET = ("trainer.enable_progress_bar=false",)
OF_BOTH = {name: f"recipe.{own}" for name, own in SHORTHANDS.items()}
"""Settings that are the teacher's too, and those of the student alone."""


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
    """The method's knobs that are numbers; a trial's values take the place of those that are searched."""
    seed: int
    trials: int
    """How many are to be finished."""
    config_dir: Path | None = None
    """A folder of configuration files beside our own."""

    def settings(self, values: dict[str, float]) -> list[str]:
        """Return the overrides of one trial."""
        return [*self.overrides, *(f"{name}={value!r}" for name, value in values.items())]

    def compose(self, values: dict[str, float]) -> Command:
        """Return the run of one trial."""
        return compose([*QUIET, *self.settings(values)], "search", self.config_dir)

    @property
    def lowest(self) -> dict[str, float]:
        """The corner of the ranges that every limit allows, if any value is allowed at all."""
        return {part.name: part.low for part in self.ranges}

    def values(self, trial: Any) -> dict[str, float]:
        """Return the values of a trial; the same each time that they are requested."""
        values = self.lowest
        for part in self.ranges:
            part = part.within(self.limits, {**self.fixed, **values})
            suggest = trial.suggest_int if isinstance(part.low, int) else trial.suggest_float
            values[part.name] = part.short(suggest(part.name, part.low, part.high, log=part.log))
        return values


def plan(
    directory: Path,
    overrides: Sequence[str],
    spans: Sequence[str],
    seed: int,
    trials: int,
    config_dir: Path | None,
) -> Search:
    """Return the search of a command.

    Args:
        directory: where study and runs are kept.
        overrides: settings of every run, as for train.py.
        spans: what is searched instead of, or beside, the method's knobs, each as `Range.parse` reads it.
        seed: of the choice of values.
        trials: how many are to be finished.
        config_dir: a folder of configuration files beside our own.

    Raises:
        UserError: if there is nothing to search, or no way to judge it.
    """
    if "?" in str(directory):
        raise UserError(f"{directory}: the path of a study cannot have a '?'; choose another folder")
    check_settings(overrides, "give a single value, or search between two by --range NAME=LOW:HIGH", config_dir)
    refuse_settings(overrides)
    command = compose(overrides, config_dir=config_dir)
    cfg = command.cfg
    if command.hydra.sweeper.params:
        raise UserError("an experiment that is a grid of runs cannot be searched; give the settings that it is to have")
    if "student" not in cfg.spec.networks:
        raise UserError("there is no student to search the knobs of; choose another method")
    refuse_test_split(cfg.data.val_fraction)
    if OmegaConf.select(cfg, "trainer.limit_val_batches") == 0:
        raise UserError("trainer.limit_val_batches=0 leaves nothing to judge a trial by; leave it out")
    limits: dict[str, str] = plain(cfg.spec.ranges)
    given = [Range.parse(text, RANGES | limits) for text in spans]
    names = [part.name for part in given]
    own = knobs(plain(cfg))
    for part in given:
        refuse_range(part, own)
    fixed = {override.lstrip("+").partition("=")[0]: override for override in overrides}
    for name in names:
        if name in fixed:
            raise UserError(f"{name} is searched by --range and set by {fixed[name]}; leave out one of the two")
        if names.count(name) > 1:
            raise UserError(f"--range {name}=... is given more than once")
    usual = [
        Range.parse(f"{name}={span}", RANGES | limits)
        for name, span in usual_spans(cfg, limits).items()
        if name not in {*names, *fixed} and not (name == LEARNING_RATE and "lr" in {*names, *fixed})
    ]
    ranges = tuple(typed(part, cfg, overrides) for part in [*usual, *given])
    if not ranges:
        raise UserError("every knob is set, nothing is left to search; leave one out or give --range NAME=LOW:HIGH")
    search = Search(
        directory,
        tuple(overrides),
        ranges,
        limits,
        {name: value for name, value in own.items() if is_number(value)},
        seed,
        trials,
        config_dir,
    )
    lowest = search.compose(search.lowest)
    check_command(lowest)  # before sums of knobs are computed
    highs = {part.name: part.within(search.limits, {**search.fixed, **search.lowest}).high for part in ranges}
    for part in ranges:
        highest = search.compose({**search.lowest, part.name: highs[part.name]})
        check_command(highest)
        if fingerprint(plain(highest.cfg)) == fingerprint(plain(lowest.cfg)):
            raise UserError(f"--range {part}: {part.name} does not change the result, so there is nothing to search")
    return search


def refuse_settings(overrides: Sequence[str]) -> None:
    """Refuse settings that a search has no use for."""
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if name == "resume":
            raise UserError("a search is continued by its own command again, not by resume=")
        if name.startswith("hydra") and name != "hydra.searchpath":
            raise UserError(f"{override}: a search runs one trial after the other in its folder; leave this out")


def refuse_range(part: Range, own: Mapping[str, Any]) -> None:
    """Refuse to search what makes trials incomparable, lets luck decide, or stands behind one of the method's knobs."""
    knob = part.name.removeprefix("method.")
    if knob != part.name and knob in own:
        raise UserError(f"--range {part}: give --range {replace(part, name=knob)}, whose value method.{knob} takes")
    if part.name in OF_BOTH:
        students = replace(part, name=OF_BOTH[part.name])
        raise UserError(f"--range {part}: {part.name} is the teacher's too; give --range {students} for the student's")
    if part.name.rpartition(".")[2].endswith("seed"):
        raise UserError(f"--range {part}: the best of several seeds is luck; compare means over seeds instead")
    if part.name == "data.val_fraction":
        raise UserError(f"--range {part}: accuracies on other validation images are not comparable; set one value")


WIDE = 1000
"""Width from which on a range says what is possible, and not where to search: that of T ends at a million."""


def usual_spans(cfg: DictConfig, limits: Mapping[str, str]) -> dict[str, str]:
    """Return where settings are searched unless --range says otherwise.

    The method's knobs that are decimal numbers: all of their range, unless that is wider than `WIDE`, else from half of
    the set value to ten times that. The learning rate: from a tenth of the set one to ten times that.
    """
    spans = {}
    for name, span in limits.items():
        value = cfg.get(name)  # None for sums
        if not is_number(value) or span[0] not in "[(":
            continue  # a wrong value, such as K=1e4, is refused with the lowest trial
        low, high = (float(end) for end in span[1:-1].split(","))
        if high - low <= WIDE:
            margin = (high - low) / 100  # keeps off an end that does not belong to the range
            low, high = low + margin * (span[0] == "("), high - margin * (span[-1] == ")")
            spans[name] = f"{low:g}:{high:g}"
        elif value > 0:
            spans[name] = f"{value / 2:g}:{10 * value:g}:log"
    rate = OmegaConf.select(cfg, LEARNING_RATE)
    if is_number(rate) and rate:
        spans[LEARNING_RATE] = f"{rate / 10:g}:{rate * 10:g}:log"
    return spans


def refuse_test_split(val_fraction: Any, images: int | None = None) -> None:
    """Refuse to choose without a validation split."""
    if val_fraction == 0 or images == 0:
        raise UserError(
            f"data.val_fraction={val_fraction} leaves no image for validation, and nothing may be chosen by the test "
            "split; give a larger one"
        )


def typed(part: Range, cfg: DictConfig, overrides: Sequence[str]) -> Range:
    """Return the range, of whole numbers where the setting is one."""
    value = OmegaConf.select(cfg, part.name)
    if not is_number(value):
        settings = plain(cfg)
        method = next((override for override in overrides if override.startswith("method=")), "the default method")
        numbers = {name for name, value in leaves(settings) if is_number(value)}
        similar = [name for name in (OTHER_NAMES.get(part.name, ""), *nearest(part.name, settings)) if name in numbers]
        own = [name for name in knobs(settings) if name in numbers]
        meant = f"; did you mean {similar[0]}?" if similar else f"; its knobs are {', '.join(own)}" if own else ""
        raise UserError(f"there is no number '{part.name}' with {method} that could be searched{meant}")
    limits = limits_of(part.name, RANGES | plain(cfg.spec.ranges))
    whole = isinstance(value, int) if limits is None else limits.startswith("whole")
    if whole and not (isinstance(part.low, int) and isinstance(part.high, int)):
        raise UserError(f"--range {part}: {part.name} is a whole number")
    return part if whole else replace(part, low=float(part.low), high=float(part.high))
