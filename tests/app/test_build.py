"""What the builder makes of settings."""

import pytest
import torch

import kd
from kd.app.build import Builder
from kd.app.compose import compose
from kd.errors import UserError
from kd.models.output import multiply_adds
from kd.runs.results import read


def test_source_that_returns_no_images_is_named():
    build = Builder(compose(["data=digits", "data.source._target_=builtins.dict"]))
    with pytest.raises(UserError, match=r"has to return kd.data.images.Images, not dict"):
        _ = build.images


def test_store_of_an_unknown_user_is_a_folder_of_that_name():
    assert str(Builder(compose(["data=digits", "teacher_store='~no-such-user/t'"])).store) == "~no-such-user/t"


@pytest.mark.parametrize(("device", "devices"), [("cpu", 1), ("cuda:0", [0]), ("cuda:2", [2])])
def test_teacher_is_trained_on_the_device_of_the_run(monkeypatch, device, devices):
    """Lightning takes `devices=1` for the first GPU, whichever the user has chosen."""
    build = Builder(compose(["data=digits", "trainer.devices=[2,3]", "method=logits"]))
    monkeypatch.setattr(Builder, "device", torch.device(device))
    (teacher,) = build.first_teachers
    assert build.trainer(teacher).keywords["devices"] == devices
    assert build.trainer(build.student).keywords["devices"] == [2, 3]


@pytest.mark.parametrize("recipe", ["default", "published"])
def test_biases_have_weight_decay_where_the_recipe_wants_it(recipe):
    build = Builder(compose(["data=digits", "method=logits", f"recipe={recipe}", f"recipe@teacher_recipe={recipe}"]))
    teacher, student = build.first_teachers[0], build.student
    frozen = kd.freeze(build.net(teacher.network))
    modules = build.module(teacher, build.net(teacher.network), None), build.module(student, frozen.net, frozen)
    assert [module.decay_all for module in modules] == [recipe == "published"] * 2


def test_record_counts_the_multiply_adds_of_what_was_trained(finished):
    student = read(finished / "run" / "result.json")
    (entry,) = (finished / "teachers").glob("*/result.json")
    teacher = read(entry)
    assert student.multiply_adds == multiply_adds(kd.load(finished / "run").net, 16)
    assert teacher.multiply_adds == multiply_adds(kd.load(entry.parent).net, 16)
    assert student.student_params is not None
    assert student.multiply_adds > student.student_params  # convolutions use each weight at many places
