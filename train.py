"""Train a network, or distil a student from a teacher: `python train.py --help`.

torch and Lightning are imported once there is something to train: help and mistakes in a command answer at once.
"""

import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.app import cli
from kd.app.check import AFTERWARDS, KNOBS, WHERE, check, decisive, fingerprint, variant, without
from kd.errors import UserError
from kd.hashing import digest
from kd.runs.results import FILE, Result, read
from kd.runs.status import first_process, git_revision, recorded, versions

CONF = Path(__file__).resolve().parent / "conf"
log = logging.getLogger("kd")

# Threads that spin for long while they wait make two busy cores many times slower than one, and those that do not spin
# at all are late at every operation: so a few microseconds it is. libgomp reads this when it is loaded, with torch.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ |= WAITING


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One run. Returns the last epoch's validation accuracy, for whatever searches over runs."""
    return job(cfg)


def job(cfg: DictConfig, others: Any = None) -> float | None:
    """One run, alone or with others in the same process, see `kd.sweeps.cohort`."""
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # who wants Slurm asks for it
    directory = Path(HydraConfig.get().runtime.output_dir)
    multirun = HydraConfig.get().mode is RunMode.MULTIRUN

    def work(record: Result) -> Result:
        refuse_mistakes(cfg, HydraConfig.get().launcher._target_ if multirun else None)
        return run(cfg, record, directory, others=others)

    result = recorded(describe(cfg), directory, work, single=not multirun)
    if first_process() and not multirun:
        from rich.console import Console

        from kd.report.tables import single

        Console().print(single(result), f"[dim]{directory}[/dim]", sep="\n")
    return result.val_acc


def run(cfg: DictConfig, record: Result, directory: Path, watchers: Sequence[Any] = (), others: Any = None) -> Result:
    """Data, then the teacher if one is wanted, then the student if one is wanted, whom the watchers watch."""
    from lightning import seed_everything

    from kd.training.fit import parameter_count, train
    from kd.training.modules import Classifier, Distiller

    make = Workshop(cfg, others)
    make.rehearsal(directory)
    record = replace(record, dataset=make.images.name, data_id=make.images.id)

    teacher = None
    if "teacher" in cfg.roles:
        teacher, entry, accuracy = make.others.once("teacher", lambda: find_teacher(make, record))
        record = replace(
            record, teacher_id=teacher.id, teacher_params=parameter_count(teacher.net), teacher_test_acc=accuracy
        )
        if "student" not in cfg.roles:
            from kd.teachers.store import adopt

            return adopt(entry, record, directory)

    log.info("training the student, method %s, seed %s", record.method, cfg.seed)
    seed_everything(cfg.seed, verbose=False)
    student = make.net(cfg.student)
    parts = make.parts(make.speed.trained(student), cfg.recipe)
    stored = None
    if teacher is None:
        module = Classifier(**parts)
    else:
        method = make.method(student, teacher.net)
        stored = make.others.once("logits", lambda: make.stored_logits(teacher)) if method.logits_only else None
        module = Distiller(**parts, teacher=make.others.hearing(stored or teacher), method=method)
    result = train(
        module,
        make.data(cfg.recipe, cfg.data.order_seed, make.others),
        replace(record, student_params=parameter_count(student)),
        directory,
        weights="student.safetensors",
        metadata=make.metadata(cfg.student, cfg.recipe, cfg.seed, plain(cfg.method)),
        make_trainer=make.trainer(cfg.recipe),
        logger=make.logger(directory),
        watchers=[*watchers, *make.others.watchers()],
        timed=make.others.alone,
    )
    if stored is not None:
        log.info(stored.summary())
    return result


def find_teacher(make: "Workshop", record: Result) -> tuple[Any, Path, float]:
    """The frozen teacher, or several as one, measured before anything builds on it.

    Also the directory that the first one lies in, and the test accuracy of all together.
    """
    from kd.teachers.frozen import joined, load, verify
    from kd.teachers.store import WEIGHTS, find_or_train

    cfg = make.cfg
    test = make.data(cfg.teacher_recipe, cfg.teacher_seed).test_dataloader(make.device)
    claims: list[float | None] = [None]
    if cfg.teacher_weights is not None:
        paths = [Path(cfg.teacher_weights).expanduser()]
    else:
        store = Path(cfg.teacher_store).expanduser()
        entries = [
            find_or_train(store, make.teacher_key(seed), lambda to, seed=seed: train_teacher(make, record, to, seed))
            for seed in make.teacher_seeds
        ]
        paths = [entry / WEIGHTS for entry in entries]
        claims = [read(entry / FILE).test_acc for entry in entries]
    nets = [make.net(cfg.teacher) for _ in paths]
    teachers = [load(net, path, make.frozen) for net, path in zip(nets, paths, strict=True)]
    measured = [verify(one, test, claim, path) for one, claim, path in zip(teachers, claims, paths, strict=True)]
    teacher, accuracy = joined(teachers, make.frozen), measured[0] if claims[0] is None else claims[0]
    if len(teachers) > 1:
        accuracy = teacher.accuracy(test)
        log.info("the %d teachers together: %.2f %% on the test split", len(teachers), 100 * accuracy)
    return teacher, paths[0].parent, accuracy


def train_teacher(make: "Workshop", record: Result, directory: Path, seed: int) -> None:
    """Train one alone on one device, whatever the student's trainer: other ranks and jobs find it, or wait for it."""
    from lightning import seed_everything

    from kd.teachers.store import WEIGHTS
    from kd.training.fit import parameter_count, train
    from kd.training.modules import Classifier

    cfg = make.cfg
    seed_everything(seed, verbose=False)
    net = make.net(cfg.teacher)
    own = Result(
        method="teacher",
        seed=seed,
        teacher=HydraConfig.get().runtime.choices.teacher,
        teacher_params=parameter_count(net),
        dataset=record.dataset,
        data_id=record.data_id,
        epochs=cfg.teacher_recipe.epochs,
        git=record.git,
        versions=record.versions,
        date=record.date,
        status="running",
    )
    train(
        Classifier(**make.parts(make.speed.trained(net), cfg.teacher_recipe)),
        make.data(cfg.teacher_recipe, seed),
        own,
        directory,
        weights=WEIGHTS,
        metadata=make.metadata(cfg.teacher, cfg.teacher_recipe, seed, method=None),
        make_trainer=make.trainer(cfg.teacher_recipe, devices=1, num_nodes=1, strategy="auto"),
        logger=make.logger(directory),
        watchers=make.others.watchers(),
    )


class Workshop:
    """Makes what a run needs from its configuration: the only place that instantiates."""

    def __init__(self, cfg: DictConfig, others: Any = None) -> None:
        from kd.sweeps.cohort import Alone

        self.cfg, self.others = cfg, others or Alone()
        self.speed = self._new(cfg.speed)
        self.speed.settle(cfg.threads, self.device)
        self.images = self.others.once("images", lambda: self._new(cfg.data.source))

    def net(self, node: DictConfig) -> Any:
        images = self.images
        return self._new(node, num_classes=len(images.classes), image_size=images.train_x.shape[-1])

    def frozen(self, net: Any) -> Any:
        return self.speed.frozen(net, half=self.precision.startswith("bf16"))

    def stored_logits(self, teacher: Any) -> Any:
        """The teacher with its logits kept in a file; None, with the reason in the log, if that cannot be."""
        from kd.teachers.logit_cache import open_logits

        cfg, images = self.cfg, self.images
        if not self.speed.stores_logits(str(cfg.trainer.accelerator)):
            return None
        key = {
            "format": 1,
            "teacher": teacher.id,
            "data": images.id,
            "crop": cfg.data.augment.crop,
            "folded": self.speed.fold_teacher,
            "precision": self.precision,
        }
        return open_logits(
            teacher,
            Path(cfg.teacher_store).expanduser() / "logits",
            key,
            images=len(images.train_y),
            views=self._new(cfg.data.augment).views,
            classes=len(images.classes),
            limit_gb=self.speed.stored_logits_gb,
        )

    @property
    def device(self) -> Any:
        from kd.training.performance import choose_device

        return choose_device(str(self.cfg.trainer.accelerator), self.cfg.trainer.devices)

    @property
    def precision(self) -> str:
        from kd.training.performance import choose_precision

        return choose_precision(str(self.cfg.trainer.precision), str(self.cfg.trainer.accelerator))

    def method(self, student: Any, teacher: Any) -> Any:
        from kd.models.output import probe

        size = self.images.train_x.shape[-1]
        method = self._new(self.cfg.method)
        with explained():
            method.build(probe(student, size), probe(teacher, size))
        return method

    def parts(self, net: Any, recipe: DictConfig) -> dict[str, Any]:
        """What either LightningModule is made of."""
        return {
            "net": net,
            "num_classes": len(self.images.classes),
            "optimizer": self._new(recipe.optimizer),
            "schedule": self._new(recipe.schedule),
            "label_smoothing": recipe.label_smoothing,
        }

    def data(self, recipe: DictConfig, seed: int, others: Any = None) -> Any:
        from kd.data.module import DataModule

        data = self.cfg.data
        augment = self._new(data.augment)
        return DataModule(
            self.images,
            data.val_fraction,
            data.split_seed,
            augment,
            recipe.batch_size,
            seed,
            self.speed.memory_format,
            data.in_memory,
            data.workers,
            others,
        )

    def trainer(self, recipe: DictConfig, **where: Any) -> Any:
        """A factory that is still to be given callbacks, logger and directory."""
        decided = {
            "max_epochs": recipe.epochs,
            "gradient_clip_val": recipe.clip_norm,
            "precision": self.precision,
            **where,
        }
        return self._new(self.cfg.trainer, _partial_=True, _convert_="all", **decided)

    def logger(self, directory: Path) -> Any:
        return None if self.cfg.logger is None else self._new(self.cfg.logger, save_dir=str(directory))

    def rehearsal(self, directory: Path) -> None:
        """Build everything once and throw it away: a mistake in the last knob shows before a teacher is trained."""

        from kd.models.ensemble import Ensemble
        from kd.training.modules import Classifier
        from kd.training.optim import parameter_groups

        cfg = self.cfg
        for role, node, recipe in (("teacher", cfg.teacher, cfg.teacher_recipe), ("student", cfg.student, cfg.recipe)):
            if role in cfg.roles:
                parts = self.parts(self.net(node), recipe)
                with explained():
                    Classifier(**parts)
                    parts["schedule"](parts["optimizer"](parameter_groups(parts["net"])), 100)
                with explained():
                    self.data(recipe, cfg.seed)
                with explained():
                    self.trainer(recipe)(logger=False)
        self.logger(directory)
        if cfg.method is not None:
            self.method(self.net(cfg.student), Ensemble(self.net(cfg.teacher) for _ in self.teacher_seeds))

    @property
    def teacher_seeds(self) -> list[int]:
        """Of those who teach a student together; a run of the teacher alone is of one."""
        first, count = self.cfg.teacher_seed, self.cfg.ensemble if "student" in self.cfg.roles else 1
        return list(range(first, first + count))

    def teacher_key(self, seed: int) -> dict[str, Any]:
        """All that decides what the teacher of that seed becomes."""
        cfg = self.cfg
        return {
            "format": 1,
            "model": plain(cfg.teacher),
            "data": {
                "id": self.images.id,
                "val_fraction": cfg.data.val_fraction,
                "split_seed": cfg.data.split_seed,
                "augment": plain(cfg.data.augment),
            },
            "recipe": plain(cfg.teacher_recipe),
            "speed": without(plain(cfg.speed), AFTERWARDS),
            "seed": seed,
            "trainer": without(plain(cfg.trainer), WHERE),
        }

    def metadata(self, node: DictConfig, recipe: DictConfig, seed: int, method: Any) -> dict[str, Any]:
        """What somebody who finds the weights without this run has to know to use them."""
        images = self.images
        mean, std = images.mean_std
        return {
            "model": plain(node),
            "num_classes": len(images.classes),
            "image_size": images.train_x.shape[-1],
            "classes": images.classes,
            "mean": mean,
            "std": std,
            "dataset": images.name,
            "data_id": images.id,
            "recipe": plain(recipe),
            "method": method,
            "seed": seed,
        }

    def _new(self, node: DictConfig, **more: Any) -> Any:
        with explained():
            return instantiate(node, **more)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what a constructor says about a setting into a message for whoever set it."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except InstantiationException as error:
        raise UserError(str(error.__cause__ or error)) from error
    except TypeError as error:
        raise UserError(f"a setting has a value of the wrong type: {error}") from error
    except (ValueError, MisconfigurationException) as error:
        raise UserError(str(error)) from error


def describe(cfg: DictConfig) -> Result:
    """The result record as far as it is known before anything has happened."""
    settings = plain(cfg)
    choices = HydraConfig.get().runtime.choices
    learner = cfg.recipe if "student" in cfg.roles else cfg.teacher_recipe
    several = cfg.ensemble != 1 and "student" in cfg.roles
    teacher = f"{cfg.ensemble} x {choices.teacher}" if several else choices.teacher
    return Result(
        method=choices.method,
        **{knob: number(cfg[knob], None) for knob in KNOBS if knob in cfg},
        seed=number(cfg.seed, -1),
        student=choices.student if "student" in cfg.roles else None,
        teacher=teacher if "teacher" in cfg.roles else None,
        dataset=choices.data,
        epochs=number(learner.epochs, 0),
        git=git_revision(),
        versions=versions(),
        status="running",
        command=shlex.join(HydraConfig.get().overrides.task),
        variant=variant(HydraConfig.get().overrides.task, cfg.roles),
        fingerprint=fingerprint(settings),
        group=digest(decisive(plain(OmegaConf.merge(cfg, {"seed": 0})))),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def number(value: Any, otherwise: Any) -> Any:
    """What the user may have set to anything, as far as a record can hold it: the run is about to fail otherwise."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def refuse_mistakes(cfg: DictConfig, launcher: str | None) -> None:
    """Say what is wrong with the settings before anything is loaded."""
    run_wide = yaml.safe_load((CONF / "config.yaml").read_text())
    read = OmegaConf.to_yaml(cfg.method) if cfg.method is not None else ""
    check(plain(cfg), run_wide, read, launcher)


def plain(node: Any) -> Any:
    """A configuration node as plain values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def console() -> None:
    """The program: every mistake in one line and exit code 1, unless HYDRA_FULL_ERROR=1 asks for the traceback."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(cli.help_text(CONF))
        return
    # A data-parallel run starts its further processes with the value that is set two lines below.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" and "LOCAL_RANK" not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped is stopped: resumable, exit code 130
    try:
        sys.argv[1:] = cli.expand_resume(sys.argv[1:])
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if wants_traceback:
            raise
        print(f"error: {cli.explain(error, sys.argv[1:])}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    console()
