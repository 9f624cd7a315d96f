"""The teacher of a run: found in the store, else trained once; tested before anything is distilled from it.

A teacher is a finished run. Usually it learnt from the labels; in a chain (teacher assistants, generations) it was
taught itself, by a method and a teacher of its own, and its key in the store holds both.
"""

import gc
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kd.app import identity
from kd.app.build import Builder, Plan
from kd.app.compose import network_names, network_text, plain
from kd.app.train import train_network
from kd.deploy.card import write_card
from kd.errors import DivergedError, UserError
from kd.runs.given import TEACHER_WEIGHTS
from kd.runs.predictions import near_chance
from kd.runs.results import FILE, Result, read
from kd.runs.weights import read_weights
from kd.teachers.frozen import FrozenTeacher, check_origin, joined, load, verify
from kd.teachers.store import find_or_train
from kd.training.also_test import measure_teacher
from kd.training.memory import hint_of_cudnn, is_out_of_memory

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A teacher that is ready to teach."""

    teacher: FrozenTeacher
    directory: Path
    """Where its weights lie; of several, the first one's."""
    accuracy: float
    """On the test split, in [0, 1]; of several, together."""
    name: str
    """Name of its network, for the record."""
    warnings: list[str]
    """What a reader of the figures of its students should know."""


def prepare_teacher(build: Builder, record: Result) -> Prepared | None:
    """The teacher of the run's student: the last of its chain; None for a run without."""
    try:
        return _prepared(build, record, len(build.chain))
    except (RuntimeError, MemoryError) as error:  # of training there is a message already
        if not is_out_of_memory(error):
            raise
        on_gpu = build.device.type != "cpu"
        other = ", choose another GPU by trainer.devices=[NUMBER], write trainer=cpu" if on_gpu else ""
        raise UserError(
            f"{build.device} has no memory to test the teacher; end what else runs there{other}, or give "
            f"data.in_memory=false{hint_of_cudnn(error)}"
        ) from error


def _prepared(build: Builder, record: Result, level: int) -> Prepared | None:
    """The teacher at one level of the chain: 0 for those that learnt from the labels, or from weights on disk."""
    plans = build.first_teachers if level == 0 else [build.chain[level - 1]]
    if not plans:
        return None
    given = build.given_weights if level == 0 else []
    entries = [] if given else [_find(build, plan, record, level) for plan in plans]
    paths = given or [entry / TEACHER_WEIGHTS for entry in entries]
    networks = [plain(plan.network) for plan in plans]
    nets = [build.net(network) for network in networks]
    warnings: list[str] = []
    if given:
        origins = [read_weights(path)[1] for path in paths]
        for path, metadata, plan, net in zip(paths, origins, plans, nets, strict=True):
            warnings += check_origin(metadata, build.data_as_shown(plan, net), path)
            if metadata.get("trial"):
                warnings.append(f"{path} comes from a trial: {metadata['trial']}")
        claims = [_claim_of_file(build, metadata) for metadata in origins]
        advice = [_settings_of(metadata, plan) for metadata, plan in zip(origins, plans, strict=True)]
    else:
        claims, advice = [_claim(build, entry) for entry in entries], [""] * len(entries)
    test = build.data(plans[0]).test_dataloader(build.device)
    teachers = [
        load(net, path, build.inference_copy, partial(identity.teacher_id, network=network))
        for net, network, path in zip(nets, networks, paths, strict=True)
    ]
    measured = [
        verify(teacher, test, claim, path, hint)
        for teacher, claim, path, hint in zip(teachers, claims, paths, advice, strict=True)
    ]
    together = networks[0] if all(network == networks[0] for network in networks) else {"networks": networks}
    name = partial(identity.teacher_id, network=together)
    teacher = joined(teachers, build.inference_copy, name, build.probe_images)
    accuracy = measured[0] if claims[0] is None else claims[0]
    if len(teachers) > 1:
        accuracy = teacher.accuracy(test)
        log.info("the %d teachers together: %.2f %% on the test split", len(teachers), 100 * accuracy)
    warnings += _near_chance(build, measured, accuracy)
    for warning in warnings:
        log.warning("%s", warning)
    return Prepared(teacher, paths[0].parent, accuracy, _name(build, level, len(build.first_teachers)), warnings)


def _find(build: Builder, plan: Plan, record: Result, level: int) -> Path:
    def train_it(directory: Path) -> None:
        below = _prepared(build, record, level - 1) if level else None
        own = Result(
            method="teacher" if plan.method is None else record.method,
            knobs={} if plan.method is None else record.knobs,
            taught=plan.method is not None,
            seed=plan.seed,
            teacher=_name(build, level, count=len(build.first_teachers) if level else 1),
            dataset=record.dataset,
            data_id=record.data_id,
            epochs=plan.recipe.epochs,
            git=record.git,
            versions=record.versions,
            date=record.date,
            status="running",
        )
        teacher = None if below is None else below.teacher
        try:
            write_card(train_network(build, plan, teacher, own, directory), directory)
        except DivergedError as error:
            if level or "student" not in build.networks:  # by the run's own method and recipe, or all that it is
                raise
            raise UserError(str(error)) from error  # which is no fault of the run that wanted the teacher
        if build.device.type != "cpu":
            gc.collect()  # a Trainer refers to itself: its images would stay on the device beside the student's

    return find_or_train(build.store, _key(build, plan, level), train_it)


def _key(build: Builder, plan: Plan, level: int) -> dict[str, Any]:
    """The plan's key in the store, which holds the keys of those that taught it."""
    if plan.method is None:
        return build.key(plan, None)
    if level == 1 and build.given_weights:
        return build.key(plan, build.given_id())
    below = build.first_teachers if level == 1 else [build.chain[level - 2]]
    return build.key(plan, [_key(build, link, level - 1) for link in below])


def _claim(build: Builder, entry: Path) -> float | None:
    """The accuracy that an entry is on record with, if it was tested on all of the test split."""
    record = read(entry / FILE)
    return record.test_acc if record.test_images in (None, len(build.images.test_y)) else None


def _claim_of_file(build: Builder, metadata: dict[str, Any]) -> float | None:
    """The accuracy that given weights say they have on all of this test split, if they do."""
    whole = metadata.get("data_id") == build.images.id and metadata.get("test_images") == len(build.images.test_y)
    claim = metadata.get("test_acc")
    return claim if whole and isinstance(claim, float) and 0 <= claim <= 1 else None


def _settings_of(metadata: dict[str, Any], plan: Plan) -> str:
    """What to do about given weights that do not reach their accuracy: they may be another network of equal shapes."""
    model = metadata.get("model")
    there, here = model if isinstance(model, dict) else {}, plain(plan.network)
    differing = [
        f"teacher.{name}={value}"
        for name, value in there.items()
        if here.get(name, value) != value and name not in ("_target_", "target", "pretrained")
        if re.fullmatch(r"[\w.,\[\] -]*", str(value))  # else a stranger's text would be advice
    ]
    return f"give {' '.join(differing)}" if differing else "the file is damaged; give another teacher_weights"


def _near_chance(build: Builder, measured: list[float], accuracy: float) -> list[str]:
    """Warnings of teachers that know little or nothing of the images; each of several is measured, and all together."""
    names = [f"teacher {i} of {len(measured)}" for i in range(1, len(measured) + 1)] if len(measured) > 1 else []
    labels = build.images.test_y.numpy()
    found = [
        (name, share, near_chance(share, labels))
        for name, share in [*zip(names, measured, strict=False), ("the teacher", accuracy)]
    ]
    return [f"{name} reaches {100 * share:.1f} %, {chance}" for name, share, chance in found if chance is not None]


def _name(build: Builder, level: int, count: int) -> str:
    """The networks from the first teachers to this one, as in "cnn32", "3 x cnn32" or "cnn32 > scale=24"."""
    plans, names = build.first_teachers[:count], []
    if plans:
        counts = Counter(_network_name(build, plan.network) for plan in plans)
        names = [" + ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items())]
    base: dict[str, Any] = build.settings["student"]
    for plan in build.chain[:level]:
        changes = [f"{key}={value}" for key, value in plan.network.items() if base.get(key) != value]
        names.append(" ".join(changes) or build.command.choices["student"])
    return " > ".join(names)


def _network_name(build: Builder, network: Mapping[str, Any]) -> str:
    """The name that was chosen, or, of a network that its file of weights describes, that of its settings or class."""
    own: dict[str, Any] = plain(network)
    if own == build.settings["teacher"]:
        return build.command.choices["teacher"]
    text = network_text(own)
    return network_names().get(text, text)


def also_tested(build: Builder, prepared: Prepared, record: Result) -> Result:
    """The record with the teacher's figures on the further test sets; those in the store are without."""
    if not build.also_test:
        return record
    data = build.data(build.first_teachers[0])
    measured = measure_teacher(prepared.teacher, build.also_test, data, build.device)
    return replace(record, also_test_acc=measured.acc, also_test_nll=measured.nll)
