import shutil

import pytest

import kd
from kd.errors import UserError
from kd.runs.results import read
from scripts.publish import publish
from tests import processes
from tests.common import ROOT


def test_publish_makes_a_folder_that_loads(tmp_path, finished):
    program = ROOT / "scripts" / "publish.py"
    done = processes.run(program, finished / "run", "--to", "out", "--license", "mit", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "result.json",
        "student.safetensors",
    ]
    assert "hf upload USER/NAME out ." in done.stdout
    assert kd.load(tmp_path / "out").classes == tuple("0123456789")
    record = read(tmp_path / "out" / "result.json")
    assert (record.cwd, record.test_acc) == ("", read(finished / "run" / "result.json").test_acc)
    again = processes.run(program, finished / "run", "--to", "out", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (1, "publish.py: out is there and not empty; name a new folder\n")


def test_publish_takes_every_form_that_was_exported(tmp_path, finished):
    shutil.copytree(finished / "run", tmp_path / "run")
    forms = {"student.onnx", "student.int8.onnx", "student.pt2", "student.pte", "student.bf16.safetensors"}
    beside = {"student.temperature.json", "student.bf16.temperature.json"}
    for name in forms | beside:
        (tmp_path / "run" / name).write_text(name)
    published = {path.name for path in publish(tmp_path / "run", tmp_path / "out", None).iterdir()}
    assert published == forms | beside | {"README.md", "result.json", "student.safetensors"}


def test_publish_refuses_what_is_no_whole_run(tmp_path, finished):
    with pytest.raises(UserError, match="give the directory of a run"):
        publish(finished / "run" / "student.safetensors", tmp_path / "out", None)
    shutil.copytree(finished / "run", tmp_path / "run")
    weights = tmp_path / "run" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        publish(tmp_path / "run", tmp_path / "out", None)
    weights.unlink()
    with pytest.raises(UserError, match="no weights in"):
        publish(tmp_path / "run", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
