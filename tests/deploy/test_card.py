import re
from dataclasses import replace

import pytest
import yaml

from kd.deploy.card import card
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


def test_card_of_a_teacher_names_no_teacher():
    teacher = replace(DONE, method="teacher", student=None, taught=False, teacher_params=4_271_530, agreement=None)
    text = card(teacher, "teacher.safetensors")
    assert "# cnn32 on CIFAR-10 (JPEG)\n" in text
    assert "| parameters | 4,271,530 |" in text
    assert "knowledge-distillation" not in front_matter(text)["tags"]


def test_card_shows_a_strangers_names_as_text():
    text = card(replace(DONE, dataset="x: [1]\n---\n<b>`|", command="a=1\n```\n# b"), "student.safetensors")
    assert front_matter(text)["model-index"][0]["results"][0]["dataset"]["name"] == "x: [1]\\n---\\n<b>`|"
    assert "\n# b" not in text
    assert "\\<b>" in text


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
