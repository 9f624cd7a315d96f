"""The images that a run was trained and tested on, from its record."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from kd.app.arguments import parse, quoted
from kd.app.compose import compose
from kd.app.programs import check_data_settings
from kd.app.resume import to_be_typed
from kd.errors import UserError
from kd.ranges import Size, sides
from kd.runs.results import FILE, Result, read
from kd.teachers.store import held_out

if TYPE_CHECKING:
    from torch import Tensor

    from kd.app.build import Builder
    from kd.data.stored import Pixels


def recorded_data(weights: Path, typed: Sequence[str], image_size: Size, channels: int) -> "Builder":
    """Return what builds the images of a run, and splits them as the run did.

    Args:
        weights: the run's file of weights. Without a record beside it, or with one that has no command, as a teacher of
            the store, what is typed must name the images.
        typed: settings of the data, such as data.root=DIR; they come after the run's own.
        image_size, channels: of the network, for images that are not the run's own.

    Raises:
        UserError: if there is neither a record nor `data=`, or the record's command may run code.
        HydraException, OmegaConfBaseException: for an unknown setting.
    """
    check_data_settings(typed)
    keys = [str(override.key_or_group) for override in parse(typed)]
    own: list[str] = []
    cwd = ""
    record = record_beside(weights)
    if "data" in keys:
        height, width = sides("image_size", image_size)
        shape = {"data.image_size": f"[{height},{width}]", **({"data.channels": 1} if channels == 1 else {})}
        typed = [*typed, *(f"{name}={value}" for name, value in shape.items() if name not in keys)]
    elif record is None or record.command is None:
        what = "no record of a run" if record is None else "no command in the record"
        raise UserError(f"{what} beside {weights}; name the images by data=NAME data.root=DIR")
    else:
        damaged = f"the command in {weights.parent / FILE} is damaged; name the images by data=NAME data.root=DIR"
        own, cwd = _overrides(record.command, damaged), record.cwd
        to_type = to_be_typed(own) + ([] if record.config_dir is None else [f"--config-dir={record.config_dir}"])
        if to_type:
            raise UserError(
                f"{weights.parent / FILE} has {' '.join(to_type)}, which may run code; name the images by "
                "data=NAME data.root=DIR"
            )
    from kd.app.build import Builder  # imports torch

    overrides = [*own, "threads=null", *typed]  # the run's threads were those of its machine
    command = compose(overrides)
    root = OmegaConf.select(command.cfg, "data.root")
    if cwd and root is not None and "data.root" not in keys:
        there = Path(cwd, os.path.expanduser(str(root)))
        command = compose([*overrides, quoted("data.root", str(there))])
    return Builder(command)


def split(build: "Builder", name: str, weights: Path) -> "tuple[Pixels, Tensor]":
    """Return the images of a split, uint8, and their labels.

    Args:
        build: what builds the images, see `recorded_data`.
        name: train, val or test. Training images are those that were not held out for validation.
        weights: of the network that is measured.

    Raises:
        UserError: for a validation split of images that the network was trained on, or may have been.
    """
    from kd.data.module import stratified_split

    images, data = build.images, build.settings["data"]
    if name == "test":
        return images.test_x, images.test_y
    if name == "val" and not data["val_fraction"]:
        raise UserError(
            "the run held out no images for validation (data.val_fraction=0), and was trained on all of them"
        )
    place = stratified_split(images.train_y, data["val_fraction"], data["split_seed"])[name == "val"]
    record = record_beside(weights)
    if name == "val" and record is not None and record.data_id == images.id:
        fraction, seed = _held_out(weights, record)
        unseen = set(stratified_split(images.train_y, fraction, seed)[1].tolist()) if fraction else set()
        if seen := set(place.tolist()) - unseen:
            raise UserError(
                f"the network was trained on {len(seen):,} of these {len(place):,} images; leave out data.val_fraction "
                "and data.split_seed" + ("" if unseen else ": it held out none")
            )
    return images.train_x[place], images.train_y[place]


def _held_out(weights: Path, record: Result) -> tuple[float, int]:
    """Return which training images a network has not seen: their share, 0 for none, and the seed they are drawn by.

    Raises:
        UserError: if nothing beside the weights says so.
    """
    unknown = f"nothing beside {weights} says which images were held out for validation; measure it on the test split"
    if record.command is None:
        return held_out(weights.parent, unknown)
    own = _overrides(record.command, unknown)
    if to_be_typed(own) or record.config_dir is not None:  # what may run code
        raise UserError(unknown)
    data = compose(own).cfg.data
    return float(data.val_fraction), int(data.split_seed)


def record_beside(weights: Path) -> Result | None:
    """Return the record of the run that weights lie beside; None without one that can be read."""
    try:
        return read(weights.parent / FILE)
    except (UserError, OSError):
        return None


def _overrides(command: str, unknown: str) -> list[str]:
    """Return the overrides of a record's command.

    Raises:
        UserError: with the text `unknown`, for a command that no shell would take.
    """
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UserError(unknown) from error
