"""Refuse wrong settings before anything is loaded, at once. No torch import.

Settings are plain values here, resolved: nested dictionaries as YAML has them.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from kd.app.compose import Command, parts, plain, run_wide
from kd.app.identity import SHORTHANDS
from kd.app.trainer import check_trainer
from kd.errors import UserError
from kd.ranges import KINDS, RANGES, SWITCH, TEXT, WHOLE_NUMBERS, require, require_sum
from kd.runs.given import given_paths, weights_file

if TYPE_CHECKING:
    from kd.methods.base import Method  # loads torch

MAY_BE_NULL = {"clip_norm", "cutmix", "ema", "head", "image_size", "mixup", "name", "policy", "pretrained", "size"}
MAY_BE_NULL |= {"strength", "student.stages", "target", "teacher.stages", "teacher_stages", "teacher_weights"}
MAY_BE_NULL |= {"gradient_norms", "threads", "data.channels", "data.source.channels"}

NODES = {
    **dict.fromkeys(("data", "recipe", "teacher_recipe"), False),
    **dict.fromkeys(("data.source", "data.augment", "student", "teacher", "trainer", "speed"), True),
    **{f"{recipe}.{part}": True for recipe in ("recipe", "teacher_recipe") for part in ("optimizer", "schedule")},
}
"""Settings that hold others, and whether they name the class that takes these, as `_target_`."""


HOLDERS = frozenset({name.partition(".")[0] for name in NODES} | {"logger", "method", "spec"})
"""Top-level settings that hold others."""

NUMBER = r"-?(?:inf|[\d.]+(?:e-?\d+)?)"


def check_command(command: Command) -> None:
    """Refuse what would otherwise surprise late, or never.

    Raises:
        UserError: for a number outside its range, a setting that nothing reads, settings that exclude each other.
        OmegaConfBaseException: for a setting that takes the value of one that is not there.
    """
    settings, given, launcher = plain(command.cfg), command.overrides, command.launcher
    read = OmegaConf.to_yaml(command.cfg)  # unresolved, so that it tells which knobs are used
    _check_nodes(settings)
    _check_spec(settings)
    check_trainer(settings["trainer"], launcher)
    _check_knobs(settings, read, given)
    _check_read(settings, read)
    _check_ranges(settings)
    _check_shorthands(settings, given)
    _check_teacher(settings, given)
    _check_chain(settings, read)
    _check_data(settings)
    if launcher is not None and launcher.endswith(".CohortLauncher") and "Wandb" in str(settings["logger"]):
        raise UserError("W&B takes one run at a time in a process; take another logger, or leave out the cohort")


def knobs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The method's own settings by name: those at the top level that not every run has."""
    return {
        name: _flat(value)
        for name, value in settings.items()
        if name not in run_wide() and not isinstance(value, dict) and value is not None
    }


def _flat(value: Any) -> Any:
    """A knob as a record holds it: dictionaries within a list, such as networks' settings, become text."""
    if not isinstance(value, list):
        return value
    return [
        " ".join(f"{name}={item}" for name, item in part.items()) if isinstance(part, dict) else part for part in value
    ]


def nearest(name: str, settings: Mapping[str, Any], extra: Iterable[str] = ()) -> list[str]:
    """Up to three settings whose names are like this one: the same last part first, then similar spelling."""
    known = [leaf for leaf, _ in leaves(settings) if not leaf.startswith("spec.")]
    known += [group for group, value in settings.items() if isinstance(value, dict) and group != "spec"]
    known += extra
    last = name.rpartition(".")[2]
    same = [leaf for leaf in known if leaf.rpartition(".")[2] == last]
    by_last = {leaf.rpartition(".")[2]: leaf for leaf in reversed(known)}
    similar = [leaf for leaf in known if leaf.lower() == name.lower()]
    similar += difflib.get_close_matches(name, known, 3, 0.65)
    similar += [by_last[part] for part in difflib.get_close_matches(last, by_last, 3, 0.65)]
    return list(dict.fromkeys([*sorted(same, key=len), *similar]))[:3]


def leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value that is not a dictionary, by its full name."""
    return ((name, value) for name, value in _nodes(settings) if not isinstance(value, dict))


def _nodes(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its full name, dictionaries themselves included."""
    for name, value in settings.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _nodes(value, f"{prefix}{name}.")


def _check_nodes(settings: dict[str, Any]) -> None:
    """Refuse a single value, or nothing, where several settings are."""
    for name, has_class in NODES.items():
        node: Any = settings
        for part in name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            shown = "null" if node is None else node
            raise UserError(
                f"{name}={shown}: {name} holds several settings; set them one by one, as in {name}.NAME=VALUE"
            )
        if has_class and not isinstance(node.get("_target_"), str):
            raise UserError(f"{name} has no _target_, the class that takes its settings; choose a file of its group")
    for name in ("logger", "method"):
        node = settings[name]
        if not (node is None or (isinstance(node, dict) and isinstance(node.get("_target_"), str))):
            raise UserError(f"{name}={settings[name]}: choose a file of conf/{name}, or set one of {name}.NAME=VALUE")


def _check_spec(settings: dict[str, Any]) -> None:
    """Refuse what a method's file declares wrongly."""
    networks, spans = settings["spec"]["networks"], settings["spec"]["ranges"]
    if not isinstance(networks, list) or not networks or not set(map(str, networks)) <= {"teacher", "student"}:
        raise UserError(f"spec.networks of this method's file must list teacher, student or both, got {networks}")
    if not isinstance(spans, dict):
        raise UserError(f"spec.ranges of this method's file must be ranges by knob, {{}} for none, got {spans}")
    for names, span in spans.items():
        missing = [name for name in names.split(" + ") if name not in settings]
        if missing and "." not in names:
            raise UserError(f"spec.ranges of this method's file has {names}, and there is no setting {missing[0]}")
        known = span in (SWITCH, TEXT, WHOLE_NUMBERS) or str(span).startswith("one of ")
        interval = rf"(whole )?[\[(]{NUMBER}, {NUMBER}[\])]"
        if not known and not (isinstance(span, str) and re.fullmatch(interval, span)):
            raise UserError(
                f"spec.ranges of this method's file: {names} must be as in '[0, 1]', '(0, inf)' or 'whole [1, inf)', "
                f"got {span}"
            )


def _check_knobs(settings: dict[str, Any], read: str, given: Iterable[str]) -> None:
    for override in given:
        name = override.lstrip("+~").partition("=")[0]
        if name.partition(".")[0] == "spec":
            raise UserError(f"{name} is not a setting: a method's file declares it for the programs that read it")
    method = settings["method"] or {}
    for name in settings.keys() - HOLDERS - run_wide():
        if isinstance(settings[name], dict | None) and not re.search(rf"\$\{{{re.escape(name)}[.}}]", read):
            raise UserError(_unread(name, settings))
    for name, value in knobs(settings).items():
        if name in method and str(_flat(method[name])) != str(value):
            raise UserError(f"method.{name} takes the value of {name}; give {name}={method[name]} instead")
        if f"${{{name}}}" not in read:
            if name in settings["spec"]["ranges"]:
                raise UserError(f"{name}={value}: what would read it has a value of its own; leave one of them out")
            raise UserError(f"{name}={value}: this method has no such knob, so nothing would come of it")
    smoothing = settings["recipe"].get("label_smoothing")
    if method.get("label_smoothing", smoothing) != smoothing:
        raise UserError("method.label_smoothing takes the value of recipe.label_smoothing; give that instead")
    if method and smoothing and "label_smoothing" not in method:
        raise UserError(f"recipe.label_smoothing={smoothing}: this method does not smooth labels; leave that out")
    for role in ("student", "teacher"):
        for name in ("num_classes", "image_size", "in_channels"):
            if name in settings[role]:
                raise UserError(f"{role}.{name} comes from the data; leave it out")
    if "save_dir" in (settings["logger"] or {}):
        raise UserError("logger.save_dir is the run's own directory; give hydra.run.dir instead")


def _unread(name: str, settings: dict[str, Any]) -> str:
    """The message that no code takes these settings, and what was probably meant."""
    if name in ("experiment", "debug"):
        return f"the file of {name}= has to begin with the line '# @package _global_'; without it nothing reads it"
    first, value = next(leaves({name: settings[name]}), (name, settings[name]))
    meant = [found for found in nearest(first, settings) if found.partition(".")[0] != name]
    return f"{first}={value}: nothing reads this setting" + (f"; did you mean {' or '.join(meant)}?" if meant else "")


def _check_read(settings: dict[str, Any], read: str) -> None:
    """Refuse a setting that no code takes and no other setting refers to."""
    for node, names in parts().items():
        for name in sorted(names - settings[node].keys()):
            group = "recipe" if node == "teacher_recipe" else node
            raise UserError(
                f"{node}.{name} is missing; have the file of {group}= inherit from ours, see docs/extending.md"
            )
        for name in settings[node].keys() - names:
            if f"${{{node}.{name}}}" not in read:
                similar = difflib.get_close_matches(name, names, 1)
                meant = f"; did you mean {node}.{similar[0]}?" if similar else ""
                raise UserError(f"{node}.{name}={settings[node][name]}: nothing reads this setting{meant}")


def _check_ranges(settings: dict[str, Any]) -> None:
    spans: dict[str, str] = settings["spec"]["ranges"]
    values = _nodes({name: value for name, value in settings.items() if name != "spec"})
    elsewhere = _checked_elsewhere(settings)
    for name, value in sorted(values, key=lambda node: node[0].count(".")):  # first what interpolations refer to
        kind = name.rpartition(".")[2]
        knob = kind if name == f"method.{kind}" else name  # which takes the knob's value
        span = spans.get(knob)
        if ".settings." not in name and not name.startswith(elsewhere):
            span = span or KINDS.get(name) or RANGES.get(kind) or KINDS.get(kind)
        if span is None or (value is None and {kind, name} & MAY_BE_NULL) or value == MISSING:
            continue  # MISSING: a shorthand that was not given
        try:
            require(name, value, span)
        except ValueError as error:
            raise UserError(str(error)) from error
    for names, span in spans.items():
        if " + " in names:
            try:
                require_sum(span, **{name: settings[name] for name in names.split(" + ")})
            except ValueError as error:
                raise UserError(str(error)) from error
    seeds = max(settings["ensemble"], len(links(settings["chain"])))
    try:
        require("teacher_seed", settings["teacher_seed"] + seeds - 1)
    except ValueError as error:
        raise UserError(f"{error}: {seeds} teachers have the seeds from teacher_seed on") from error


def _checked_elsewhere(settings: dict[str, Any]) -> tuple[str, ...]:
    """Prefixes of the settings that a class checks itself: of methods within `combine`, of transforms, of foreign code.

    By their last part they could be other settings, as `groups` of a network or `gamma` of a method.
    """
    nodes = {name: settings[name] for name in ("method", "student", "teacher")}
    nodes["data.source"] = settings["data"]["source"]
    foreign = [f"{name}." for name, node in nodes.items() if node and not node["_target_"].startswith("kd.")]
    return ("data.augment.transform.", "method.terms.", *foreign)


def _check_shorthands(settings: dict[str, Any], given: Iterable[str]) -> None:
    """A shorthand is for both recipes; one that has a value of its own, as in a preset, would pass over it silently."""
    names = {override.lstrip("+").partition("=")[0] for override in given}
    for name in SHORTHANDS.keys() & names:
        for role, recipe in (("student", "recipe"), ("teacher", "teacher_recipe")):
            target = f"{recipe}.{SHORTHANDS[name]}"
            reached = dict(leaves({recipe: settings[recipe]})).get(target)
            if role in settings["spec"]["networks"] and target not in names and reached != settings[name]:
                raise UserError(
                    f"{name}={settings[name]} does not reach {recipe}, which has a value of its own ({reached}); "
                    f"give {target}={settings[name]}, or leave {name} out"
                )


def _check_teacher(settings: dict[str, Any], given: Iterable[str]) -> None:
    weights = settings["teacher_weights"]
    if weights is None:
        return
    if "teacher" not in settings["spec"]["networks"]:
        if settings["chain"]:
            raise UserError(
                "teacher_weights is for methods that learn from a teacher; this chain begins with the labels"
            )
        return  # a sweep may have labels alone among methods that a given teacher teaches
    if settings["method"] is None:
        raise UserError("teacher_weights is for methods that learn from a teacher; method=teacher trains one")
    if settings["ensemble"] != 1:
        raise UserError("ensemble is for teachers of the store; several of your own are teacher_weights=[A,B]")
    # The seeds of a chain's networks come from that of the teacher.
    of_training = ("teacher_recipe",) if settings["chain"] else ("teacher_recipe", "teacher_seed")
    for override in given:
        if override.lstrip("+").partition("=")[0].rpartition("@")[2].startswith(of_training):
            raise UserError(
                f"{override} is for a teacher to be trained, and teacher_weights are trained; leave one out"
            )
    for path in given_paths(weights):
        if not weights_file(path).is_file():
            raise UserError(f"no weights at {path}")


def _check_data(settings: dict[str, Any]) -> None:
    for path in settings["data"]["also_test"]:
        if not os.path.isdir(os.path.expanduser(path)):
            raise UserError(f"data.also_test: no folder {path}")


def links(chain: Any) -> list[dict[str, Any]]:
    """The links of a chain, each the settings that differ from the student's."""
    found = [{}] * chain if isinstance(chain, int) and not isinstance(chain, bool) and 0 <= chain <= 100 else chain
    if not isinstance(found, list) or not all(isinstance(link, dict | None) for link in found):
        raise UserError(
            f"chain must be a whole number up to 100, or a list of settings such as [{{scale:24}}], got {chain}"
        )
    return [link or {} for link in found]


def _check_chain(settings: dict[str, Any], read: str) -> None:
    chain = links(settings["chain"])
    if not chain and "chain: ${" in read:
        raise UserError("this method is a chain of networks, and there is none in it; see --help for its knobs")
    if chain and settings["method"] is None:
        raise UserError("chain is for methods that learn from a teacher; this one does not")
    student = settings["student"]
    for link in chain:
        for name in link.keys() - student.keys():
            own = ", ".join(key for key in student if key != "_target_")
            raise UserError(f"chain: the student has no setting '{name}' that a link could differ in; it has {own}")


def check_method(method: "Method", mixes: Sequence[str], balance: str, smoothing: float, has_teacher: bool) -> None:
    """Refuse a method that cannot use what a run's data, recipe or chain make for it.

    Args:
        method: of the run.
        mixes: settings of `data.augment` that mix images.
        balance: `data.balance`.
        smoothing: `recipe.label_smoothing`.
        has_teacher: whether there is one.

    Raises:
        UserError: naming both, and what to write instead.
    """
    weights = "balance=weights makes a weight of it", "balance=sampling"
    if method.needs_labels and (mixes or balance == "weights"):
        name = type(method).__module__.rpartition(".")[2]
        does, instead = (f"augment.{mixes[0]} mixes two", f"augment.{mixes[0]}=null") if mixes else weights
        raise UserError(
            f"{name} needs the label of each image, and data.{does}; write data.{instead}, or choose a method that "
            "takes shares of classes"
        )
    if not method.reads_labels and balance == "weights":
        raise UserError(
            "this method reads no labels, or weighs them by 0, and data.balance=weights would weigh some more; write "
            "data.balance=sampling or none, give alpha, or choose another method"
        )
    if not method.reads_labels and smoothing:
        raise UserError(
            f"recipe.label_smoothing={smoothing}: this method reads no labels, or weighs them by 0; leave that out"
        )
    if has_teacher and not method.reads:
        raise UserError("this method reads nothing of a teacher: leave chain out, or choose another method")


def check_without_maps(method: "Method", several: bool) -> None:
    """Refuse a method that matches feature maps, of which the teacher has none.

    Args:
        method: of the run.
        several: whether it is an ensemble, of networks whose maps differ.

    Raises:
        UserError: with what to choose instead.
    """
    if not method.reads & {"features", "preacts"}:
        return
    lack, others = "the teacher has no feature maps", "a teacher with maps"
    if several:
        lack, others = "the teachers' feature maps differ in number or size", "teachers whose maps are alike"
    raise UserError(f"{lack}, and this method matches maps: choose one that reads logits or embeddings, or {others}")
