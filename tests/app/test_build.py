"""What the builder makes of settings."""

import pytest
import torch

import kd
from kd.app.build import Builder
from kd.app.compose import compose
from kd.data.module import stratified_split
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


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_network_is_trained_as_its_own_recipe_says(role):
    name, method = ("recipe", "standard") if role == "student" else ("teacher_recipe", "logits")
    own = ("epochs=7", "batch_size=40", "label_smoothing=0.3", "clip_norm=0.7", "optimizer.lr=0.03")
    build = Builder(compose(["data=digits", f"method={method}", *(f"{name}.{setting}" for setting in own)]))
    plan = build.student if role == "student" else build.first_teachers[0]
    module, trainer = build.module(plan, build.net(plan.network), None), build.trainer(plan).keywords
    assert (trainer["max_epochs"], trainer["gradient_clip_val"], build.data(plan).batch_size) == (7, 0.7, 40)
    assert (module.label_smoothing, module._optimizer.keywords["lr"]) == (0.3, 0.03)


def test_images_are_split_and_fetched_as_the_settings_say():
    build = Builder(compose(["data=digits", "data.in_memory=false", "data.workers=1", "data.split_seed=3"]))
    data = build.data(build.student)
    assert (data.in_memory, data.workers) == (False, 1)
    assert torch.equal(data.val_index, stratified_split(build.images.train_y, 0.1, 3)[1])


def test_precision_that_is_typed_is_that_of_the_training():
    build = Builder(compose(["data=digits", "trainer=cpu", "trainer.precision=bf16-mixed"]))
    assert [build.precision, build.trainer(build.student).keywords["precision"]] == ["bf16-mixed"] * 2


def test_record_counts_the_multiply_adds_of_what_was_trained(finished):
    student = read(finished / "run" / "result.json")
    (entry,) = (finished / "teachers").glob("*/result.json")
    teacher = read(entry)
    assert student.multiply_adds == multiply_adds(kd.load(finished / "run").net, 16)
    assert teacher.multiply_adds == multiply_adds(kd.load(entry.parent).net, 16)
    assert student.student_params is not None
    assert student.multiply_adds > student.student_params  # convolutions use each weight at many places
