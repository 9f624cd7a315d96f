import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from kd.app.recorded import recorded_data
from kd.deploy.evaluate import Evaluation
from kd.runs.results import read, write
from scripts import evaluate
from scripts.evaluate import show
from tests import processes
from tests.common import ROOT
from tests.deploy.common import weights


@pytest.fixture
def program(on_a_run):
    return on_a_run(evaluate)


def test_evaluate_script_finds_the_accuracy_of_the_record(tmp_path, finished):
    (teacher,) = (finished / "teachers").glob("*/teacher.safetensors")
    arguments = (finished / "run", "--json", "figures.json", "--other", teacher.parent)
    done = processes.run(ROOT / "scripts" / "evaluate.py", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    record = read(finished / "run" / "result.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == record.test_images
    assert figures["accuracy"] == pytest.approx(record.test_acc, abs=0.003)  # in fp32, and the record perhaps in bf16
    assert figures["nll"] == pytest.approx(record.test_nll, abs=0.02)
    assert figures["class_accuracy"] == pytest.approx(record.test_class_acc, abs=0.03)
    assert figures["other"]["accuracy"] == pytest.approx(record.teacher_test_acc, abs=0.003)
    assert figures["other"]["agreement"] == pytest.approx(record.agreement, abs=0.01)
    assert f"accuracy {figures['accuracy']:.2%} [" in done.stdout


def test_evaluate_shows_another_network_the_images_in_its_own_size(program, tmp_path):
    weights(tmp_path / "small.safetensors", size=8, classes=tuple("0123456789"))
    assert program("run", "--other", "small.safetensors", "--json", "both.json")[0] == 0
    assert program("small.safetensors", "data=digits", "--json", "alone.json")[0] == 0
    both, alone = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("both", "alone"))
    assert {name: both["other"][name] for name in ("accuracy", "nll")} == {
        name: pytest.approx(alone[name], rel=1e-6) for name in ("accuracy", "nll")
    }
    assert both["images"] == alone["images"]


def test_evaluate_lists_classes_with_images_and_counts_those_without(capsys):
    labels, logits = np.array([0, 0, 2]), np.eye(5)[[0, 2, 2]]
    show(Evaluation(tuple("abcde"), labels, logits), "some")
    printed = capsys.readouterr().out
    assert "lowest accuracy" not in printed
    assert "3 of 5 classes have no images here." in printed


@pytest.fixture
def recorded(tmp_path):
    """Changes fields of the record of the run."""

    def recorded(**fields):
        file = tmp_path / "run" / "result.json"
        write(replace(read(file), **fields), file)

    return recorded


def test_evaluate_does_not_take_the_threads_of_the_runs_machine(program, recorded, tmp_path):
    recorded(command=f"{read(tmp_path / 'run' / 'result.json').command} threads=1024")
    assert program("run")[::2] == (0, "")


def test_evaluate_names_a_damaged_command(program, recorded):
    recorded(command="a='b")
    code, _, errors = program("run")
    assert (code, errors.count("\n")) == (1, 1)
    assert "the command in run/result.json is damaged; name the images" in errors


def test_images_of_a_run_without_settings_are_where_it_was_started(program, recorded, tmp_path):
    recorded(command="", cwd="/where/it/was")
    found = recorded_data(tmp_path / "run" / "student.safetensors", [], 32, 3)
    assert found.cfg.data.root == "/where/it/was/data"


def test_evaluate_of_a_teacher_of_the_store_needs_the_images_by_name(program, finished):
    (teacher,) = (finished / "teachers").glob("*/teacher.safetensors")
    code, _, errors = program(teacher.parent)
    assert (code, errors.count("\n")) == (1, 1)
    assert "no command in the record beside" in errors
    assert "name the images by data=NAME data.root=DIR" in errors
    code, printed, errors = program(teacher.parent, "data=digits")
    assert (code, errors) == (0, "")
    assert "digits, test split" in printed


def test_evaluate_fits_a_temperature_on_the_images_that_were_held_out(program, tmp_path):
    code, _, errors = program("run", "--split", "val", "--fit-temperature", "--json", "figures.json")
    assert (code, errors) == (0, "")
    stored = json.loads((tmp_path / "run" / "student.temperature.json").read_text())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert stored["images"] == figures["images"] == 143
    assert stored["temperature"] == figures["temperature"] != 1
    program("run", "--split", "val", "--json", "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["nll"] == pytest.approx(figures["nll"])


def test_evaluate_fits_no_temperature_on_a_few_errors(program, tmp_path):
    (tmp_path / "run" / "student.temperature.json").unlink(missing_ok=True)
    code, _, errors = program("run", "data.val_fraction=0.01", "--fit-temperature")
    assert (code, errors.count("\n")) == (1, 1)
    assert "no temperature can be fitted on 10 images of which" in errors
    assert not (tmp_path / "run" / "student.temperature.json").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("run", "data.val_fraction=0", "--split", "val"), "held out no images for validation (data.val_fraction=0)"),
        (("run", "data.val_fraction=0", "--fit-temperature"), "held out no images for validation"),
        (("run", "epochs=1"), "epochs=1: only settings of the data are taken here"),
        (("run", "data.root=a,b"), "data.root=a,b: give a single value"),
        (("run", "data=folder", "data.root=nowhere"), "nowhere"),
        (("run", "--other", "nowhere"), "no weights at nowhere"),
        (("run", "--json", "no/figures.json"), "no folder no"),
    ],
)
def test_evaluate_refuses_in_a_line(program, arguments, answer):
    code, printed, errors = program(*arguments)
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert answer in errors


def test_evaluate_interrupted_ends_without_a_traceback(program, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "run", interrupt)
    assert program("run") == (130, "", "")


@pytest.mark.parametrize("typed", ["data.val_fraction=0.5", "data.split_seed=7", "data=digits"])
def test_evaluate_does_not_call_images_held_out_that_were_trained_on(program, typed):
    more = ["data.val_fraction=0.6"] if typed == "data=digits" else []
    code, printed, errors = program("run", typed, *more, "--fit-temperature")
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert re.search(
        r"the network was trained on [\d,]+ of these [\d,]+ images; leave out data.val_fraction and", errors
    )


def test_evaluate_knows_what_a_teacher_of_the_store_has_not_seen(program, finished, tmp_path):
    (weights,) = (finished / "teachers").glob("*/teacher.safetensors")
    shutil.copytree(weights.parent, tmp_path / "teacher")
    code, printed, errors = program("teacher", "data=digits", "--split", "val")
    assert (code, errors) == (0, "")
    assert "digits, val split, 143 images" in printed
    code, _, errors = program("teacher", "data=digits", "data.split_seed=1", "--split", "val")
    assert code == 1
    assert "the network was trained on" in errors
    (tmp_path / "teacher" / "entry.json").unlink()
    code, _, errors = program("teacher", "data=digits", "--split", "val")
    assert code == 1
    assert "says which images were held out for validation; measure it on the test split" in errors
