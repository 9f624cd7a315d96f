"""Whatever is in conf/method keeps the promises that train.py and its readers rely on."""

import inspect
import re
from importlib import import_module

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from kd.data.batch import Batch
from kd.methods.base import Method
from kd.models.cnn import CNN
from kd.models.output import probe
from tests.common import ROOT

FILES = sorted((ROOT / "conf" / "method").glob("*.yaml"))
TAUGHT = [file for file in FILES if yaml.safe_load(file.read_text())["method"] is not None]
RUN_WIDE = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_method = pytest.mark.parametrize("file", TAUGHT, ids=lambda file: file.stem)


def test_there_are_methods_and_each_has_its_file():
    modules = {path.stem for path in (ROOT / "kd" / "methods").glob("*.py")} - {"__init__", "base"}
    assert {"standard", "teacher", "logits", "feature"} <= {file.stem for file in FILES}
    assert modules == {file.stem for file in TAUGHT}


@each_file
def test_file_is_global_and_says_in_one_line_what_it_is(file):
    package, description, *rest = file.read_text().splitlines()
    assert package == "# @package _global_"
    assert re.fullmatch(r"# \S.*", description)
    assert not rest[0].startswith("#")


@each_method
def test_constructor_takes_exactly_the_keys_of_the_file(file):
    node = yaml.safe_load(file.read_text())["method"]
    module, _, name = node.pop("_target_").rpartition(".")
    assert module == f"kd.methods.{file.stem}"
    cls = getattr(import_module(module), name)
    assert issubclass(cls, Method)
    parameters = inspect.signature(cls).parameters.values()
    assert {p.name for p in parameters} == node.keys()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    assert all(p.default is p.empty for p in parameters)  # a default lives in the file


@each_method
def test_every_knob_of_the_file_is_handed_on(file):
    settings = yaml.safe_load(file.read_text())
    handed_on = settings.pop("method").values()
    assert {f"${{{knob}}}" for knob in settings.keys() - RUN_WIDE.keys()} <= set(map(str, handed_on))


@each_method
def test_label_smoothing_is_that_of_the_recipe(file):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("config", [f"method={file.stem}", "recipe.label_smoothing=0.3"]).method.label_smoothing == 0.3


@each_method
def test_composed_method_teaches(file):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        method = instantiate(compose("config", [f"method={file.stem}"]).method)
    torch.manual_seed(0)
    student, teacher = (CNN(scale, 10, 16, "relu", 0.0, 0.0) for scale in (2, 4))
    method.build(probe(student, 16), probe(teacher, 16))
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    batch = Batch(x, y, torch.arange(16), torch.zeros(16, dtype=torch.int64))
    with torch.no_grad():
        answer = teacher.eval()(x)
    learned = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.Adam(learned, lr=0.01)
    curve = []
    for _ in range(20):
        terms = method(student(x), answer, batch)
        assert "hard" in terms
        assert {(term.dtype, term.shape) for term in terms.values()} == {(torch.float32, ())}
        loss = sum(terms.values())
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert curve[-1] < curve[0] - 0.2 * abs(curve[0])
    assert all(p.grad is not None for p in learned)
    assert all(p.grad is None for p in teacher.parameters())
