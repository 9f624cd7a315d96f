"""The optimiser DOT, by hand and in a training."""

import shutil
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.errors import UserError
from kd.methods.dml import DML
from kd.methods.feature import Feature
from kd.methods.logits import Logits
from kd.teachers.frozen import FrozenTeacher
from kd.training.callbacks import EpochSeed
from kd.training.modules import Classifier, Distiller
from kd.training.optim import DOT, one_cycle
from tests import processes
from tests.common import ROOT, SMALL, pair


def steps(optimizer, parameter, task, distillation):
    """Take a step for each pair of gradients; return the parameter after each."""
    values = []
    for g, d in zip(task, distillation, strict=True):
        optimizer.add_task_gradients([None if g is None else torch.tensor([g])])
        parameter.grad = torch.tensor([(g or 0.0) + d])
        optimizer.step()
        values.append(parameter.item())
    return values


@pytest.mark.parametrize(
    ("nesterov", "task", "expected"),
    [
        # u = 2 + 0.1 * 1 = 2.1 and v = 3, so 1 - 0.1 * 5.1 = 0.49;
        # u = 0.7 * 2.1 + 1 + 0.1 * 0.49 = 2.519 and v = 0.9 * 3 + 4 = 6.7, so 0.49 - 0.1 * 9.219 = -0.4319
        (False, [2.0, 1.0], [0.49, -0.4319]),
        # u and v as above; 2.1 + 0.7 * 2.1 = 3.57 and 3 + 0.9 * 3 = 5.7, so 1 - 0.1 * 9.27 = 0.073;
        # u = 1.47 + 1 + 0.0073 = 2.4773, of which 1.0073 + 0.7 * 2.4773 = 2.74141; 4 + 0.9 * 6.7 = 10.03
        (True, [2.0, 1.0], [0.073, -1.204141]),
        # not reached by the labels: momentum 0.8; v = 3.1, then 0.8 * 3.1 + 4 + 0.1 * 0.69 = 6.549
        (False, [None, None], [0.69, 0.0351]),
    ],
)
def test_dot_takes_the_two_steps_by_hand(nesterov, task, expected):
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = DOT([parameter], 0.1, 0.8, 0.1, nesterov, 0.1)
    assert steps(optimizer, parameter, task, [3.0, 4.0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0.1}, r"must be in \[0, 1\), got 0.9 and 0.1"),
        ({"momentum": 0.05}, r"must be in \[0, 1\), got 0.05 and 0.075"),
        ({"delta": -0.1}, r"optimizer.delta must be in \[0, 1\), got -0.1"),
        ({"momentum": 1.0}, r"optimizer.momentum must be in \[0, 1\), got 1"),
        ({"lr": -1.0}, r"optimizer.lr must be in \[0, inf\), got -1"),
        ({"weight_decay": -1.0}, r"optimizer.weight_decay must be in \[0, inf\), got -1"),
        ({"nesterov": 1}, "optimizer.nesterov must be true or false, got 1"),
    ],
)
def test_dot_refuses_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        DOT([nn.Parameter(torch.zeros(1))], **settings)


@pytest.mark.parametrize("nesterov", [False, True])
def test_dot_takes_as_many_operations_for_many_parameters_as_for_few(nesterov):
    """On a GPU each is a launch, and a deep network has hundreds of parameters."""

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    def operations(parameters):
        weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(parameters)]
        optimizer = DOT(weights, lr=0.1, nesterov=nesterov)
        for _ in range(2):  # the first step makes the momenta
            for weight in weights:
                weight.grad = torch.ones(2)
            optimizer.add_task_gradients([torch.ones(2)] * parameters)
            optimizer.scale_task_gradients(torch.tensor(0.5))
            with Counting() as counting:
                optimizer.step()
        return counting.count

    assert operations(40) == operations(2)


@pytest.fixture
def fit(tiny_net, noise, trainer):
    """Returns a function that trains a student and returns its module."""

    def fit(optimizer, method=None, seed=1, labels_alone=False, resume=None, **settings):
        data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=10, seed=3)
        student, teacher = tiny_net(seed=seed, dropout=0.3), tiny_net(width=6, seed=50)
        parts = (student, 10, optimizer, partial(one_cycle, warmup=0.25))
        if labels_alone:
            module = Classifier(*parts)
        else:
            method = method or Feature(2.0, 0.3, 0.3)
            torch.manual_seed(seed)
            method.setup(pair(student, teacher if method.reads else None, 8, data.images.train_y))
            module = Distiller(*parts, method, FrozenTeacher(teacher, "") if method.reads else None)
        lightning = trainer(**{"max_epochs": 3, "callbacks": [EpochSeed(7)], **settings})
        lightning.fit(module, data, ckpt_path=resume, weights_only=True)
        return module

    return fit


SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
SAME = partial(DOT, lr=0.05, momentum=0.9, delta=0.0, weight_decay=0.01)
APART = partial(DOT, lr=0.05, momentum=0.9, delta=0.075, weight_decay=0.01)


def largest_difference(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clip_val": 0.05},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.05, "accumulate_grad_batches": 3},
        {"method": DML},
        {"method": partial(Logits, 4.0, 0.5)},
        {"nesterov": True},
    ],
    ids=str,
)
def test_dot_without_a_difference_is_sgd(fit, settings):
    """Whatever the method; with gradients that are clipped, which are some 1 long here, or of several batches."""
    make = settings.pop("method", lambda: None)
    more = {"nesterov": True} if settings.pop("nesterov", False) else {}
    sgd, same, apart = (fit(partial(of, **more), make(), **settings) for of in (SGD, SAME, APART))
    assert largest_difference(sgd, same) < 2e-6
    assert largest_difference(sgd, apart) > 2e-5


def test_dot_refuses_to_clip_by_value(fit):
    with pytest.raises(UserError, match="the optimiser DOT clips by norm alone"):
        fit(APART, gradient_clip_val=0.05, gradient_clip_algorithm="value")


def test_dot_scales_both_parts_where_gradients_are_clipped():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = DOT([parameter], 1.0, 0.9, 0.05, False, 0.0)
    optimizer.add_task_gradients([torch.tensor([6.0])])
    optimizer.scale_task_gradients(torch.tensor(0.5))
    parameter.grad = torch.tensor([5.0])  # half of 6 + 4
    optimizer.step()
    state = optimizer.state[parameter]
    assert (state["task_momentum"].item(), state["distillation_momentum"].item()) == (3.0, 2.0)


def test_dot_trains_in_bf16(fit):
    module = fit(APART, precision="bf16-mixed")
    assert all(parameter.isfinite().all() for parameter in module.parameters())


class Crash(BaseException):
    """What kills a process."""


class CrashAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Crash


def test_dot_resumes_bitwise(fit, tmp_path):
    def run(folder, seed, *more):
        checkpoint = ModelCheckpoint(
            tmp_path / folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        path = tmp_path / folder / "last.ckpt"
        callbacks = [EpochSeed(7), checkpoint, *more]
        resume = path if path.exists() else None
        return fit(APART, seed=seed, resume=resume, enable_checkpointing=True, callbacks=callbacks).state_dict()

    whole = run("whole", 1)
    saved = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    names = {name for state in saved["optimizer_states"][0]["state"].values() for name in state}
    assert names == {"task_momentum", "distillation_momentum"}
    with pytest.raises(Crash):
        run("broken", 1, CrashAt(4))
    resumed = run("broken", 2)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_dot_refuses_scaled_gradients(fit):
    with pytest.raises(UserError, match=r"16-mixed scales the gradients.* set trainer\.precision=bf16-mixed"):
        fit(APART, plugins=[MixedPrecision("16-mixed", "cpu")])


class NoLabels(Logits):
    def forward(self, student, teacher, batch):
        return {"soft": super().forward(student, teacher, batch)["soft"]}


@pytest.mark.parametrize("only", [{"labels_alone": True}, {"method": partial(NoLabels, 4.0, 0.5)}], ids=str)
def test_dot_of_one_kind_of_term_is_sgd(fit, only):
    """Labels alone are the baseline of a sweep; function matching has none."""
    make = only.get("method", lambda: None)
    sgd, apart = (fit(of, make(), labels_alone="labels_alone" in only) for of in (SGD, APART))
    assert largest_difference(sgd, apart) < 2e-6


def test_dot_sets_the_labels_of_a_peer_apart_too(fit):
    """Student and peer are trained alike."""
    module = fit(APART, DML())
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert len(list(module.method.peer.parameters())) > 3
    for parameter in (*module.net.parameters(), *module.method.peer.parameters()):
        assert optimizer.state[parameter].keys() == {"task_momentum", "distillation_momentum"}


def test_train_with_dot_on_two_ranks_is_train_with_dot_on_one(run, tmp_path, finished):
    shutil.copytree(finished / "teachers", tmp_path / "teachers")
    # Neither BatchNorm nor dropout: they treat half a batch otherwise than a whole one.
    plain = ("student._target_=tests.launchers.plain.Plain", "student.activation=elu", "method=logits", "T=2")
    dot = (*plain, "recipe/optimizer=dot", "recipe.optimizer.lr=0.02", "trainer.precision=32-true", "logger=none")
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
    small = [setting for setting in SMALL if setting != "trainer=cpu"]
    done = processes.run(ROOT / "train.py", *small, *ddp, *dot, "hydra.run.dir=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run(*SMALL, *dot, "hydra.run.dir=one")[0] == 0
    assert run(*SMALL, *dot, "data.order_seed=1", "hydra.run.dir=otherwise")[0] == 0
    two, one, otherwise = (load_file(tmp_path / name / "student.safetensors") for name in ("two", "one", "otherwise"))

    def distance(left, right):
        return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in right)

    assert distance(two, one) < 0.001
    assert distance(two, otherwise) > 0.01  # as another order of the images comes to


def test_published_recipe_takes_dot(run):
    published = ("recipe=published", "recipe/optimizer=dot", "recipe.epochs=1", "logger=none")
    assert run(*SMALL, *published, "method=logits")[0] == 0
    code, printed = run(*SMALL, "recipe/optimizer=dot", "recipe.optimizer.delta=0.2")
    assert (code, printed.count("\n")) == (1, 1)
    assert "optimizer.momentum + optimizer.delta must be in [0, 1), got 0.9 and 0.2" in printed
