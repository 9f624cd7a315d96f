"""The published pairs on CIFAR-100 compose to the published settings, and run; their table is scripts/pairs.py's."""

import re

import numpy as np
import pytest
from PIL import Image

from kd.app.check import check_command
from kd.app.compose import compose, plain
from kd.data.cifar import CIFAR100_CLASSES
from kd.runs.results import read
from scripts import pairs
from scripts.networks import names
from tests.common import CONF

PAIRS = {pair.name: pair for pair in pairs.read()[0]}
SLOW = {"mobilenetv2": 0.01, "shufflenetv1": 0.01, "shufflenetv2": 0.01}
SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "momentum": 0.9, "weight_decay": 5e-4, "fused": True}
CROP_AND_FLIP = {"crop": 4, "flip": True, "cutout": 0, "mixup": None, "cutmix": None, "policy": None, "strength": None}


def composed(experiment, *overrides):
    command = compose([f"experiment={experiment}", *overrides])
    check_command(command)
    return command, plain(command.cfg)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_has_the_published_settings(name):
    """240 epochs in batches of 64, lr .05 or .01 and a tenth of it from epochs 150, 180 and 210 on, kd with T = 4."""
    pair = PAIRS[name]
    command, settings = composed(f"cifar100/{name}")
    assert (command.choices["teacher"], command.choices["student"]) == (pair.teacher, pair.student)
    assert {pair.teacher, pair.student} <= set(names())
    assert (command.choices["method"], settings["T"], settings["alpha"]) == ("kd", 4, 0.1)
    for recipe, lr in (("recipe", SLOW.get(pair.student, 0.05)), ("teacher_recipe", 0.05)):
        schedule = settings[recipe].pop("schedule")
        assert schedule.pop("_target_").endswith(".multistep")
        assert [240 * milestone for milestone in schedule.pop("milestones")] == [150, 180, 210]
        assert schedule == {"_partial_": True, "warmup": 0, "gamma": 0.1}
        plain_sgd = {**SGD, "lr": lr, "nesterov": False}
        steps = {
            "epochs": 240,
            "batch_size": 64,
            "label_smoothing": 0,
            "clip_norm": None,
            "ema": None,
            "decay_all": True,
        }
        assert settings[recipe] == {"optimizer": plain_sgd, **steps}
    data = settings["data"]
    assert data["source"]["_target_"] == "kd.data.cifar.cifar100"
    assert data["augment"] == {"_target_": "kd.data.augment.Augment", **CROP_AND_FLIP, "transform": None}
    unchanged = {"val_fraction": 0, "fraction": 1, "noise": 0, "balance": "none", "image_size": None}
    assert {key: data[key] for key in unchanged} == unchanged
    assert settings["trainer"]["precision"] == "32-true"


@pytest.mark.parametrize("name", PAIRS)
def test_fast_pair_has_larger_batches_and_a_rate_scaled_with_them(name):
    pair = PAIRS[name]
    command, settings = composed(f"cifar100/fast/{name}")
    assert (command.choices["teacher"], command.choices["student"]) == (pair.teacher, pair.student)
    assert (command.choices["method"], command.choices["recipe"], settings["T"]) == ("kd", "default", 4)
    for recipe, published in (("recipe", SLOW.get(pair.student, 0.05)), ("teacher_recipe", 0.05)):
        found = settings[recipe]
        assert (found["epochs"], found["batch_size"]) == (60, 512)
        assert found["optimizer"]["lr"] == pytest.approx(published * 512 / 64)
        assert found["schedule"]["_target_"].endswith(".one_cycle")
    assert settings["data"]["val_fraction"] == 0


@pytest.mark.parametrize(
    ("method", "knobs"),
    [("dkd", {"T": 4, "alpha": 1, "beta": 8}), ("lskd", {"T": 2, "alpha": 0.1, "beta": 9}), ("standard", {})],
)
def test_method_of_a_pair_is_a_knob_and_has_its_own_weights(method, knobs):
    _, settings = composed("cifar100/vgg13_mobilenetv2", f"method={method}", "lr=0.02")
    assert {knob: settings[knob] for knob in ("T", "alpha", "beta") if knob in settings} == knobs
    assert settings["recipe"]["optimizer"]["lr"] == 0.02  # the shorthand is not covered by the pair's own rate


def test_every_pair_is_a_choice(run):
    """What the command line refuses or takes is what lies in the folders."""
    found = {path.stem for path in (CONF / "experiment" / "cifar100" / "fast").glob("*.yaml")}
    assert found == set(PAIRS)
    code, printed = run("experiment=cifar100/fast/vgg13_vgg9")
    assert code == 1
    assert re.match(r"error: .* did you mean experiment=cifar100/fast/vgg13_vgg8\?", printed)


@pytest.fixture
def pictures(tmp_path):
    """An image of noise for training and one for testing of every class, in data/."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 100, 32, 32, 3), dtype=np.uint8)
    for split, images in zip(("train", "test"), noise, strict=True):
        for name, image in zip(CIFAR100_CLASSES.split(), images, strict=True):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.fromarray(image).save(tmp_path / "data" / split / name / "0.png")


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("experiment", "epochs"),
    [("experiment=cifar100/resnet56_resnet20", 240), ("experiment=cifar100/fast/resnet56_resnet20", 60)],
)
def test_pair_runs_one_batch_of_everything(run, experiment, epochs):
    """The cheapest pair in both forms; all of them by the command of docs/cifar100.md, which takes minutes."""
    small = ("recipe.batch_size=2", "teacher_recipe.batch_size=2", "trainer=cpu", "trainer.enable_progress_bar=false")
    code, printed = run(experiment, "debug=fast_dev_run", "lr=0.001", "logger=none", *small, "hydra.run.dir=run")
    assert code == 0, printed
    record = read("run/result.json")
    assert (record.status, record.method, record.epochs) == ("done", "kd", epochs)
    assert (record.teacher, record.student) == ("resnet56", "resnet20")
    assert record.dataset == "CIFAR-100 (200 of 60,000 images)"
