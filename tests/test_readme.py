"""The README does what it says: its commands run. Its tables are looked at in tests/scripts/test_readme_script.py."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from kd.runs.results import collect
from tests.common import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
TRAINING = [command for command in COMMANDS if command.startswith("python train.py")]

# The same commands on the smallest networks and data; given last, these win.
SMALL = (
    "epochs=1",
    "recipe.epochs=1",
    "teacher_recipe.epochs=1",
    "batch_size=20",
    "recipe.batch_size=20",
    "data.val_fraction=0.9",
    "teacher.scale=1",
    "student.scale=1",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
)


def test_the_test_command_is_what_ci_runs():
    command = 'pip install -e ".[dev]" && pytest'
    assert command in COMMANDS
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_main_job_as_it_stands(tmp_path):
    (command,) = (command for command in COMMANDS if command.startswith("pip") and "train.py" in command)
    job = shlex.split(command.split("&&")[1])
    assert job == ["python", "train.py", "data=digits", "method=logits", "T=4"]
    job[:2] = [sys.executable, str(ROOT / "train.py")]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(job, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = collect([tmp_path / "runs"]).results
    assert record.status == "done"
    # Chance is 0.1; both networks have learnt the digits.
    assert record.test_acc > 0.9
    assert record.teacher_test_acc > 0.9
    assert f"{100 * record.test_acc:.2f} %" in done.stdout
    # Nothing that would make a newcomer ask whether something is wrong.
    assert "warn" not in (done.stdout + done.stderr).lower()


@pytest.fixture
def pictures(tmp_path):
    """Ten classes of two grey levels, where the README's commands look for images."""
    for root in ("data", "my/cifar10", "my_images"):
        for split in ("train", "test"):
            for label in range(10):
                folder = tmp_path / root / split / f"class{label}"
                folder.mkdir(parents=True)
                for i in range(20 if split == "train" else 2):
                    Image.new("RGB", (32, 32), (24 * label + i,) * 3).save(folder / f"{i}.png")


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", TRAINING)
def test_training_commands(run, command):
    arguments = shlex.split(command.replace("=/my/cifar10", "=my/cifar10"))[2:]
    code, said = run(*arguments, *SMALL)
    assert code == 0, said


@pytest.mark.parametrize(
    ("command", "further", "folder"),
    [("python scripts/report.py multirun", [], "multirun"), ("tensorboard --logdir runs", ["--inspect"], "runs")],
)
def test_looking_at_runs(command, further, folder, finished, tmp_path):
    assert command in COMMANDS
    shutil.copytree(finished / "run", tmp_path / folder / "0")
    program, *arguments = shlex.split(command.replace("scripts/", f"{ROOT}/scripts/"))
    beside = Path(sys.executable).parent / program
    done = subprocess.run([beside, *arguments, *further], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("results.csv" if folder == "multirun" else "val/acc") in done.stdout


def test_no_command_is_left_out():
    elsewhere = {"python scripts/benchmark.py --quick", "python scripts/benchmark.py --quick speed.keep_memory=false"}
    elsewhere |= {"python scripts/search.py searches/first --trials 30 method=logits data=digits"}
    here = {"python scripts/report.py multirun", "tensorboard --logdir runs", *TRAINING, *elsewhere}
    assert {command for command in COMMANDS if not command.startswith("pip")} == here
