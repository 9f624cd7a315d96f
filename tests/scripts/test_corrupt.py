"""scripts/corrupt.py from its command line."""

import sys

import numpy as np
import pytest

from kd.data.corrupt import KINDS
from kd.runs.results import read
from scripts import corrupt
from tests.common import QUICK

FORMS = {"labels": (), "brightness": (8, 8, 3)}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the script in an empty folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["corrupt.py", *arguments])
        return corrupt.main(), "".join(capsys.readouterr())

    return call


def test_corrupt_writes_what_a_run_is_tested_on(call, run, tmp_path):
    code, printed = call("hard", "data=digits", "data.source.image_size=16", "--seed", "2")
    assert code == 0, printed
    assert "359 test images of digits, 8 kinds, 5 severities" in printed
    assert '''python train.py ... "data.also_test=['hard']"''' in printed
    assert np.load(tmp_path / "hard" / "contrast.npy", mmap_mode="r").shape == (5 * 359, 16, 16, 3)
    code, printed = run(*QUICK, "method=standard", f"data.also_test=[{tmp_path / 'hard'}]", "hydra.run.dir=run")
    assert code == 0, printed
    accuracies = read(tmp_path / "run" / "result.json").also_test_acc
    assert len(accuracies) == 5 * len(KINDS) + 1
    assert "hard (8 of 15 corruptions)" in accuracies


def test_every_third_image_has_the_same_labels(call, tmp_path):
    digits = ("data=digits", "data.source.image_size=8")
    for arguments in (("all", *digits), ("some", *digits, "--every", "3")):
        code, printed = call(*arguments)
        assert code == 0, printed
    assert "some: 120 test images" in printed
    every, some = (
        {kind: np.load(tmp_path / name / f"{kind}.npy").reshape(5, -1, *shape) for kind, shape in FORMS.items()}
        for name in ("all", "some")
    )
    for kind in ("labels", "brightness"):  # which draws no noise
        np.testing.assert_array_equal(some[kind], every[kind][:, ::3])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "the following arguments are required: DIR"),
        (("data=digits",), "give the folder first: python scripts/corrupt.py DIR data=digits"),
        (("a", "T=4"), "T=4: only settings of the data are taken here"),
        (("a", "data=digit"), "digit"),
        (("a", "data=digits", "--every", "0"), "argument --every: must be at least 1, got 0"),
        (("a", "data=digits", "--seed", "x"), "argument --seed: must be a whole number, got x"),
        (("a", "data=digits", "--seed", "-1"), "argument --seed: must be at least 0, got -1"),
        (("/dev/null/a", "data=digits"), "/dev/null/a cannot be written: Not a directory"),
    ],
)
def test_corrupt_refuses_a_wrong_command_in_one_line(call, arguments, line):
    code, printed = call(*arguments)
    assert (code, printed.count("\n")) == (1, 1)
    assert printed.startswith("corrupt.py: ")
    assert line in printed
