"""Whatever is in conf/method keeps the promises that programs and readers rely on."""

import inspect
import re
from functools import partial
from importlib import import_module

import lightning as L
import pytest
import torch
import yaml
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint

from kd.app.check import knobs
from kd.app.compose import plain
from kd.data.augment import Augment
from kd.data.batch import Batch
from kd.data.module import DataModule
from kd.methods.base import Method
from kd.models.cnn import CNN
from kd.teachers.frozen import freeze
from kd.training.callbacks import EpochSeed
from kd.training.modules import Distiller
from kd.training.optim import one_cycle
from tests.common import ROOT, pair
from tests.methods import every
from tests.methods.every import FILES

TAUGHT = [file for file in FILES if yaml.safe_load(file.read_text())["method"] is not None]
NAMED = {"kd", "takd", "ban"}
"""Names and defaults of another method's class, for a chain of teachers in two of them."""

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_method = pytest.mark.parametrize("file", TAUGHT, ids=lambda file: file.stem)


def composed(file, *overrides):
    return every.composed(file.stem, *overrides)


def cls(file):
    module, _, name = yaml.safe_load(file.read_text())["method"]["_target_"].rpartition(".")
    return getattr(import_module(module), name)


def test_every_method_has_a_module_and_a_file():
    modules = {path.stem for path in (ROOT / "kd" / "methods").glob("*.py")} - {"__init__", "base", "maps"}
    assert {"standard", "teacher", "logits", "feature"} <= {file.stem for file in FILES}
    assert modules == {file.stem for file in TAUGHT} - NAMED


@each_file
def test_page_of_methods_has_a_section_with_the_defaults(file):
    page = (ROOT / "docs" / "methods.md").read_text()
    section = re.search(rf"^## {file.stem}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]
    own = knobs(plain(composed(file)))
    defaults = re.search(r"^\* Defaults: `(.*)`$", section, re.MULTILINE)
    written = " ".join(f"{name}={' '.join(value) if isinstance(value, list) else value}" for name, value in own.items())
    assert (defaults[1] if defaults else "") == written


@each_file
def test_file_is_global_and_describes_itself_in_one_line(file):
    package, description, *rest = file.read_text().splitlines()
    assert package == "# @package _global_"
    assert re.fullmatch(r"# \S.*", description)
    assert not rest[0].startswith("#")


@each_method
def test_constructor_takes_exactly_the_keys_of_the_file(file):
    node = plain(composed(file).method)
    assert file.stem in NAMED or node["_target_"].startswith(f"kd.methods.{file.stem}.")
    assert issubclass(cls(file), Method)
    parameters = inspect.signature(cls(file)).parameters.values()
    assert {p.name for p in parameters} == node.keys() - {"_target_"}
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


@each_method
def test_constructor_has_the_defaults_of_the_file(file):
    node = plain(composed(file).method)
    defaults = {name: p.default for name, p in inspect.signature(cls(file)).parameters.items()}
    as_lists = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    if file.stem not in NAMED:  # which have published defaults of their own for another method's knobs
        assert as_lists == {name: value for name, value in node.items() if name != "_target_"}
    cls(file)()


@each_method
def test_every_knob_has_a_range_and_is_used(file):
    settings = plain(composed(file))
    own = knobs(settings)
    spans = settings["spec"]["ranges"]
    assert {name for name, value in own.items() if isinstance(value, int | float)} <= spans.keys()
    text = file.read_text()
    assert all(f"${{{name}}}" in text for name in own)


@each_method
def test_constructor_refuses_what_the_file_refuses(file):
    """One knob at a time beyond either end of the range in its file, and at the ends that belong to it."""
    settings = plain(composed(file))
    parameters = inspect.signature(cls(file)).parameters
    beyond = 0
    for name, span in settings["spec"]["ranges"].items():
        if " + " in name or name not in parameters:
            continue
        interval = span.removeprefix("whole ")
        low, high = (float(end) for end in interval[1:-1].split(","))
        quiet = {part: 0.0 for part in parameters if f"{part} + {name}" in settings["spec"]["ranges"]}
        quiet |= {part: 0.0 for part in parameters if f"{name} + {part}" in settings["spec"]["ranges"]}
        for end, closed, outside in ((low, interval[0] == "[", low - 1), (high, interval[-1] == "]", high + 1)):
            if abs(end) == float("inf"):
                continue
            number = int if span.startswith("whole ") else float
            with pytest.raises(ValueError, match=rf"^{name} must be"):
                cls(file)(**{**quiet, name: number(outside)})
            beyond += 1
            if closed:
                cls(file)(**{**quiet, name: number(end)})
            else:
                with pytest.raises(ValueError, match=rf"^{name} must be"):
                    cls(file)(**{**quiet, name: number(end)})
    assert beyond


@each_method
def test_label_smoothing_is_that_of_the_recipe(file):
    node = composed(file, "recipe.label_smoothing=0.3").method
    assert "label_smoothing" not in node or node.label_smoothing == 0.3


@each_method
def test_method_teaches(file):
    """The loss falls over 20 steps, everything that is to be learnt gets a gradient, the teacher gets none."""
    method = instantiate(composed(file).method)
    scales = every.scales(file.stem)
    torch.manual_seed(0)
    student, teacher = (CNN(scale, 10, 16, "relu", 0.0, 0.0) for scale in scales)
    labels = torch.arange(16) % 10
    method.setup(pair(student, teacher if method.reads else None, 16, labels))
    batch = Batch(torch.randn(16, 3, 16, 16), labels, torch.arange(16), torch.zeros(16, dtype=torch.int64))

    @torch.no_grad()
    def taught(batch):
        return teacher.eval()(batch.x)

    memory = {name: buffer.clone() for name, buffer in method.named_buffers()}

    @torch.no_grad()
    def restore_memory():
        for name, buffer in method.named_buffers():
            buffer.copy_(memory[name])

    learned = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.Adam(learned, lr=0.01)
    curve = []
    for step in range(20):
        if step in (0, 19):
            # Weights that rise, as in a warm-up, are not to hide whether the terms fall, nor a memory that moves.
            method.progress = 0.99
            with torch.no_grad():
                torch.manual_seed(0)
                curve.append(sum(method.step(student, taught if method.reads else None, batch).terms.values()).item())
            restore_memory()
        method.progress = step / 20
        output, terms, monitors = method.step(student, taught if method.reads else None, batch)
        assert output.logits.shape == (16, 10)
        assert {(term.dtype, term.shape) for term in terms.values()} == {(torch.float32, ())}
        assert not monitors.keys() & terms.keys()
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        restore_memory()
    assert curve[-1] < curve[0] - 0.2 * abs(curve[0])
    assert all(p.grad is not None for p in learned if p.requires_grad)
    assert all(p.grad is None for p in teacher.parameters())


class Crash(BaseException):
    """What kills a process."""


class CrashAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Crash


class Modes(L.Callback):
    """Checks at every step that all that learns is in train mode and the teacher is not, after validation, too."""

    def __init__(self, teacher):
        self.teacher, self.epochs = teacher, set()

    def on_train_batch_start(self, trainer, module, *_):
        self.epochs.add(trainer.current_epoch)
        assert all(part.training for net in (module.net, module.method) for part in net.modules())
        assert not any(part.training for part in self.teacher.modules())


@each_method
def test_resumed_run_is_the_run_that_was_not_interrupted(file, noise, trainer, tmp_path):
    """Whatever the method keeps: a peer with its buffers, banks, random numbers, the share of training that is done."""
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=10, seed=3)
    labels = data.images.train_y.clone()
    labels[data.val_index] = -1
    width = every.scales(file.stem)[1]  # which draws random numbers the first time

    def fit(directory, seed, *more):
        torch.manual_seed(0)
        teacher = CNN(width, 10, 8, "relu", 0.0, 0.0)
        torch.manual_seed(seed)
        student, method = CNN(2, 10, 8, "relu", 0.2, 0.0), instantiate(composed(file).method)
        method.setup(pair(student, teacher if method.reads else None, 8, labels))
        recipe = partial(torch.optim.SGD, lr=0.05, momentum=0.9), partial(one_cycle, warmup=0.25)
        module = Distiller(student, 10, *recipe, method, freeze(teacher) if method.reads else None)
        checkpoint = ModelCheckpoint(
            tmp_path / directory, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        path = tmp_path / directory / "last.ckpt"
        modes = Modes(teacher.eval())
        callbacks = [EpochSeed(7), checkpoint, modes, *more]
        trainer(max_epochs=2, enable_checkpointing=True, callbacks=callbacks).fit(
            module, data, ckpt_path=path if path.exists() else None, weights_only=True
        )
        assert 1 in modes.epochs
        return module.state_dict()

    whole = fit("whole", 1)
    with pytest.raises(Crash):
        fit("broken", 1, CrashAt(4))  # the second of three steps in the second epoch
    resumed = fit("broken", 2)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
