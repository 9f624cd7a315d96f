"""From a configuration to objects: the one place that instantiates."""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from kd.app import identity
from kd.app.check import check_method, check_without_maps, links
from kd.app.compose import Command, plain
from kd.app.explain import user_errors
from kd.app.machine import check_devices, check_limits, check_memory, check_sync_batchnorm, check_threads
from kd.app.trainer import several_processes
from kd.data.also_test import AlsoTest, also_test
from kd.data.images import Images, require_classes, require_labelled
from kd.data.module import DataModule, Loader
from kd.data.resize import images_of_channels, images_of_size
from kd.errors import UserError
from kd.hashing import derive, digest
from kd.methods.base import Method, Pair, Teacher
from kd.models.ensemble import Ensemble
from kd.models.external import External, bind
from kd.models.output import parameter_count, probe, probe_images
from kd.runs.described import described_network, foreign_network
from kd.runs.given import STUDENT_WEIGHTS, TEACHER_WEIGHTS, given_paths, weights_file
from kd.runs.weights import begin_from, content_id, read_weights
from kd.teachers.frozen import FrozenTeacher, check_origin, fitted
from kd.teachers.logit_cache import RoundedLogits, StoredLogits, open_logits
from kd.training.callbacks import EpochBar
from kd.training.device import choose_device, choose_precision
from kd.training.memory import free_memory
from kd.training.modules import Classifier, Distiller, check_scaling
from kd.training.optim import parameter_groups
from kd.training.performance import Speed

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One network to train: architecture, recipe, seeds, method."""

    network: Mapping[str, Any]
    recipe: DictConfig
    seed: int
    """Seed of the initial weights and of dropout, see `initial_seed`."""
    data_seed: int
    """Seed of the order of the images, and of their views."""
    method: DictConfig | None = None
    """What it is taught with; None for the labels alone."""
    kept_as_teacher: bool = True
    """Whether it is trained for the store; else it is the student that the run is for."""
    stream: str | None = None
    """Name mixed into the seed; None where no network before it has weights of the same shapes."""

    @property
    def weights(self) -> str:
        """The name of the file that its weights go to."""
        return TEACHER_WEIGHTS if self.kept_as_teacher else STUDENT_WEIGHTS

    @property
    def initial_seed(self) -> int:
        """What the initial weights are drawn with: a student is not to begin as a teacher like it did."""
        return self.seed if self.stream is None else derive(self.stream, self.seed)


class Builder:
    """Makes what a run needs from its configuration.

    Args:
        command: the run.
    """

    def __init__(self, command: Command) -> None:
        self.command, self.cfg = command, command.cfg
        self.settings: dict[str, Any] = plain(command.cfg)
        self.stored: StoredLogits | None = None
        """The teacher's logits in a file, once a network is taught with them."""
        self.speed: Speed = self._new(self.cfg.speed)
        check_threads(self.cfg.threads)
        self.speed.configure_process(self.cfg.threads, self.device)

    # What a builder of several runs in one process overrides

    timed = True
    """Whether no other run shares this process, so that its time can be measured."""

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """Make what several runs of one process could have in common; here there is one run."""
        return make()

    def shared_teacher(self, teacher: Teacher) -> Teacher:
        """The teacher as the runs of one process use it."""
        return teacher

    def callbacks(self) -> list[Callback]:
        """Callbacks for every training of the run."""
        return [EpochBar()] if self.cfg.trainer.enable_progress_bar else []

    # What is to be trained

    @property
    def networks(self) -> list[str]:
        """Which of teacher and student take part."""
        return list(self.settings["spec"]["networks"])

    @property
    def wants_teacher(self) -> bool:
        """Whether a teacher is needed before the student is trained, or is all that is wanted."""
        return bool(self.first_teachers or self.chain)

    @property
    def student(self) -> Plan:
        cfg = self.cfg
        stream = self._stream("student", cfg.student, (*self.first_teachers, *self.chain))
        return Plan(cfg.student, cfg.recipe, cfg.seed, cfg.data.order_seed, cfg.method, False, stream)

    @property
    def first_teachers(self) -> list[Plan]:
        """The teachers that learn from the labels; several for an ensemble, none for a method that needs none."""
        cfg = self.cfg
        if "teacher" not in self.networks:
            return []
        count = cfg.ensemble if "student" in self.networks else 1
        networks = self.given_networks or [cfg.teacher] * count
        return [
            Plan(network, cfg.teacher_recipe, seed, seed) for seed, network in enumerate(networks, cfg.teacher_seed)
        ]

    @property
    def chain(self) -> list[Plan]:
        """The networks between teacher and student, each taught by the one before.

        Without a teacher the first one learns from the labels.
        """
        changes = links(self.settings["chain"]) if "student" in self.networks else []
        networks = [{**self.settings["student"], **change} for change in changes]
        seed = self.cfg.teacher_seed
        return [
            Plan(
                network,
                self.cfg.recipe,
                seed + place,
                seed + place,
                self.cfg.method if place or self.first_teachers else None,
                stream=self._stream("chain", network, self.first_teachers),
            )
            for place, network in enumerate(networks)
        ]

    @staticmethod
    def _stream(name: str, network: Any, before: Sequence[Plan]) -> str | None:
        """The stream of a network that others come before: its name if one of them has weights of the same shapes."""

        def shaping(node: Any) -> dict[str, Any]:
            return identity.without(plain(node), identity.SHAPELESS)

        return name if any(shaping(network) == shaping(plan.network) for plan in before) else None

    def key(self, plan: Plan, taught_by: list[dict[str, Any]] | str | None) -> dict[str, Any]:
        """All that decides what the network becomes, see `kd.app.identity.teacher_key`."""
        return identity.teacher_key(
            self.settings,
            self.images.id,
            identity.by_content(plain(plan.network)),
            plain(plan.recipe),
            plan.initial_seed,
            plain(plan.method),
            taught_by,
        )

    # Parts

    @cached_property
    def images(self) -> Images:
        images: Images = self.shared("images", self._images)
        require_classes(images)  # before a network is built for them
        return images

    def _images(self) -> Images:
        data = self.settings["data"]
        wanted = {name: data[name] for name in ("image_size", "channels") if data[name] is not None}
        # A source that takes a size, or a number of channels, decodes to it.
        taken = {name: value for name, value in wanted.items() if name in data["source"]}
        images: Images = self._new(self.cfg.data.source, **taken, _convert_="all")
        require_labelled(images)
        with user_errors():
            if "image_size" in wanted.keys() - taken.keys():
                images = images_of_size(images, wanted["image_size"])
            if "channels" in wanted.keys() - taken.keys():
                images = images_of_channels(images, int(wanted["channels"]))
        return images

    @cached_property
    def also_test(self) -> tuple[AlsoTest, ...]:
        """Further test sets of the student, or of a teacher that is all that is wanted."""
        paths, in_memory = self.settings["data"]["also_test"], self.cfg.data.in_memory
        with user_errors():
            return self.shared("further test sets", lambda: also_test(paths, self.images, in_memory))

    @property
    def device(self) -> torch.device:
        return choose_device(str(self.cfg.trainer.accelerator), self.cfg.trainer.devices)

    @property
    def precision(self) -> str:
        return choose_precision(str(self.cfg.trainer.precision), str(self.cfg.trainer.accelerator))

    @property
    def store(self) -> Path:
        """The directory of all teachers."""
        return Path(os.path.expanduser(self.cfg.teacher_store))

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of networks that come from the data."""
        images = self.images
        shape: dict[str, Any] = {"num_classes": len(images.classes), "image_size": images.image_size}
        if images.channels != 3:  # a network that does not take it is for RGB
            shape["in_channels"] = images.channels
        return shape

    def net(self, node: Mapping[str, Any]) -> nn.Module:
        images = self.images
        net: nn.Module = self._new(node, **self.shape, _convert_="all")
        if not isinstance(net, External):
            return net
        with user_errors():
            return bind(net, images.classes, *images.mean_std)

    def begin(self, net: nn.Module) -> None:
        """Give a network that is to be trained the weights in a file, where its settings name one."""
        if isinstance(net, External) and net.pretrained is not None:
            path = weights_file(net.pretrained)
            for note in begin_from(net, path, net.head):
                log.info("%s: %s", path, note)

    @property
    def given_weights(self) -> list[Path]:
        """The files of the teachers that are given, several for an ensemble; none for teachers of the store."""
        given = given_paths(self.settings["teacher_weights"]) if "teacher" in self.networks else []
        return [weights_file(path) for path in given]

    @cached_property
    def given_networks(self) -> list[Mapping[str, Any]]:
        """The networks of the given teachers: as the files say; where one says nothing, the teacher of the command.

        If all files say something, a teacher that the command chooses takes the place of all.
        """
        chosen = any(re.match(r"[+~]*teacher[.=]", override) for override in self.command.overrides)
        described = [self._described(path, chosen) for path in self.given_weights]
        if chosen and None not in described:
            return [self.cfg.teacher] * len(described)
        return [network or self.cfg.teacher for network in described]

    def _described(self, path: Path, chosen: bool) -> dict[str, Any] | None:
        """The network that a file of weights says it is of; None if it says nothing."""
        tensors, metadata = read_weights(path)
        try:
            network = described_network(tensors, metadata, self.shape, path)
        except UserError:
            if chosen:
                return None
            raise
        foreign = foreign_network(metadata)
        if foreign and not chosen and metadata["model"]["_target_"] != self.settings["teacher"]["_target_"]:
            advice = f"if you trust who made it, give {foreign}, and its other settings"
            raise UserError(f"{path} is of a network of other code; {advice}")
        return network

    def given_id(self) -> str:
        """What names the teachers that are given, in the keys of those that they teach."""
        contents = [content_id(read_weights(path)[0]) for path in self.given_weights]
        found = zip(contents, self.given_networks, strict=True)
        ids = [identity.teacher_id(content, plain(network)) for content, network in found]
        return ids[0] if len(ids) == 1 else digest(ids)

    @property
    def probe_images(self) -> torch.Tensor:
        """Images that show what a network makes of those of this run."""
        return probe_images(self.images.image_size, self.images.channels)

    def data_as_shown(self, plan: Plan, net: nn.Module) -> dict[str, Any]:
        """The metadata of this run's data, as they are shown to this network of the plan."""
        return {**self.metadata(plan), **(net.view if isinstance(net, External) else {})}

    def data(self, plan: Plan) -> DataModule:
        data = self.cfg.data
        return DataModule(
            self.images,
            val_fraction=data.val_fraction,
            split_seed=data.split_seed,
            augment=self._new(data.augment),
            batch_size=plan.recipe.batch_size,
            seed=plan.data_seed,
            memory_format=self.speed.memory_format,
            in_memory=data.in_memory,
            workers=data.workers,
            fraction=data.fraction,
            noise=data.noise,
            also_test=() if plan.kept_as_teacher else self.also_test,
            balance=data.balance,
        )

    def inference_copy(self, net: nn.Module) -> nn.Module:
        """A copy of a trained network that is faster, for a teacher."""
        return self.speed.prepare_teacher(net, half=self.precision.startswith("bf16"))

    def method(self, plan: Plan, student: nn.Module, teacher: nn.Module | None) -> Method:
        """The plan's method, set up for this student and teacher."""
        method: Method = self._new(plan.method)
        if not isinstance(method, Method):
            raise UserError(
                f"method._target_={plain(plan.method)['_target_']} makes no kd.Method, see docs/extending.md"
            )
        mixes = self._new(self.cfg.data.augment).mixes
        smoothing = plan.recipe.label_smoothing
        check_method(method, mixes, self.cfg.data.balance, smoothing, teacher is not None)
        images = self.probe_images
        taught_by = None if teacher is None else probe(teacher, images)
        if taught_by is not None and not taught_by.features:
            check_without_maps(method, several=isinstance(teacher, Ensemble))
        with user_errors():
            pair = Pair(
                student=probe(student, images),
                teacher=taught_by,
                labels=self.data(plan).labels,
                num_classes=len(self.images.classes),
                student_net=student,
                teacher_net=teacher,
                new_student=lambda: self.speed.prepare_student(self.net(plan.network)),
                images=images,
            )
            method.setup(pair)
        return method

    def module(self, plan: Plan, net: nn.Module, teacher: FrozenTeacher | None) -> Classifier:
        """The LightningModule that trains the network."""
        parts = {
            "net": self.speed.prepare_student(net),
            "num_classes": len(self.images.classes),
            "optimizer": self._new(plan.recipe.optimizer),
            "schedule": self._new(plan.recipe.schedule),
            "decay_all": plan.recipe.decay_all,
        }
        if plan.method is None:
            return Classifier(**parts, label_smoothing=plan.recipe.label_smoothing)
        method = self.method(plan, net, None if teacher is None else teacher.net)
        return Distiller(**parts, method=method, teacher=self.teacher_for(method, teacher))

    def teacher_for(self, method: Method, teacher: FrozenTeacher | None) -> Teacher | None:
        """The teacher in the form that is fastest for a method: with stored logits, where these suffice."""
        if teacher is None:
            return None
        stored = None
        if method.stored_logits_suffice:
            stored = self.shared(f"logits of {teacher.id}", lambda: self.stored_logits(teacher))
        self.stored = stored if isinstance(stored, StoredLogits) else None
        return self.shared_teacher(stored or teacher)

    def stored_logits(self, teacher: FrozenTeacher) -> RoundedLogits | None:
        """The teacher with its logits kept in a file, or rounded as if they were; None if its views have no number."""
        images = self.images
        if not self.speed.stores_logits(str(self.cfg.trainer.accelerator)):
            return None
        return open_logits(
            teacher,
            self.store / "logits",
            identity.logit_key(self.settings, images.id, teacher.id, self.precision),
            images=len(images.train_y),
            views=self._new(self.cfg.data.augment).views,
            classes=len(images.classes),
            limit_gb=self.speed.stored_logits_gb,
        )

    def trainer(self, plan: Plan) -> Callable[..., Trainer]:
        """A factory that is still to be given callbacks, logger and directory.

        What is kept as a teacher is trained on one device: other ranks and jobs find it, or wait for it. It is
        validated and tested on whole splits, whatever this run is limited to.
        """
        settings: dict[str, Any] = {
            "max_epochs": plan.recipe.epochs,
            "gradient_clip_val": plan.recipe.clip_norm,
            "precision": self.precision,
        }
        if plan.kept_as_teacher:
            index = self.device.index  # of a GPU, which may be any of them
            settings |= {"devices": 1 if index is None else [index], "num_nodes": 1, "strategy": "auto"}
            settings |= {name: 1.0 for name in identity.LIMITS if name in self.settings["trainer"]}
        make: Callable[..., Trainer] = self._new(self.cfg.trainer, _partial_=True, _convert_="all", **settings)
        return make

    def single_process(self, plan: Plan) -> bool:
        """Whether the plan's network is trained in this process alone."""
        return plan.kept_as_teacher or not several_processes(self.settings["trainer"])

    def logger(self, directory: Path) -> Logger | None:
        return None if self.cfg.logger is None else self._new(self.cfg.logger, save_dir=str(directory))

    def metadata(self, plan: Plan) -> dict[str, Any]:
        """All that is needed to use the weights without this run."""
        images = self.images
        mean, std = images.mean_std
        return {
            "model": identity.by_content(plain(plan.network)),
            "num_classes": len(images.classes),
            "image_size": images.image_size,
            "classes": images.classes,
            "mean": mean,
            "std": std,
            "dataset": images.name,
            "data_id": images.id,
            "recipe": plain(plan.recipe),
            "method": plain(plan.method),
            "seed": plan.seed,
        }

    def dry_run(self, directory: Path) -> None:
        """Build everything once and throw it away: a mistake in the last knob shows before a teacher is trained."""
        check_devices(self.settings["trainer"])
        _ = self.also_test  # loaded before a teacher is trained
        student = [self.student] if "student" in self.networks else []
        for plan in self.first_teachers:
            self._check_memory("teacher", plan)
        for plan in [*self.chain, *student]:
            self._check_memory("student", plan)  # whose settings a chain's networks have, too
        taught_by: nn.Module | None = None
        if self.first_teachers:
            nets = [self.net(plan.network) for plan in self.first_teachers]
            self._try(self.first_teachers[0], nets[0], None)
            for place, path in enumerate(self.given_weights):
                shown = self.data_as_shown(self.first_teachers[place], nets[place])
                nets[place], _, metadata, _ = fitted(nets[place], path)
                check_origin(metadata, shown, path)
            taught_by = nets[0] if len(nets) == 1 else Ensemble(nets, self.probe_images)
        for plan in [*self.chain, *student]:
            taught_by = self._try(plan, self.net(plan.network), taught_by)
        self.logger(directory)

    def _check_memory(self, name: str, plan: Plan) -> None:
        """Refuse a network that would take more memory than is free, before any of it is taken."""
        free, target = free_memory(), str(plan.network["_target_"])
        if free is None or not target.startswith("kd.models.") or target.startswith(External.__module__):
            return  # others may not be built without memory
        _ = self.images  # loaded outside
        with torch.device("meta"):
            count = parameter_count(self.net(plan.network))
        check_memory(name, plan.network, count, free, self.device)

    def _try(self, plan: Plan, net: nn.Module, taught_by: nn.Module | None) -> nn.Module:
        """Build all that trains a network; return the network that would be kept."""
        self.begin(net)
        with user_errors():
            schedule, factory = self._new(plan.recipe.schedule), self._new(plan.recipe.optimizer)
            classifier = Classifier(net, len(self.images.classes), factory, schedule, plan.recipe.label_smoothing)
            optimizer = factory(parameter_groups(classifier, plan.recipe.decay_all))
            schedule(optimizer, 100)
        with user_errors():
            data = self.data(plan)
            batches = {"train": data.steps_per_epoch, "test": len(data.test_dataloader().sampler)}
            if isinstance(held_out := data.val_dataloader(), Loader):
                batches["val"] = len(held_out.sampler)
            check_limits(self.settings["trainer"], batches)
        with user_errors():
            trainer = self.trainer(plan)(logger=False)
        check_scaling(optimizer, trainer)
        if self.settings["trainer"]["sync_batchnorm"] and not self.single_process(plan):
            check_sync_batchnorm(net)
        data.check_shares(trainer.world_size)
        return net if plan.method is None else self.method(plan, net, taught_by).inference_net(net)

    def _new(self, node: Any, **more: Any) -> Any:
        with user_errors():
            return instantiate(node, **more)
