"""The training of one network of a run, student or teacher: seed, network, module, data, fit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback, seed_everything
from omegaconf import MISSING

from kd.app.build import Builder, Plan
from kd.models.output import multiply_adds, parameter_count
from kd.runs.results import Result
from kd.teachers.frozen import FrozenTeacher
from kd.training.ema import WeightAverage
from kd.training.fit import train


def train_network(
    build: Builder,
    plan: Plan,
    taught_by: FrozenTeacher | None,
    record: Result,
    directory: Path,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train one network of a run and leave its run directory; see `kd.training.fit.train`."""
    seed_everything(plan.initial_seed, verbose=False)
    net = build.net(plan.network)
    build.begin(net)
    module = build.module(plan, net, taught_by)
    count = parameter_count(module.inference_net)
    record = replace(
        record, multiply_adds=multiply_adds(module.inference_net, build.images.image_size, build.images.channels)
    )
    averaged = [] if plan.recipe.ema is None else [WeightAverage(plan.recipe.ema)]
    counted = replace(record, student_params=count) if record.student else replace(record, teacher_params=count)
    return train(
        module,
        build.data(plan),
        counted,
        directory,
        weights=plan.weights,
        metadata=build.metadata(plan),
        make_trainer=build.trainer(plan),
        logger=build.logger(directory),
        callbacks=[*averaged, *callbacks, *build.callbacks()],
        timed=plan.kept_as_teacher or build.timed,  # while a teacher is trained the rest of a cohort waits
        single_process=build.single_process(plan),
        settings=None if plan.kept_as_teacher else _shown(build.settings),
        seed=plan.initial_seed,
    )


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run without those that have no value, and without what a method's file declares."""
    return {name: value for name, value in settings.items() if name != "spec" and value != MISSING}
