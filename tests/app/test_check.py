import pytest

from kd.app.check import check, decisive, fingerprint, variant
from kd.errors import UserError

SETTINGS = {
    "roles": ["teacher", "student"],
    "seed": 0,
    "teacher_weights": None,
    "trainer": {"precision": "auto", "devices": 1},
    "data": {"root": "data", "source": {"_target_": "kd.data.cifar.cifar10", "root": "data"}},
}


def test_one_teacher_is_the_run_of_before_there_were_ensembles():
    """So that its sweeps go on, and its seeds share a row."""
    assert fingerprint({**SETTINGS, "ensemble": 1}) == fingerprint(SETTINGS)
    assert fingerprint({**SETTINGS, "ensemble": 2}) != fingerprint(SETTINGS)


def test_where_a_run_happens_decides_nothing():
    elsewhere = {**SETTINGS, "threads": 2, "logger": None, "teacher_store": "x", "trainer": {"precision": "auto"}}
    assert decisive(elsewhere) == decisive(SETTINGS)
    assert decisive({**SETTINGS, "trainer": {"precision": "32-true"}}) != decisive(SETTINGS)


def test_a_network_that_takes_no_part_decides_nothing():
    """Or a sweep over teachers would train the student without one again for each of them."""
    alone = {**SETTINGS, "roles": ["student"], "student": {"scale": 16}, "recipe": {"epochs": 30}}
    small, large = (
        {**alone, "teacher": {"scale": scale}, "ensemble": scale, "teacher_seed": scale} for scale in (1, 2)
    )
    assert fingerprint(small) == fingerprint(large)
    assert fingerprint({**small, "recipe": {"epochs": 31}}) != fingerprint(small)
    taught = [{**one, "roles": ["teacher", "student"]} for one in (small, large)]
    assert fingerprint(taught[0]) != fingerprint(taught[1])
    teacher = {**small, "roles": ["teacher"]}
    assert fingerprint({**teacher, "recipe": {"epochs": 31}}) == fingerprint(teacher)
    assert fingerprint({**teacher, "teacher_seed": 5}) != fingerprint(teacher)


def test_nor_does_it_set_a_run_apart():
    overrides = (
        "method=standard", "teacher.scale=8", "recipe/optimizer@teacher_recipe.optimizer=adamw", "ensemble=3",
        "student.scale=4", "recipe/optimizer=adamw", "recipe.epochs=2", "data.val_fraction=0", "logger.save_dir=x",
    )  # fmt: skip
    of_student = "recipe.epochs=2 recipe/optimizer=adamw student.scale=4"
    of_teacher = "recipe/optimizer@teacher_recipe.optimizer=adamw teacher.scale=8"
    assert variant(overrides, ["student"]) == f"data.val_fraction=0 {of_student}"
    assert variant(overrides, ["teacher"]) == f"data.val_fraction=0 {of_teacher}"
    assert variant(overrides, ["teacher", "student"]).split() == sorted(
        f"data.val_fraction=0 ensemble=3 {of_student} {of_teacher}".split()
    )


def test_a_cohort_and_a_logger_that_takes_one_run_a_process_exclude_each_other():
    settings = {**SETTINGS, "logger": {"_target_": "lightning.pytorch.loggers.WandbLogger"}, "limits": {}, "method": {}}
    settings |= {"trainer": {"devices": 1, "strategy": "auto"}}
    check(settings, settings, "", "hydra._internal.core_plugins.basic_launcher.BasicLauncher")
    with pytest.raises(UserError, match="W&B takes one run at a time"):
        check(settings, settings, "", "hydra_plugins.kd.cohort.CohortLauncher")
