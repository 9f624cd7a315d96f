import pytest

from kd.app.check import check, knobs, nearest
from kd.app.compose import compose, plain, run_wide
from kd.app.run import check_command
from kd.errors import UserError


def settings(*overrides):
    return plain(compose(["data=digits", *overrides])[0].cfg)


def test_check_refuses_a_cohort_with_a_logger_that_takes_one_run_a_process():
    logged = {**settings(), "logger": {"_target_": "lightning.pytorch.loggers.WandbLogger"}}
    read = "${T} ${alpha}"
    check(logged, run_wide(), read, "hydra._internal.core_plugins.basic_launcher.BasicLauncher")
    with pytest.raises(UserError, match="W&B takes one run at a time"):
        check(logged, run_wide(), read, "hydra_plugins.kd.cohort.CohortLauncher")


def test_knobs_are_the_methods_own_settings():
    assert knobs(settings("method=feature", "T=4"), run_wide()) == {"T": 4, "alpha": 0.1, "beta": 0.3}
    assert knobs(settings("method=standard"), run_wide()) == {}
    assert knobs({"assistants": [{"scale": 24, "depth": 2}, 3]}, ()) == {"assistants": ["scale=24 depth=2", 3]}


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
        (["spec.networks=[teacher]"], "spec.networks is not a setting"),
    ],
)
def test_check_refuses_shorthands_in_vain_and_declarations(overrides, message):
    with pytest.raises(UserError, match=message):
        check_command(compose(["data=digits", *overrides])[0])


@pytest.mark.parametrize(
    "overrides",
    [
        ["epochs=3", "recipe=published", "recipe.epochs=7"],
        ["lr=0.3", "recipe=published"],
        ["epochs=3", "recipe@teacher_recipe=published", "method=standard"],
        ["lr=0.3", "recipe=adamw"],
    ],
)
def test_check_takes_shorthands_that_reach_what_is_trained(overrides):
    check_command(compose(["data=digits", *overrides])[0])


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
