"""Trainings of `train.py` that take turns, and one that ends after a step. `benchmark.py` uses them."""

import os
from itertools import islice
from typing import Any

import lightning as L
from limits import Work
from steps import synchronize
from turns import Turns

from kd.app.build import Builder
from kd.app.compose import Command
from kd.data.images import Images


class PacedBuilder(Builder):
    """Builds what `train.py` builds, but with given images and a training that takes turns.

    Args:
        command: the run.
        images: the data set.
        turns: the turns, of which there are this many `rounds`.
        work: counts the first step, if given.
    """

    def __init__(self, command: Command, images: Images, turns: Turns, rounds: int, work: Work | None = None) -> None:
        super().__init__(command)
        self.given, self.turns, self.rounds, self.work = images, turns, rounds, work

    @property
    def images(self) -> Images:
        return self.given

    def callbacks(self) -> list[L.Callback]:
        return [Pace(self, self.turns, self.rounds, self.work)]


class Pace(L.Callback):
    """Makes a training take turns of steps alone.

    Where the teacher's logits are stored, those of all turns are stored beforehand. What comes between two epochs is
    not timed: the loops that this one is compared with neither validate nor write checkpoints.
    """

    def __init__(self, build: Builder, turns: Turns, rounds: int, work: Work | None) -> None:
        self.build, self.turns, self.steps = build, turns, rounds * (turns.warmup + turns.steps)
        self.work = work

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.build.stored is not None:
            loader = trainer.datamodule.train_dataloader()
            for epoch, start in enumerate(range(0, self.steps, len(loader))):
                loader.sampler.set_epoch(epoch)
                for batch in islice(loader, self.steps - start):
                    pl_module.teacher(batch)
        self.turns.begin()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.turns.resume()  # before the epoch's first batch is made, as the textbook's workers make theirs in its time

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.work is not None and trainer.global_step == 0:
            self.work.__enter__()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.work is not None and trainer.global_step == 1:
            self.work.__exit__(None, None, None)
        self.turns.step()
        if trainer.is_last_batch:
            self.turns.pause()


class Exit(L.Callback):
    """Ends the process after the first training step."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        synchronize(trainer.strategy.root_device)
        os._exit(0)
