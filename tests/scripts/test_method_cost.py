import json
import logging
import sys
from functools import cache

import pytest

from scripts import method_cost
from tests import processes
from tests.common import ROOT

SMALL = (
    "student.scale=2",
    "teacher.scale=2",
    "--device",
    "cpu",
    "--rounds",
    "2",
    "--steps",
    "1",
    "--batches",
    "2",
    "4",
)


known = cache(method_cost.methods)


@pytest.fixture
def cost(tmp_path, monkeypatch, capsys):
    """Calls the script in this process, in which the files of all methods are composed once.

    Returns its exit code and what it printed, to stdout and to stderr.
    """

    def cost(*arguments):
        monkeypatch.setattr(sys, "argv", ["method_cost.py", *arguments])
        return method_cost.main(), *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(method_cost, "methods", known)
    yield cost
    logging.disable(logging.NOTSET)  # which the script sets for its process


def program(folder, *arguments):
    return processes.run(ROOT / "scripts" / "method_cost.py", *arguments, cwd=folder)


def test_method_cost_compares_methods_with_logits(tmp_path):
    files = ("--json", "cost.json", "--markdown", "cost.md")
    done = program(tmp_path, *SMALL, "--methods", "crd", "standard", "dml", *files)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert [(one["pair"], one["batch_size"]) for one in figures["tables"]] == [("cnn16:cnn32", 2), ("cnn16:cnn32", 4)]
    for one in figures["tables"]:
        rows = one["methods"]
        assert list(rows) == ["logits", "crd", "standard", "dml"]
        assert rows["logits"]["factor"] == 1
        assert rows["logits"]["ms_beyond"] == rows["logits"]["mb_beyond"] == rows["logits"]["parameters"] == 0
        assert all(row["ms"] > 0 and row["mb"] > 0 and len(row["seconds"]) == 2 for row in rows.values())
        assert rows["dml"]["mb"] > 1.2 * rows["standard"]["mb"]  # a second network
        assert rows["crd"]["mb_beyond"] > 50_000 * one["batch_size"] * 4 / 1e6  # the scores of all images, in fp32
        assert rows["crd"]["parameters"] == 2 * (64 * 128 + 128)
    assert (tmp_path / "cost.md").read_text() == done.stdout
    first, *_ = done.stdout.splitlines()
    assert first == ("| cnn16 from cnn32 | B=2: ms | × logits | MB | B=4: ms | × logits | MB | parameters |")
    assert done.stdout.count("| logits |") == 1


def test_method_cost_names_what_does_not_fit_the_networks(cost):
    networks = ("student.widen=1", "student.depth=10", "teacher.scale=2", "--pairs", "wrn22_2:cnn32")
    _, printed, _ = cost(*networks, *SMALL[2:], "--methods", "feature")
    assert "feature is not measured: stages: the student's map -1 is 8x8 and the teacher's map -1 is 16x16" in printed


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("--methods", "atx"), "--methods: no method atx to measure; there are "),
        (("--pairs", "cnn16"), "--pairs: cnn16 is no STUDENT:TEACHER"),
        (("--pairs", "cnn16:cnn99"), "cnn99"),
        (("T=1,2",), "T=1,2: give a single value"),
        (("--rounds", "0"), "must be at least 1, got 0"),
        (("--json", "nowhere/cost.json"), "no folder nowhere"),
    ],
)
def test_method_cost_reports_a_mistake_in_one_line(cost, arguments, printed):
    code, _, errors = cost(*arguments)
    assert code == 1
    assert printed in errors
    assert errors.startswith("method_cost.py: ")
    assert errors.count("\n") == 1


def test_method_cost_as_a_program_ends_with_its_line(tmp_path, one_line):
    assert "must be at least 1, got 0" in one_line(program(tmp_path, "--rounds", "0"))


def test_method_cost_prints_before_it_writes(cost, monkeypatch):
    figures = {"machine": {"device": "a processor", "rounds": 2, "steps": 1}, "overrides": [], "tables": []}
    monkeypatch.setattr(method_cost, "measure", lambda _: figures)
    code, printed, errors = cost("--json", "/dev/full", "--markdown", "cost.md")
    assert (code, errors) == (1, "method_cost.py: /dev/full: cannot be written: No space left on device\n")
    assert "a processor; medians over 2 rounds of 1 steps." in printed
