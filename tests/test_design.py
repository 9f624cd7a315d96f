"""The layers of docs/architecture.md: which module may import which, and what never happens; read from the source."""

import ast
import re
from functools import cache

import pytest

from tests.common import ROOT

HEAVY = {"torch", "torchvision", "torchmetrics", "lightning"}
ORDER = (
    ("kd.app",),
    ("kd.sweeps",),
    ("kd.deploy",),
    ("kd.report",),
    ("kd.inference",),
    ("kd.training",),
    ("kd.teachers",),
    ("kd.methods",),
    ("kd.models",),
    ("kd.data",),
    ("kd.runs",),
    ("kd.losses",),
    ("kd.terminal",),
    ("kd.errors", "kd.files", "kd.hashing", "kd.ranges"),
)
"""Rooms from top to bottom: every import points downwards, or stays in its room."""


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted((ROOT / "kd").rglob("*.py"))}
PROGRAMS = [
    *(
        path
        for folder in ("scripts", "hydra_plugins", "examples", "notebooks")
        for path in (ROOT / folder).rglob("*.py")
    ),
    ROOT / "train.py",
]
SOURCES = [*MODULES.values(), *PROGRAMS]


@cache
def imports(module, at_import_time=False):
    """Every module that one of ours names in an import: ours in full, others' roots.

    Wherever the statement stands; or only those that importing the module executes.
    """
    named = set()
    for node in nodes(ast.parse(MODULES[module].read_text()), at_import_time):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which this test does not follow"
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {ours(name) or name.split(".")[0] for name in named}


def nodes(tree, at_import_time):
    """All nodes; without the bodies of functions and of `if TYPE_CHECKING:` if only these are wanted."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typed = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (at_import_time and (typed or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))):
            waiting += ast.iter_child_nodes(node)


def ours(name):
    """The module of ours that a dotted name is, or is in; None for those of others."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def reached(module):
    """All that importing the module imports, directly or not."""
    seen, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in MODULES:
            parents = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
            waiting |= (imports(name, at_import_time=True) | parents) - seen
    return seen


def below(package):
    return [name for name in MODULES if name.startswith(f"{package}.")]


def level(module):
    """The place of a module's room in ORDER."""
    return next(i for i, rooms in enumerate(ORDER) if any(f"{module}.".startswith(f"{room}.") for room in rooms))


def test_imports_are_found():
    assert {"torch", "lightning", "kd.methods.base", "kd.training.optim"} <= imports("kd.training.modules")
    assert {"kd.data.batch", "kd", "kd.data"} <= reached("kd.training.modules")
    assert "torch" in imports("kd.app.run") | reached("kd.app.build")
    assert "kd.app.build" in imports("kd.app.run") - imports("kd.app.run", at_import_time=True)
    assert len(below("kd.methods")) >= 3


def test_every_module_has_its_room():
    assert {room for rooms in ORDER for room in rooms if "." in room} >= {
        ".".join(name.split(".")[:2]) for name in MODULES if name != "kd"
    }


@pytest.mark.parametrize("module", [name for name in MODULES if name != "kd"])
def test_imports_point_downwards(module):
    for name in imports(module):
        if name.startswith("kd."):
            assert level(name) >= level(module), f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "kd"])
def test_imports_have_no_circle(module):
    waiting, seen = [name for name in imports(module) if name in MODULES], set()
    while waiting:
        name = waiting.pop()
        assert name != module, f"{module} imports itself through others"
        if name not in seen:
            seen.add(name)
            waiting += [other for other in imports(name) if other in MODULES and other != "kd"]


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("kd.app")])
def test_hydra_is_known_in_app_alone(module):
    assert not imports(module) & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_instantiate_is_called_in_one_place(path):
    text = path.read_text()
    # scripts/mistakes.py holds methods that are no options, some of which show the teacher other pixels.
    allowed = path.name in ("mistakes.py",) or path == MODULES["kd.app.build"]
    assert allowed or not re.search(r"\binstantiate\(", text)


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_no_program_is_imported_and_no_path_is_bent(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & {"train"}
        if isinstance(node, ast.ImportFrom):
            assert node.module != "train"
    assert "sys.path" not in path.read_text()
    assert "E402" not in path.read_text()


@pytest.mark.parametrize("module", below("kd.models"))
def test_models_know_nothing_of_distillation(module):
    assert {name for name in imports(module) if ours(name)} <= {"kd.errors", "kd.ranges", *below("kd.models")}


@pytest.mark.parametrize("module", below("kd.methods"))
def test_methods_know_their_contract_only(module):
    allowed = {"kd.losses", "kd.models.output", "kd.data.batch", "kd.methods.base", "kd.methods.maps", "kd.ranges"}
    assert {name for name in imports(module) if ours(name)} <= allowed


def test_training_knows_no_concrete_method_and_the_store_no_training():
    for module in below("kd.training"):
        assert imports(module) & set(below("kd.methods")) <= {"kd.methods.base"}
    assert not reached("kd.teachers.store") & {"kd.training.modules", "kd.training.fit", "lightning"}


@pytest.mark.parametrize(
    "module",
    [
        *("kd", "kd.ranges", "kd.runs.status", "kd.runs.results", "kd.runs.predictions", "kd.sweeps.jobs"),
        *("kd.sweeps.plan", "kd.sweeps.look", "kd.sweeps.dashboard", "kd.terminal"),
        *("kd.sweeps.progress", "kd.app.cli", "kd.app.check", "kd.app.identity", "kd.app.compose", "kd.app.run"),
        *("kd.report", *below("kd.report")),
    ],
)
def test_records_reports_and_the_way_to_a_mistake_need_no_torch(module):
    assert not reached(module) & HEAVY


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_no_list_of_methods_and_no_branch_on_one(path):
    assert not re.search(r"""method\b[^\n]{0,12}==\s*["']""", path.read_text())
    assert "set_struct" not in path.read_text()


@pytest.mark.parametrize("module", [name for name in MODULES if name != "kd.app.cli"])
def test_hydras_global_is_read_in_the_command_line_alone(module):
    assert "HydraConfig" not in MODULES[module].read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_every_program_has_a_test_that_starts_it(path):
    """A file of its name, or of the program that it is a part of."""
    names = {"readme": "readme_script", "paced": "benchmark", "textbook": "benchmark"}
    names |= {"gpu_paths": "gpu_check", "gpu_measures": "gpu_check", "pages": "methods", "steps": "method_cost"}
    assert (ROOT / "tests" / "scripts" / f"test_{names.get(path.stem, path.stem)}.py").is_file()
