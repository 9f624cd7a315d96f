import csv
import json
import shutil
import sys

import pytest
from PIL import Image

from kd.runs.results import read
from tests import processes
from tests.common import ROOT

SHORT = ("--quick", "--threads", "1", "--rounds", "1")


@pytest.fixture
def deploy_table():
    import deploy_table

    return deploy_table


@pytest.fixture
def program(on_a_run, deploy_table):
    return on_a_run(deploy_table)


def test_deploy_table_measures_each_network_in_each_form(tmp_path, finished):
    (teacher,) = (finished / "teachers").glob("*/teacher.safetensors")
    arguments = (teacher.parent, finished / "run", *SHORT, "--forms", "torch_bf16", "onnx_int8", "--out", "table")
    done = processes.run(ROOT / "scripts" / "deploy_table.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "table" / "deploy.json").read_text())
    rows = figures["rows"]
    record = read(finished / "run" / "result.json")
    expected = [("teacher, cnn32", record.teacher_test_acc, record.teacher_params)] * 2
    expected += [("logits, cnn16", record.test_acc, record.student_params)] * 2
    for row, (name, accuracy, parameters) in zip(rows, expected, strict=True):
        assert (row["network"], row["parameters"]) == (name, parameters)
        assert row["accuracy"] == pytest.approx(accuracy, abs=0.02)
        assert row["interval"][0] < row["accuracy"] < row["interval"][1]
        assert row["images"] == record.test_images
        assert [timing["batch"] for timing in row["timings"]] == [1, 256]
        for timing in row["timings"]:
            assert timing["threads"] == len(timing["seconds"]) == 1
            assert timing["seconds"][0] > 0
            assert 0 < timing["memory_mb"] < 300
    assert [row["form"] for row in rows] == ["torch_bf16", "onnx_int8"] * 2
    assert figures["machine"]["cores"] >= 1
    with open(tmp_path / "table" / "deploy.csv") as file:
        assert len(list(csv.DictReader(file))) == 2 * len(rows)
    page = (tmp_path / "table" / "deploy.md").read_text()
    assert page.count("| teacher, cnn32 |") == 2
    for name in ("latency.png", "size.png"):
        assert f"]({name})" in page
        with Image.open(tmp_path / "table" / name) as picture:
            assert picture.size[0] > 1000


def test_deploy_table_leaves_out_a_form_that_fails(program, deploy_table, monkeypatch, tmp_path):
    import kd.deploy.table as table
    from kd.errors import UserError

    def refuse(*_):
        raise UserError("int8 is refused")

    monkeypatch.setattr(table, "to_int8", refuse)
    monkeypatch.setattr(deploy_table, "_timings", lambda works, threads, args: map(timed, works))
    code, printed, errors = program("run", *SHORT, "--forms", "torch_fp32", "onnx_int8")
    assert code == 1
    assert errors.splitlines()[-1] == (
        "deploy_table.py: left out, 1 of 2: logits, cnn16, ONNX Runtime int8: int8 is refused"
    )
    assert "deploy_table/deploy.md" in printed
    figures = json.loads((tmp_path / "deploy_table" / "deploy.json").read_text())
    assert [row["form"] for row in figures["rows"]] == ["torch_fp32"]
    assert figures["left_out"] == ["logits, cnn16, ONNX Runtime int8: int8 is refused"]


def timed(work):
    from kd.deploy.table import Timing

    return [Timing(work.threads, batch, [0.001], None) for batch in work.steps]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("nowhere",), "no weights at nowhere"),
        (("empty",), "no weights in empty: it has neither student.safetensors nor teacher.safetensors"),
        (("run", "data.rot=x"), "data.rot"),
        (("data.root=x",), "give a run directory or its file of weights, too"),
        (("run", "--forms", "tflite"), "invalid choice: 'tflite'"),
        (("run", "--threads", "0"), "must be at least 1, got 0"),
        (("run", "alone.safetensors"), "alone.safetensors was trained on other images than run"),
        (("store",), "no record tells the images; give a student's run, too, or data=NAME data.root=DIR"),
        (("alone.safetensors",), "no record of a run beside alone.safetensors"),
        (("run", "--out", "run/result.json"), "--out run/result.json is no folder"),
        (("run", "--out", "run/result.json/table"), "run/result.json is no folder"),
        (("run", "--calibrate", "5000"), "--calibrate 5000: there are 1,438 training images"),
    ],
)
def test_deploy_table_refuses_in_a_line(program, tmp_path, finished, arguments, answer):
    from tests.deploy.common import weights

    (tmp_path / "empty").mkdir()
    weights(tmp_path / "alone.safetensors")
    (teacher,) = (finished / "teachers").glob("*/teacher.safetensors")
    shutil.copytree(teacher.parent, "store")
    code, printed, errors = program(*arguments)
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert answer in errors
    assert not (tmp_path / "deploy_table").exists()


def test_deploy_table_names_the_extra_that_is_missing(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, printed, errors = program("run")
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert "this needs onnxruntime, which is not installed: pip install -e '.[export]'" in errors


def test_deploy_table_interrupted_ends_without_a_traceback(program, monkeypatch, deploy_table):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy_table, "table", interrupt)
    assert program("run") == (130, "", "")
