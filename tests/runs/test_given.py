"""What is said of a directory that should have weights."""

import re

import pytest

from kd.errors import UserError
from kd.runs.given import weights_file
from kd.runs.results import Result, write


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        ("running", "its run has not ended; if it was killed, continue it by python train.py resume='my run'"),
        ("interrupted", "its run was interrupted; continue it by python train.py resume='my run'"),
        ("failed", "its run failed: the loss is NaN"),
        ("pruned", "its run was ended early by a search"),
        ("done", "its run is done, but they were removed"),
    ],
)
def test_weights_file_says_why_a_run_has_none(tmp_path, monkeypatch, status, answer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my run").mkdir()
    error = "the loss is NaN\nin step 3" if status == "failed" else None
    record = Result(method="logits", seed=0, dataset="digits", epochs=1, status=status, error=error)
    write(record, tmp_path / "my run" / "result.json")
    with pytest.raises(UserError, match=f"^{re.escape(f'no weights in my run: {answer}')}$"):
        weights_file("my run")


def test_weights_file_names_a_run_below(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "student.safetensors").touch()
    with pytest.raises(UserError, match=f"nor teacher.safetensors; there are some in {tmp_path / '1'}$"):
        weights_file(tmp_path)
    assert weights_file(tmp_path / "1") == tmp_path / "1" / "student.safetensors"


def test_weights_file_leaves_other_names_to_the_reader(tmp_path):
    for name in ("~no_such_user/run", "a" * 300, "gone"):
        assert str(weights_file(name)) == name
