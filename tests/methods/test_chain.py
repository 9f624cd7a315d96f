"""Chains, in which a student becomes the next teacher: teacher assistants and generations, run as they are typed."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from kd.runs.results import read
from kd.training.callbacks import EpochSeed
from tests import common

QUICK = (*common.QUICK, "epochs=1")


def entries(folder):
    """The keys of the finished teachers in the store, by the names of their folders."""
    found = {}
    for path in folder.glob("teachers/*/entry.json"):
        found[path.parent.name] = json.loads(path.read_text())["recipe"]
    return found


def trained(said):
    """How many teachers and students a run trained."""
    return said.count("training the teacher"), said.count("training the student")


def test_teacher_assistants(run, tmp_path):
    takd = (*QUICK, "method=takd", "assistants=[{scale:4},{scale:3}]")
    code, said = run(*takd, "hydra.run.dir=first")
    assert (code, trained(said)) == (0, (3, 1))
    record = read(tmp_path / "first" / "result.json")
    assert (record.method, record.teacher, record.student) == ("takd", "cnn32 > scale=4 > scale=3", "cnn16")
    assert record.knobs == {"T": 5.0, "alpha": 0.1, "assistants": ["scale=4", "scale=3"]}

    (last,) = (key for key in entries(tmp_path).values() if key["model"]["scale"] == 3)
    assert last["method"]["_target_"] == "kd.methods.logits.Logits"
    assert (last["method"]["T"], last["method"]["alpha"]) == (5.0, 0.1)
    (middle,) = last["taught_by"]
    assert middle["model"]["scale"] == 4
    assert middle in entries(tmp_path).values()
    (first,) = middle["taught_by"]
    assert "taught_by" not in first  # of labels
    assert first in entries(tmp_path).values()

    # A second run finds every link, and comes to the same.
    code, said = run(*takd, "hydra.run.dir=second")
    assert (code, trained(said)) == (0, (0, 1))
    second = read(tmp_path / "second" / "result.json")
    assert (second.test_acc, second.teacher_id) == (record.test_acc, record.teacher_id)

    # What is taught otherwise is another link, and so is all that it teaches; the first teacher is still the same.
    code, said = run(*takd, "T=2", "hydra.run.dir=third")
    assert (code, trained(said)) == (0, (2, 1))
    assert len(entries(tmp_path)) == 5
    # Another student of the same assistants needs none of its own.
    code, said = run(*takd, "seed=1", "hydra.run.dir=fourth")
    assert (code, trained(said)) == (0, (0, 1))


def test_generations(run, tmp_path):
    code, said = run(*QUICK, "method=ban", "generations=2", "hydra.run.dir=run")
    assert (code, trained(said)) == (0, (2, 1))
    record = read(tmp_path / "run" / "result.json")
    assert (record.method, record.teacher, record.student) == ("ban", "cnn16 > cnn16", "cnn16")
    assert record.knobs == {"T": 1.0, "alpha": 0.5, "generations": 2}
    (first,) = (key for key in entries(tmp_path).values() if "taught_by" not in key)
    (second,) = (key for key in entries(tmp_path).values() if "taught_by" in key)
    assert second["taught_by"] == [first]
    assert first["model"] == second["model"]
    assert first["seed"] != second["seed"]
    # One generation more is one more training: those before it are found.
    code, said = run(*QUICK, "method=ban", "generations=3", "hydra.run.dir=more")
    assert (code, trained(said)) == (0, (1, 1))


def test_another_method_makes_another_link(run, tmp_path):
    chain = (*QUICK, "chain=[{scale:3}]")
    for method, links in (("logits", 2), ("feature", 1), ("dkd", 1)):
        code, said = run(*chain, f"method={method}", f"hydra.run.dir={method}")
        assert (code, trained(said)) == (0, (links, 1))
    taught = [key["method"]["_target_"] for key in entries(tmp_path).values() if "method" in key]
    assert sorted(taught) == ["kd.methods.dkd.DKD", "kd.methods.feature.Feature", "kd.methods.logits.Logits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("method=dml", "chain=2"), "reads nothing of a teacher: leave chain out"),
        (("method=tfkd", "chain=2"), "reads nothing of a teacher: leave chain out"),
        (("method=ban", "generations=0"), r"generations must be a whole number in \[1, inf\), got 0"),
        (("method=takd", "generations=2"), "generations"),
        (("method=takd", "assistants=[{scale:0}]"), r"scale must be a whole number in \[1, 512\], got 0"),
    ],
)
def test_chain_that_cannot_be_is_refused_before_anything_is_trained(run, tmp_path, arguments, message):
    code, said = run(*QUICK, *arguments)
    assert code == 1
    assert re.search(message, said)
    assert "Traceback" not in said
    assert not (tmp_path / "teachers").exists()


def test_chain_in_a_cohort_is_what_it_is_alone(run, tmp_path, cohorts):
    """Assistant and student store the logits of different teachers: neither may get the other's."""
    grid = (*QUICK, "method=takd", "assistants=[{scale:3}]", "seed=0,1", "data.order_seed=0")
    stored = ("speed.stored_logits=true", "threads=1")
    for launcher in ("basic", "cohort"):
        where = (f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}", f"teacher_store=of_{launcher}")
        assert run("-m", *grid, *stored, *where)[0] == 0
    assert cohorts == [2]
    for job in ("0", "1"):
        alone, together = (load_file(tmp_path / kind / job / "student.safetensors") for kind in ("basic", "cohort"))
        assert all(torch.equal(tensor, together[name]) for name, tensor in alone.items())


LIKE = ("method=logits", "teacher=cnn16", "teacher.scale=2")


@pytest.mark.parametrize("like", [("method=ban",), LIKE, (*LIKE, "student.head_dropout=0.3", "student.activation=elu")])
def test_student_does_not_begin_as_a_teacher_like_it_did(run, tmp_path, like):
    """With the labels alone the two would become the same network: all seeds are 0."""
    assert run(*QUICK, *like, "alpha=1", "hydra.run.dir=run")[0] == 0
    (teacher,) = tmp_path.glob("teachers/*/*.safetensors")
    theirs, ours = load_file(teacher), load_file(tmp_path / "run" / "student.safetensors")
    assert theirs.keys() == ours.keys()
    assert not torch.equal(theirs["classifier.weight"], ours["classifier.weight"])
    assert read(tmp_path / "run" / "result.json").seed == 0


def test_students_random_numbers_in_training_are_not_those_of_a_teacher_like_it(run, monkeypatch):
    """Dropout's, which each epoch seeds anew."""
    begun = []
    monkeypatch.setattr("kd.training.fit.EpochSeed", lambda seed: begun.append(seed) or EpochSeed(seed))
    assert run(*QUICK, *LIKE)[0] == 0
    assert len(begun) == len(set(begun)) == 2
