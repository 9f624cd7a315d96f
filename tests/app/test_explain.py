"""From exceptions to lines."""

import errno
import sys
from contextlib import nullcontext

import pytest
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from kd.app.check import check_command
from kd.app.compose import compose
from kd.app.explain import explain, printable, user_errors
from kd.errors import UserError


@pytest.mark.parametrize(
    ("message", "extra"),
    [
        ("In 'hydra/config': Could not find 'hydra/launcher/joblib'\n\nAvailable options", "parallel"),
        ("In 'hydra/launcher/slurm': Could not load 'hydra/launcher/submitit_slurm'.", "slurm"),
    ],
)
def test_explain_names_the_extra_of_a_launcher_that_is_not_installed(message, extra):
    assert explain(Exception(message), []) == f"this launcher is not installed: pip install -e '.[{extra}]'"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EACCES, "Permission denied", b"/a/b"), "cannot use /a/b: Permission denied"),
        (OSError(), "OSError"),
        (UserError(""), "UserError"),
        (UserError("a\x1b[31mb\rc"), "a\\x1b[31mb\\rc"),
        (ImportError("No module named 'wandb'"), "wandb is not installed: pip install -e '.[wandb]'"),
        (
            ImportError("Requirement 'mlflow>=1.0.0' not met. HINT: Try ..."),
            "mlflow is not installed: pip install -e '.[mlflow]'",
        ),
        (ImportError("No module named 'torch_xla'"), "torch_xla is not installed: pip install torch_xla"),
    ],
)
def test_explain_leaves_no_line_empty_and_nothing_unprintable(error, line):
    assert explain(error, []) == line


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("temperature=4", "there is no setting 'temperature'; it is T=4 here"),
        ("dataset=digits", "it is data=digits here"),
        ("optimizer=adamw", "it is recipe/optimizer=adamw here"),
        ("gpus=1", "it is trainer.devices=1 here"),
        ("gpu=1", "it is trainer=gpu here"),
        ("tempreature=4", "did you mean T?"),
        ("alfa=0.5", "did you mean alpha"),
        ("t=4", "did you mean T"),
        ("ALPHA=0.5", "did you mean alpha"),
        ("Method=logits", "did you mean method"),
        ("trainer.max_epochs=3", "trainer.max_epochs is set by the run itself; give epochs=3 instead"),
        ("trainer.limit_train_batches=2", "write +trainer.limit_train_batches=2"),
        ("beta=0.3", "there is no setting 'beta' with the default method; it is a knob of ab, abkd, at, cc, crd"),
    ],
)
def test_explain_names_what_was_meant(name, answer):
    assert answer in explain(Exception(f"Could not override '{name.partition('=')[0]}'."), [name])


def test_explain_answers_a_plus_too_many():
    error = Exception("Could not append to config. An item is already at 'T'.\nEither remove + prefix: 'T=1'")
    assert explain(error, ["+T=1"]) == "+T: there is such a setting already; write T=VALUE, without +"


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("T=${nope}", "there is no setting 'nope', of which another takes its value"),
        ("T=${T}", "a setting takes its own value, by way of ${...}; give it one"),
        ("chain={scale:2}", "chain={scale:2}: this is another kind of value than the setting has"),
    ],
)
def test_explain_translates_what_cannot_be_composed(override, answer):
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        check_command(compose(["data=digits", override]))
    assert explain(error.value, [override]).startswith(answer)


def test_explain_names_the_methods_of_a_sweep_that_lack_a_knob():
    arguments = ["-m", "method=standard,logits", "T=1,4"]
    assert explain(Exception("Could not override 'T'."), arguments).startswith(
        "not all of method=standard,logits have T, a knob of ab, abkd, at, ban"
    )


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("class Mine:\n    pass", ""),
        ("class Other:\n    pass", "there is no such class or function"),
        ("import nothing_of_that_name", "its module cannot be imported, ModuleNotFoundError: .*nothing_of.*own.py:1"),
        ("class Mine(Method):\n    pass", r"cannot be imported, NameError: name 'Method' is not defined \(own.py:1\)"),
        ("class Mine\n    pass", "its module cannot be imported, SyntaxError: "),
        (
            "class Mine:\n    def __init__(self):\n        self.T = {}['T']",
            r"KeyError: 'T' \(own.py:3\); HYDRA_FULL_ERROR=1 shows the traceback",
        ),
    ],
)
def test_mistake_in_code_of_ones_own_is_told_with_its_place(tmp_path, monkeypatch, code, answer):
    (tmp_path / "own.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with nullcontext() if not answer else pytest.raises(UserError, match=answer), user_errors():
        instantiate({"_target_": "own.Mine"})
    sys.modules.pop("own", None)


def test_printable_shortens_what_nobody_reads():
    shown = printable(f"T must be a number, got {'9' * 20_000}; write T=4")
    assert len(shown) < 150
    assert shown.startswith("T must be a number, got 9999")
    assert shown.endswith("write T=4")
    assert len(printable("a b " * 10_000)) < 2100


def test_explain_tells_an_import_error_without_a_package_in_one_line():
    error = ImportError("Error loading 'x':\nModuleNotFoundError()\nAre you sure?")
    assert explain(error, []) == "Error loading 'x': ModuleNotFoundError() Are you sure?"
