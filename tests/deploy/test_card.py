import logging
import re
from dataclasses import replace

import pytest
import yaml

from kd.deploy.card import card, write_card
from kd.errors import UserError
from kd.runs.results import Result

DONE = Result(
    method="logits",
    knobs={"T": 4.0},
    seed=3,
    student="cnn16",
    teacher="cnn32",
    taught=True,
    student_params=1_071_066,
    dataset="CIFAR-10 (JPEG)",
    epochs=30,
    test_acc=0.8241,
    test_images=10_000,
    teacher_test_acc=0.85,
    agreement=0.9,
    status="done",
    command="method=logits T=4",
)


def front_matter(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_card_has_the_front_matter_of_the_hub_and_the_figures_with_n():
    text = card(DONE, "student.safetensors", "mit")
    facts = front_matter(text)
    assert (facts["license"], facts["datasets"], facts["library_name"]) == ("mit", ["uoft-cs/cifar10"], "kd")
    (entry,) = facts["model-index"]
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "CIFAR-10 (JPEG)", "type": "uoft-cs/cifar10", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.8241, "name": "accuracy, seed 3, n = 1"}]
    assert "# cnn16 on CIFAR-10 (JPEG), taught by cnn32" in text
    assert "| accuracy | 82.41% [81.65%, 83.14%] |" in text  # Wilson's interval of 8,241 of 10,000
    assert "n = 1" in text
    assert "python train.py method=logits T=4" in text
    assert "license" not in front_matter(card(DONE, "student.safetensors"))


@pytest.mark.parametrize(
    ("dataset", "hub"),
    [
        ("CIFAR-10", "uoft-cs/cifar10"),
        ("CIFAR-100", "uoft-cs/cifar100"),
        ("CIFAR-10 (4,000 of 60,000 images)", None),
        ("SVHN-crops", None),
    ],
)
def test_card_names_the_hubs_data_set_for_the_whole_of_it_alone(dataset, hub):
    facts = front_matter(card(replace(DONE, dataset=dataset), "student.safetensors"))
    assert facts.get("datasets") == (None if hub is None else [hub])
    assert facts["model-index"][0]["results"][0]["dataset"]["type"] == (hub or dataset)


@pytest.mark.parametrize(
    ("student", "call", "needs"),
    [
        ("cnn16", 'kd.load("w")', "Architecture, class names"),
        ("custom", 'kd.load("w", trust=True)', "has to be on the import path"),
        ("timm", 'kd.load("w")', "it needs timm"),
    ],
)
def test_card_says_what_loading_takes(student, call, needs):
    text = card(replace(DONE, student=student), "w")
    assert call in text
    assert needs in text


def test_card_of_a_teacher_names_no_teacher():
    teacher = replace(DONE, method="teacher", student=None, taught=False, teacher_params=4_271_530, agreement=None)
    text = card(teacher, "teacher.safetensors")
    assert "# cnn32 on CIFAR-10 (JPEG)\n" in text
    assert "| parameters | 4,271,530 |" in text
    assert "knowledge-distillation" not in front_matter(text)["tags"]


def test_card_shows_a_strangers_names_as_text():
    evil = {"method": "`x`\n# a", "warnings": ["<script>"], "knobs": {"T": "*"}, "student": "[a](b)\ud800"}
    text = card(replace(DONE, dataset="x: [1]\n---\n<b>`|", command="a=1\n```\n# b", **evil), "student.safetensors")
    assert front_matter(text)["model-index"][0]["results"][0]["dataset"]["name"] == "x: [1]\\n---\\n<b>`|"
    assert "\n# b" not in text
    assert "\n# a" not in text
    assert "\\<b>" in text
    assert "\\<script>" in text
    assert r"method=\`x\`\\n# a, T=\*." in text
    assert r"# [a]\(b)\\ud800 on" in text
    text.encode()


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"status": "running"}, "the run is running, and only one that is done has figures"),
        ({"trial": "tested on 128 of 360 images"}, "the run is a trial (tested on 128 of 360 images)"),
    ],
)
def test_card_is_refused_to_runs_without_whole_figures(changes, answer):
    with pytest.raises(UserError, match=re.escape(answer)):
        card(replace(DONE, **changes), "student.safetensors")


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "student.safetensors").touch()
    return tmp_path


def test_write_card_leaves_the_card_of_a_run(directory):
    write_card(DONE, directory)
    assert (directory / "README.md").read_text() == card(DONE, "student.safetensors")
    assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_write_card_leaves_what_is_there(directory, there):
    path = directory / "README.md"
    if there == "link":
        path.symlink_to(directory / "elsewhere")
    elif there == "folder":
        path.mkdir()
    else:
        path.write_text("notes")
    write_card(DONE, directory)
    assert not (directory / "elsewhere").exists()
    assert path.is_dir() or path.is_symlink() or path.read_text() == "notes"
    assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize("changes", [{"status": "failed"}, {"status": "pruned"}, {"trial": "tested on 1 of 2 images"}])
def test_write_card_writes_none_of_a_run_without_whole_figures(directory, changes):
    write_card(replace(DONE, **changes), directory)
    assert [path.name for path in directory.iterdir()] == ["student.safetensors"]


def test_write_card_warns_if_it_cannot_write(directory, monkeypatch, caplog):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with caplog.at_level(logging.WARNING):
        write_card(DONE, directory)
    assert caplog.messages == ["no model card: [Errno 28] No space left on device"]
    assert [path.name for path in directory.iterdir()] == ["student.safetensors"]
