"""Who may import whom, read from the source: what no other test would notice."""

import ast
from functools import cache

import pytest

from tests.common import ROOT

HEAVY = {"torch", "torchvision", "torchmetrics", "lightning"}


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted((ROOT / "kd").rglob("*.py"))}


@cache
def imports(module):
    """Every module that one of ours names in an import, wherever the statement stands: ours in full, others' roots."""
    named = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which this test does not follow"
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {ours(name) or name.split(".")[0] for name in named}


def ours(name):
    """The module of ours that a dotted name is, or is in; None for those of others."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def reached(module):
    """All that importing the module would import, directly or not."""
    seen, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in MODULES:
            parents = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
            waiting |= (imports(name) | parents) - seen
    return seen


def below(package):
    return [name for name in MODULES if name.startswith(f"{package}.")]


def test_the_imports_are_found():
    assert {"torch", "lightning", "kd.methods.base", "kd.training.optim"} <= imports("kd.training.modules")
    assert {"kd.data.batch", "kd", "kd.data"} <= reached("kd.training.modules")
    assert len(below("kd.methods")) >= 3


@pytest.mark.parametrize("module", MODULES)
def test_nothing_knows_of_hydra(module):
    assert not imports(module) & {"hydra", "omegaconf", "train"}


@pytest.mark.parametrize("module", below("kd.models"))
def test_models_know_nothing_of_distillation(module):
    assert {name for name in imports(module) if ours(name)} <= {"kd.ranges", *below("kd.models")}


@pytest.mark.parametrize("module", below("kd.methods"))
def test_methods_know_their_contract_only(module):
    allowed = {"kd.losses", "kd.models.output", "kd.data.batch", "kd.methods.base", "kd.ranges"}
    assert {name for name in imports(module) if ours(name)} <= allowed


def test_training_knows_no_concrete_method_and_the_store_no_training():
    assert reached("kd.training.modules") & set(below("kd.methods")) == {"kd.methods.base"}
    assert not reached("kd.teachers.store") & {"kd.training.modules", "kd.training.fit", "lightning"}


@pytest.mark.parametrize(
    "module",
    [
        *("kd.ranges", "kd.app.check", "kd.runs.status", "kd.runs.results", "kd.search", "kd.sweeps.jobs"),
        *("kd.report", *below("kd.report")),
    ],
)
def test_records_and_reports_need_no_torch(module):
    assert not reached(module) & HEAVY
