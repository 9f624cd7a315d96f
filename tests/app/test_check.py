from functools import cache

import pytest

from kd.app.check import check_command, knobs, nearest
from kd.app.compose import compose, plain
from kd.errors import UserError


@cache
def composed(*overrides):
    """Not to be changed."""
    return compose(["data=digits", *overrides])


def settings(*overrides):
    return plain(composed(*overrides).cfg)


def test_check_refuses_a_cohort_with_a_logger_that_takes_one_run_a_process():
    logged = ["data=digits", "logger=wandb"]
    check_command(compose(logged, launcher="hydra._internal.core_plugins.basic_launcher.BasicLauncher"))
    with pytest.raises(UserError, match="W&B takes one run at a time"):
        check_command(compose(logged, launcher="hydra_plugins.kd.cohort.CohortLauncher"))


def test_knobs_are_the_methods_own_settings():
    assert knobs(settings("method=feature", "T=4")) == {"T": 4, "alpha": 0.1, "beta": 0.3}
    assert knobs(settings("method=standard")) == {}
    assert knobs({"assistants": [{"scale": 24, "depth": 2}, 3]}) == {"assistants": ["scale=24 depth=2", 3]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["epochs=3", "recipe=published"],
            r"epochs=3 does not reach recipe, .* \(240\); give recipe.epochs=3, or leave",
        ),
        (["batch_size=3", "recipe@teacher_recipe=published"], "batch_size=3 does not reach teacher_recipe"),
        (["lr=-1"], r"lr must be in \[0, inf\), got -1"),
        (
            ["batch_size=0"],
            r"batch_size must be .*\[1, inf\), got 0",
        ),
        (
            ["chain=-1"],
            r"chain must be a whole number up to 100, or a list of settings such as \[\{scale:24\}\], got -1",
        ),
        (["chain=[24]"], "chain must be a whole number up to 100, or a list of settings"),
        (["chain=[{scal:24}]"], "chain: the student has no setting 'scal' .* it has scale, activation"),
        (["method=takd", "assistants=[]"], "this method is a chain of networks, and there is none in it"),
        (["student._target_=null"], "student has no _target_, the class that takes its settings; choose a file"),
        (["data.source._target_=3"], "data.source has no _target_, the class that takes its settings"),
        (["method._target_=null"], "choose a file of conf/method"),
        (["spec.networks=[teacher]"], "spec.networks is not a setting"),
        (["method=nkd", "gamma=-1"], r"gamma must be in \[0, inf\), got -1"),
        (["method=nkd", "gamma=-1", "method._target_=my_package.NKD"], r"gamma must be in \[0, inf\), got -1"),
        (["recipe/schedule=multistep", "recipe.schedule.gamma=3.5"], r"schedule.gamma must be in \(0, 1\], got 3.5"),
    ],
)
def test_check_refuses_shorthands_in_vain_and_declarations(overrides, message):
    with pytest.raises(UserError, match=message):
        check_command(compose(["data=digits", *overrides]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["epochs=3", "recipe=published", "recipe.epochs=7"],
        ["lr=0.3", "recipe=published"],
        ["method=nkd", "gamma=3.5"],  # the knob's range and not that of a schedule's gamma
        ["epochs=3", "recipe@teacher_recipe=published", "method=standard"],
        ["lr=0.3", "recipe=adamw"],
        ["student=custom", "student.target=my_pkg.Net", "student.settings={width:32}"],  # not shufflenetv1's width
    ],
)
def test_check_takes_shorthands_that_reach_what_is_trained(overrides):
    check_command(compose(["data=digits", *overrides]))


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "method=combine",
            "method.terms={nkd: {weight: 1.0, gamma: 3.5}}",
        ],  # a schedule's is at most 1
        ["student._target_=my_package.ResNeXt", "+student.groups=32"],
        ["data.source._target_=my_package.images", "+data.source.size=0.5"],
        ["method=logits", "method._target_=my_package.Method", "+method.rise=2.0"],
    ],
)
def test_check_takes_arguments_of_other_classes_that_are_called_like_settings(overrides):
    check_command(compose(["data=digits", *overrides]))


def test_shorthands_reach_both_networks_and_either_apart():
    both = settings("epochs=3", "batch_size=32", "lr=0.05")
    for recipe in (both["recipe"], both["teacher_recipe"]):
        assert (recipe["epochs"], recipe["batch_size"], recipe["optimizer"]["lr"]) == (3, 32, 0.05)
    apart = settings("lr=0.05", "teacher_recipe.optimizer.lr=0.2", "recipe.epochs=7")
    assert [apart[name]["optimizer"]["lr"] for name in ("recipe", "teacher_recipe")] == [0.05, 0.2]
    assert [apart[name]["epochs"] for name in ("recipe", "teacher_recipe")] == [7, 5]
    own = settings("recipe/optimizer=adamw")
    assert [own[name]["optimizer"]["lr"] for name in ("recipe", "teacher_recipe")] == [0.002, 0.1]
    assert settings("recipe/optimizer=adamw", "lr=0.01")["recipe"]["optimizer"]["lr"] == 0.01


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data.epochs", "epochs"),
        ("weight_decay", "recipe.optimizer.weight_decay"),
        ("recipe.lr", "lr"),
        ("student.scal", "student.scale"),
        ("zzz", None),
        ("val_fraction", "data.val_fraction"),
        ("trainer.acclerator", "trainer.accelerator"),
        ("alfa", "alpha"),
    ],
)
def test_nearest_finds_what_was_probably_meant(name, expected):
    found = nearest(name, settings())
    assert found == [] if expected is None else expected in found[:3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.in_memory=no"], "data.in_memory must be true or false, got no"),
        (["speed.fused=off"], "speed.fused must be true or false, got off"),
        (["data.augment.flip=1"], "data.augment.flip must be true or false, got 1"),
        (["speed.stored_logits=maybe"], "speed.stored_logits must be one of auto, true, false, got maybe"),
        (["teacher_weights=3"], r"teacher_weights must be a path, or a list such as \[A,B\] of them, got 3"),
        (["teacher_weights=false"], "teacher_weights must be a path, or a list .*, got false"),
        (["teacher_weights=[]"], r"teacher_weights must be a path, or a list .*, got \[\]"),
        (["teacher_weights=[a,3]"], r"teacher_weights must be a path, or a list .*, got \['a', 3\]"),
        (["teacher_store=''"], "teacher_store must be text, got no value"),
        (["method=feature", "method.stages=last"], "method.stages must be a list of whole numbers, got last"),
        (["T={a:1}"], r"T must be a number in .*, got {'a': 1}"),
        (["T=null"], "T must be a number .*, got null"),
        (["data.source=1.5"], "data.source=1.5: data.source holds several settings; set them one by one"),
        (["data.augment=null"], "data.augment=null: data.augment holds several settings"),
        (["~data.augment"], "data.augment=null: data.augment holds several settings"),
        (["logger.name=x", "~logger._target_"], "choose a file of conf/logger"),
        (["+recipe.foo=4"], "recipe.foo=4: nothing reads this setting"),
        (["+recipe.lable_smoothing=0.1"], r"nothing reads this setting; did you mean recipe\.label_smoothing\?"),
        (["+data.foo=4"], "data.foo=4: nothing reads this setting"),
        (["+foo=4"], "foo=4: this method has no such knob"),
        (["+foo=null"], "foo=None: nothing reads this setting"),
        (["+foo.bar=4"], "foo.bar=4: nothing reads this setting"),
        (["+optimizer.lr=0.01"], r"optimizer.lr=0.01: nothing reads this setting; did you mean .*recipe.optimizer.lr"),
        (["+experiment.T=4"], "the file of experiment= has to begin with the line '# @package _global_'"),
        (["method.T=4"], "method.T takes the value of T; give T=4 instead"),
        (["+trainer.foo=1"], "trainer.foo: the Trainer has no such argument"),
        (["+trainer.limit_train_batchs=1"], r"did you mean \+trainer\.limit_train_batches\?"),
        (["+trainer.max_steps=1"], "trainer.max_steps is set by the run itself; give epochs instead"),
        (["+trainer.enable_checkpointing=false"], "trainer.enable_checkpointing is set by the run itself"),
        (["+trainer.barebones=true"], "trainer.barebones is set by the run itself"),
        (["+trainer.limit_test_batches=0"], r"trainer.limit_test_batches must be in \(0, inf\), got 0"),
        (["trainer.strategy=ddp_spawn"], "write trainer.strategy=ddp"),
        (["trainer.devices=0"], r"trainer.devices must be how many, which as in \[0,1\], or auto, got 0"),
        (["trainer.devices=[]"], "trainer.devices must be how many"),
        (["trainer.precision=12"], "trainer.precision must be one of auto, 16-mixed"),
        (["trainer.deterministic=maybe"], "trainer.deterministic must be one of true, false, warn"),
        (["recipe.clip_norm=1e-300"], r"recipe.clip_norm must be in \[1e-6, inf\), got 1e-300"),
        (["threads=1e30"], "threads must be a whole number .*, got 1e\\+30"),
        (["threads=100000"], r"threads must be a whole number in \[1, 1024\], got 100000"),
        ([f"epochs={10**400}"], "epochs must be a whole number .* got a number of hundreds of digits"),
        (["ensemble=2", "teacher_seed=4294967295"], "2 teachers have the seeds from teacher_seed on"),
        (["method=standard", "chain=1"], "chain is for methods that learn from a teacher"),
        (["method=ban", "chain=3"], "generations=1: what would read it has a value of its own"),
        (["method.label_smoothing=0.5"], "takes the value of recipe.label_smoothing"),
        (
            ["method=pld", "recipe.label_smoothing=0.3"],
            "recipe.label_smoothing=0.3: this method does not smooth",
        ),
        (["+student.num_classes=5"], "student.num_classes comes from the data"),
        (["+logger.save_dir=foo"], "logger.save_dir is the run's own directory"),
        (["logger.name=3"], "logger.name must be text, got 3"),
        (["data.also_test=here"], r"data.also_test must be a list such as \[DIR\] of folders, got here"),
        (["data.also_test=[nowhere]"], "data.also_test: no folder nowhere"),
        (["data.also_test=[nowhere]", "method=teacher"], "data.also_test: no folder nowhere"),
        (["data.image_size=[48]"], r"data.image_size must be one number for squares, or \[HEIGHT,WIDTH\], got \[48\]"),
        (["data.image_size=[48,0]"], r"data.image_size must be a whole number in \[1, 4096\], got 0"),
        (["data.channels=2"], "data.channels must be one of 1, 3, got 2"),
        (["+student.in_channels=1"], "student.in_channels comes from the data"),
        (["data.noise=1"], r"data.noise must be in \[0, 1\), got 1"),
        (["data.fraction=0"], r"data.fraction must be in \(0, 1\], got 0"),
        (["+trainer.detect_anomaly=abc"], "trainer.detect_anomaly must be true or false, got abc"),
        (["+trainer.limit_predict_batches=3"], "trainer.limit_predict_batches is set by the run itself"),
        (["chain=3", "teacher_seed=4294967294"], "3 teachers have the seeds from teacher_seed on"),
    ],
)
def test_check_refuses_what_would_be_taken_for_something_else(overrides, message):
    with pytest.raises(UserError, match=message):
        check_command(compose(["data=digits", *overrides]))


@pytest.mark.parametrize(
    ("recipe", "lr", "warmup"),
    [
        (["recipe=published", "recipe/schedule=cosine", "recipe/optimizer=adamw"], 0.002, 0.05),
        (["recipe=published", "recipe/schedule=one_cycle"], 0.05, 0.25),
        (["experiment=cifar100/vgg13_vgg8", "recipe/optimizer=adamw"], 0.002, 0.0),
        (["experiment=cifar100/vgg13_vgg8", "recipe/optimizer=adamw", "lr=0.01"], 0.01, 0.0),
    ],
)
def test_published_recipe_takes_another_optimiser_and_schedule_with_their_own_values(recipe, lr, warmup):
    command = compose(recipe)
    check_command(command)
    assert command.cfg.recipe.optimizer.lr == lr
    assert command.cfg.recipe.schedule.warmup == warmup
    assert (command.cfg.recipe.epochs, command.cfg.recipe.clip_norm) == (240, None)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("networks", [], "spec.networks of this method's file must list teacher, student or both, got"),
        ("networks", ["studnet"], "must list teacher, student or both"),
        ("ranges", None, "spec.ranges of this method's file must be ranges by knob, {} for none, got None"),
        ("ranges", {"T": [0, 5]}, "T must be as in"),
        ("ranges", {"T": "from 0 to 1"}, "T must be as in"),
        ("ranges", {"T + beta": "[0, 1]"}, "has T . beta, and there is no setting beta"),
    ],
)
def test_check_names_what_a_methods_file_declares_wrongly(part, value, message):
    command = compose(["data=digits", "method=logits"])
    command.cfg.spec[part] = value
    with pytest.raises(UserError, match=message):
        check_command(command)


def test_check_of_given_weights_takes_a_run_directory_and_names_settings_without_effect(tmp_path):
    with pytest.raises(UserError, match=f"no weights in {tmp_path}: it has neither student.safetensors nor teacher.s"):
        check_command(compose(["data=digits", f"teacher_weights={tmp_path}"]))
    (tmp_path / "student.safetensors").touch()
    check_command(compose(["data=digits", f"teacher_weights={tmp_path}"]))
    optimizer = "recipe/optimizer@teacher_recipe.optimizer=adamw"
    for more in ("teacher_seed=5", "teacher_recipe.epochs=5", "recipe@teacher_recipe=adamw", optimizer):
        given = ["data=digits", f"teacher_weights={tmp_path}/student.safetensors", more]
        with pytest.raises(UserError, match=f"{more} is for a teacher to be trained"):
            check_command(compose(given))
    with pytest.raises(UserError, match="no weights at /nowhere"):
        check_command(compose(["data=digits", f"teacher_weights=[{tmp_path},/nowhere]"]))
    with pytest.raises(UserError, match=r"ensemble is for teachers of the store; .* teacher_weights=\[A,B\]"):
        check_command(compose(["data=digits", f"teacher_weights=[{tmp_path},{tmp_path}]", "ensemble=2"]))
    # It has assistants, whose seeds come from it.
    check_command(compose(["data=digits", f"teacher_weights={tmp_path}", "method=takd", "teacher_seed=3"]))


def test_check_takes_settings_that_are_referred_to():
    check_command(compose(["data=digits", "+data.mine=3", "student.scale=${data.mine}"]))
    check_command(compose(["data=digits", "+mine.scale=3", "student.scale=${mine.scale}"]))
    check_command(compose(["data=digits", "speed.stored_logits=true", "trainer.devices=[0]", "logger=none"]))
