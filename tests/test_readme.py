"""README and docs are right: commands and code run, links lead somewhere, tables of methods and choices are complete.

Tables made from records are tested in tests/scripts/test_readme_script.py.
"""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from kd.app.check import knobs
from kd.app.compose import compose, plain
from kd.data.cifar import CIFAR10_CLASSES
from kd.runs.results import collect
from tests.common import CONF, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE = [
    *(ROOT / "docs" / f"{name}.md" for name in ("index", "protocol")),
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
]
"""Pages whose commands are tested with the site, in tests/test_site.py."""
ANSWERS = sorted((ROOT / "docs" / "results").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {*SITE}), *ANSWERS]
MAX_LINES = 120


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language; "" for those without."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [code for found, code in fenced if found == language]


COMMANDS = [
    line.split("#")[0].strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if line
]
EXPERIMENTS = [command for command in COMMANDS if "experiment=" in command]
"""Commands that tests/app/test_experiments.py covers."""
TRAINING = list(dict.fromkeys(command for command in COMMANDS if command.startswith("python train.py")))
RUN = {re.sub(r" hydra\.sweep\.dir=\S+", "", command): command for command in TRAINING if command not in EXPERIMENTS}
"""By what they do; tests/test_site.py composes every one of them with the first and with the last of all its values."""

# The same commands with the smallest networks and data; given last, these win.
SMALL = (
    "epochs=1",
    "recipe.epochs=1",
    "teacher_recipe.epochs=1",
    "batch_size=20",
    "recipe.batch_size=20",
    "teacher_recipe.batch_size=20",
    "data.val_fraction=0.9",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
)
SMALL_CNN = ("teacher.scale=1", "student.scale=1")
SMALL_WRN = ("teacher.depth=10", "teacher.widen=1", "student.depth=10", "student.widen=1")


def test_readme_is_short():
    assert len(README.splitlines()) <= MAX_LINES


def test_test_command_is_the_one_of_ci():
    command = 'pip install -e ".[dev]" && pytest'
    assert command in COMMANDS
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_first_command_trains_and_prints_as_shown(tmp_path):
    (command,) = (command for command in COMMANDS if command.startswith("pip") and "train.py" in command)
    job = shlex.split(command.split("&&")[1])
    assert job == ["python", "train.py", "data=digits", "method=logits", "T=4"]
    job[:2] = [sys.executable, str(ROOT / "train.py")]
    done = subprocess.run(job, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = collect([tmp_path / "runs"]).results
    assert record.status == "done"
    # Chance is 0.1; both networks have learnt the digits.
    assert record.test_acc > 0.9
    assert record.teacher_test_acc > 0.9
    assert f"{100 * record.test_acc:.2f} %" in done.stdout
    # The figures may differ on another processor; what they are figures of may not.
    (shown,) = blocks(ROOT / "README.md", "")
    labels = [re.split(r" {2,}", line.strip())[0] for line in shown.splitlines() if re.match(r" [a-z]", line)]
    assert labels == ["network", "parameters", "test accuracy", "retention"]
    assert all(re.search(rf"^ {label} ", done.stdout, re.MULTILINE) for label in labels)
    # Nothing that would make a newcomer think that something is wrong.
    assert "warn" not in (done.stdout + done.stderr).lower()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The ten classes of CIFAR-10 in grey levels."""
    root = tmp_path_factory.mktemp("drawn") / "images"
    for split in ("train", "test"):
        for label, name in enumerate(CIFAR10_CLASSES.split()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(20 if split == "train" else 2):
                Image.new("RGB", (32, 32), (24 * label + i,) * 3).save(folder / f"{i}.png")
    return root


@pytest.fixture
def pictures(tmp_path, drawn):
    """Images where the commands of the pages look for them: links, as no command writes into one."""
    for root in ("data", "my/cifar10", "my_images", "corrupted"):
        shutil.copytree(drawn, tmp_path / root, copy_function=os.link)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", RUN.values())
def test_training_command_runs(run, command):
    arguments = shlex.split(command.replace("=/my/cifar10", "=my/cifar10"))[2:]
    if "-m" in arguments:  # two values of one setting are a sweep, too
        swept = [argument for argument in arguments if re.match(r"\w+=[^,\[]+,", argument)]
        kept = {argument: argument.split(",")[: 1 if place else 2] for place, argument in enumerate(swept)}
        arguments = [",".join(kept.get(argument, [argument])) for argument in arguments]
    if command not in README and "logger" not in command and "hydra/launcher=" not in command:
        arguments.append("logger=none")
    code, printed = run(*arguments, *SMALL, *(SMALL_WRN if "student=wrn" in command else SMALL_CNN))
    assert code == 0, printed


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_experiment_has_a_test_that_runs_it(command):
    name = re.search(r"experiment=([\w/]+)", command)[1]
    tests = [ROOT / "tests" / "app" / f"test_{part}.py" for part in ("experiments", "pairs")]
    assert any(f'"experiment={name}"' in file.read_text() for file in tests)


def test_experiment_of_ones_own_is_composed_as_shown(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```text\n(# @package.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(example, encoding="utf-8")
    command = compose(["experiment=mine"], config_dir=tmp_path)
    assert (command.choices["method"], command.cfg.recipe.epochs, command.hydra.mode.name) == ("dkd", 60, "MULTIRUN")
    assert command.hydra.sweeper.params == {"T": "1,2,4", "seed": "0,1,2"}


@pytest.mark.parametrize(
    ("command", "further", "folder"),
    [
        ("python scripts/report.py multirun/first", [], "multirun/first"),
        ("tensorboard --logdir runs", ["--inspect"], "runs"),
    ],
)
def test_finished_runs_can_be_looked_at(command, further, folder, finished, tmp_path):
    assert command in COMMANDS
    shutil.copytree(finished / "run", tmp_path / folder / "0")
    program, *arguments = shlex.split(command.replace("scripts/", f"{ROOT}/scripts/"))
    beside = Path(sys.executable).parent / program
    done = subprocess.run([beside, *arguments, *further], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("results.csv" if folder.startswith("multirun") else "val/acc") in done.stdout


def test_no_command_is_without_a_test():
    for command in COMMANDS:
        script, example = (re.match(rf"python {folder}/(\w+\.py)", command) for folder in ("scripts", "examples"))
        if script:
            assert (ROOT / "tests" / "scripts" / f"test_{script[1]}").is_file(), command
        elif example:
            tests = (ROOT / "tests").rglob("test_*.py")
            assert any(f'"{example[1]}"' in file.read_text(encoding="utf-8") for file in tests), command
        else:
            assert command.startswith(("pip install", "tensorboard --logdir runs", "python train.py")), command


def test_library_code_runs():
    (code,) = blocks(ROOT / "README.md", "python")
    assert len(code.splitlines()) <= 12
    names = {}
    exec(code, names)
    assert names["lesson"].terms.keys() == {"hard", "soft"}
    assert all(p.grad is not None for p in names["student"].parameters())
    assert all(p.grad is None for p in names["teacher"].parameters())


def test_example_method_trains(run, tmp_path, monkeypatch):
    """The example of docs/extending.md as it stands: one python file, one yaml, and nothing else."""
    page = ROOT / "docs" / "extending.md"
    (code,), (yaml,) = blocks(page, "python"), blocks(page, "yaml")
    module = ModuleType("kd.methods.embedding")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "embedding.yaml").write_text(yaml)
    (command,) = re.findall(r"`python train.py (method=embedding [^`]+)`", page.read_text(encoding="utf-8"))
    arguments = ("--config-dir=conf", *shlex.split(command), *SMALL, *SMALL_CNN, "logger=none")
    code, printed = run(*arguments, "hydra.run.dir=run")
    assert code == 0, printed
    (record,) = collect([tmp_path / "run"]).results
    assert record.knobs == {"T": 2, "alpha": 0.1, "beta": 0.5}
    columns = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert {"train/hard", "train/soft", "train/cosine"} <= set(columns.split(","))
    code, printed = run(*arguments, "beta=-1")
    assert code == 1
    assert "beta must be in [0, inf)" in printed
    defaults = {name: p.default for name, p in inspect.signature(module.Embedding).parameters.items()}
    shown = dict(re.findall(r"^(T|alpha|beta): (\S+)$", yaml, re.MULTILINE))
    assert {name: float(value) for name, value in shown.items()} == {name: defaults[name] for name in shown}


@pytest.mark.parametrize("page", [*PAGES, *SITE, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md", "docs/extending.md"])
def test_places_in_backticks_exist(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    places = re.findall(r"`((?:kd|conf|scripts|hydra_plugins|notebooks|examples|tests|docs)/[\w./]*)", text)
    assert places
    to_be_written = {"kd/methods/embedding.py", "conf/method/embedding.yaml"}
    missing = {place for place in places if "NAME" not in place and not (ROOT / place).exists()}
    assert missing <= to_be_written


def test_tables_of_methods_are_complete_and_have_the_defaults_of_the_three_ways():
    """Those of all methods are on their page, see tests/methods/test_every_method.py."""
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", README, re.MULTILINE))
    assert rows.keys() == {"teacher", "standard", "logits", "feature"}
    for name, defaults in rows.items():
        own = knobs(plain(compose(["data=digits", f"method={name}"]).cfg))
        assert dict(re.findall(r"(\w+)=([\d.]+)", defaults)) == {knob: f"{value:g}" for knob, value in own.items()}
    linked = re.findall(r"\[`(\w+)`\]\(docs/methods\.md#(\w+)\)", README)
    assert all(name == anchor for name, anchor in linked)
    assert sorted([*rows, *(name for name, _ in linked)]) == sorted(f.stem for f in (CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize("group", ["data", "student", "teacher", "recipe", "trainer", "speed", "logger", "debug"])
def test_every_choice_of_a_group_is_documented(group):
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("runs.md", "data.md", "models.md"))
    missing = [file.stem for file in (CONF / group).glob("*.yaml") if f"`{file.stem}`" not in pages]
    assert not missing


def test_every_experiment_is_documented():
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    assert [file.stem for file in (CONF / "experiment").glob("*.yaml") if f"| `{file.stem}` |" not in page] == []
