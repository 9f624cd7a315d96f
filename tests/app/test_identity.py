"""Which settings decide a teacher, a result, a cohort. With too little in a key, something wrong is found under it."""

import copy
from functools import cache

import pytest

from kd.app.build import Builder
from kd.app.compose import compose, plain
from kd.app.identity import cohort_key, decisive, fingerprint, group, logit_key, variant
from kd.hashing import digest


@cache
def composed(*overrides):
    """Not to be changed."""
    return compose(["data=digits", *overrides])


def settings(*overrides):
    return plain(composed(*overrides).cfg)


@cache
def key_of(*overrides):
    """Not to be changed."""
    build = Builder(composed(*overrides))
    return build.key(build.first_teachers[0], None)


@pytest.mark.parametrize(
    ("changed", "teacher", "result"),
    [
        ("teacher.scale=8", True, True),
        ("epochs=3", True, True),
        ("batch_size=32", True, True),
        ("lr=0.3", True, True),
        ("teacher_recipe.epochs=3", True, True),
        ("teacher_recipe.optimizer.lr=0.3", True, True),
        ("data.augment.crop=1", True, True),
        ("data.val_fraction=0.2", True, True),
        ("data.split_seed=1", True, True),
        ("teacher_seed=1", True, True),
        ("speed.channels_last=false", True, True),
        ("data.source.image_size=16", True, True),
        ("teacher_recipe.ema=0.9", True, True),
        ("recipe.ema=0.9", False, True),
        ("teacher_recipe.decay_all=true", True, True),
        ("recipe.decay_all=true", False, True),
        ("data.augment.policy=trivialaugment", True, True),
        ("data.fraction=0.5", True, True),
        ("data.noise=0.2", True, True),
        ("data.balance=weights", True, True),
        ("data.channels=1", True, True),
        ("data.also_test=[.]", False, True),
        ("speed.fused=false", True, True),
        ("speed.fold_teacher=false", False, True),
        ("speed.keep_memory=false", False, True),
        ("speed.stored_logits=false", False, True),
        ("trainer.precision=32-true", True, True),
        ("+trainer.limit_train_batches=2", True, True),
        ("+trainer.max_steps=2", True, True),
        ("+trainer.fast_dev_run=true", True, True),
        ("+trainer.limit_test_batches=2", False, True),
        ("+trainer.limit_val_batches=2", False, True),
        ("debug=profiler", False, False),
        ("+trainer.detect_anomaly=true", False, False),
        ("T=3", False, True),
        ("seed=1", False, True),
        ("student.scale=4", False, True),
        ("recipe.epochs=3", False, True),
        ("ensemble=2", False, True),
        ("chain=[{}]", False, True),
        ("method=standard", None, True),
        ("trainer.devices=2", False, False),
        ("logger=none", False, False),
        ("teacher_store=elsewhere", False, False),
    ],
)
def test_keys_of_teacher_and_run_change_with_what_decides_them(changed, teacher, result):
    if teacher is not None:
        assert (key_of() != key_of(changed)) == teacher
    assert (fingerprint(settings()) != fingerprint(settings(changed))) == result


@pytest.mark.parametrize(
    "absent",
    [
        "data.augment.transform",
        "data.channels",
        "data.source.channels",
        "recipe.decay_all",
        "teacher_recipe.decay_all",
    ],
)
def test_runs_from_before_a_setting_are_found(absent):
    """Or each version with a further setting would train all that is done again."""
    now, before = (plain(composed("data=folder").cfg) for _ in range(2))
    *nodes, name = absent.split(".")
    node = before
    for part in nodes:
        node = node[part]
    assert node.pop(name) in (None, False)
    assert fingerprint(before) == fingerprint(now)
    assert group(before) == group(now)


def test_fingerprint_tells_roots_apart():
    """Two folders of images are two data sets, of which a sweep is to run both."""
    mine, yours = (fingerprint(settings("data=folder", f"data.root={root}")) for root in ("mine", "yours"))
    assert mine != yours


def test_teacher_key_is_the_same_however_a_recipe_is_set():
    """A shorthand and what it stands for are one teacher."""
    assert key_of("epochs=3") == key_of("teacher_recipe.epochs=3")
    assert key_of("lr=0.3") == key_of("teacher_recipe.optimizer.lr=0.3")


def test_fingerprint_ignores_networks_that_take_no_part():
    """Or a sweep over teachers would train the student without one again for each of them."""
    alone = ("method=standard",)
    base = fingerprint(settings(*alone))
    for change in ("teacher.scale=8", "teacher_seed=3", "ensemble=2", "teacher_recipe.epochs=3"):
        assert fingerprint(settings(*alone, change)) == base
        assert fingerprint(settings(change)) != fingerprint(settings())
    assert fingerprint(settings(*alone, "recipe.epochs=31")) != base
    chains = [fingerprint(settings("method=ban", f"teacher_seed={seed}")) for seed in (0, 1)]
    assert chains[0] != chains[1]  # which the links of a chain take their seeds from
    teacher = fingerprint(settings("method=teacher"))
    assert fingerprint(settings("method=teacher", "recipe.epochs=31")) == teacher
    assert fingerprint(settings("method=teacher", "seed=5")) != teacher
    assert teacher != base


def test_group_is_the_same_wherever_the_images_are_and_whatever_a_network_is_also_tested_on():
    for setting in ("data.also_test=[.]", "data.root=elsewhere"):
        assert group(settings("data=cifar10", setting)) == group(settings("data=cifar10"))
        assert fingerprint(settings("data=cifar10", setting)) != fingerprint(settings("data=cifar10"))
    assert variant(("data.also_test=[.]", "data.fraction=0.5"), ["student"], []) == "data.fraction=0.5"


def test_fingerprint_knows_given_weights_by_their_content(tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, content in zip(files, (b"1", b"1", b"2"), strict=True):
        file.write_bytes(content)
    same, alike, other = (fingerprint(settings(f"teacher_weights={file}")) for file in files)
    assert same == alike != other
    first, second, third = files
    given = (f"[{first}]", f"[{first},{third}]", f"[{second},{third}]", f"[{third},{first}]")
    alone, pair, alike, turned = (fingerprint(settings(f"teacher_weights={paths}")) for paths in given)
    assert alone == same != pair == alike != turned


def test_decisive_settings_do_not_hold_where_a_run_happens():
    placed = settings(
        "+trainer.profiler=simple", "threads=2", "logger=none", "teacher_store=x", "trainer.devices=2", "data.workers=0"
    )
    assert decisive(placed) == decisive(settings())
    assert decisive(settings("trainer.precision=32-true")) != decisive(settings())


def test_logit_key_changes_with_teacher_data_and_views():
    base = logit_key(settings(), "data", "teacher", "32-true")
    assert base == logit_key(settings("T=8", "seed=4"), "data", "teacher", "32-true")
    others = [
        logit_key(settings(), "other", "teacher", "32-true"),
        logit_key(settings(), "data", "other", "32-true"),
        logit_key(settings(), "data", "teacher", "bf16-mixed"),
        logit_key(settings("data.augment.crop=2"), "data", "teacher", "32-true"),
        logit_key(settings("speed.fold_teacher=false"), "data", "teacher", "32-true"),
    ]
    assert all(other != base for other in others)


def test_cohort_key_tells_a_chain_behind_a_teacher_from_one_without():
    """Their students have other teachers, whatever else is equal."""
    same = ("T=1", "alpha=0.5", "data.order_seed=0")
    alike = [("method=takd", "assistants=[{}]"), ("method=ban", "chain=1"), ("method=logits", "chain=1")]
    behind, alone = (settings(*same, *method) for method in (alike[0], ("method=ban",)))
    for name in ("student", "recipe", "method", "chain"):
        alone[name] = behind[name]
    assert cohort_key(behind) != cohort_key(alone)


def test_order_of_students_decides_nothing_about_a_teacher():
    for method, same in (("teacher", True), ("standard", False)):
        one, other = (settings(f"method={method}", f"data.order_seed={seed}") for seed in (5, 6))
        assert (fingerprint(one) == fingerprint(other)) == (group(one) == group(other)) == same
    given = ("data.order_seed=5", "data.fraction=0.5")
    assert variant(given, ["teacher"], []) == "data.fraction=0.5"
    assert variant(given, ["student"], []) == "data.fraction=0.5 data.order_seed=5"


def test_cohort_key_is_shared_by_jobs_with_the_same_batches_and_teacher():
    """One order given, students differ as they like; what the batches or the teacher come from must be the same."""
    base = cohort_key(settings("data.order_seed=0"))
    for alike in (["T=4"], ["method=feature", "beta=0.1"], ["seed=1"], ["student.scale=4"], ["recipe.optimizer.lr=1"]):
        assert cohort_key(settings("data.order_seed=0", *alike)) == base
    of_machine = ("trainer.precision=64-true", "threads=1", "speed=reference")
    of_batches = ("recipe.batch_size=8", "epochs=2", "data.augment.crop=1")
    of_teacher = ("teacher_seed=1", "ensemble=2", "teacher.scale=8", "teacher_recipe.epochs=2", "teacher_store=x")
    for other in (*of_machine, *of_batches, *of_teacher, "teacher_weights=x"):
        assert cohort_key(settings("data.order_seed=0", other)) != base
    assert cohort_key(settings("seed=1")) != cohort_key(settings("seed=2"))  # each its own order
    # What a student is decides what a chain of its kind becomes.
    chained = [settings("data.order_seed=0", "chain=1", *more) for more in ([], ["student.scale=4"], ["T=8"])]
    assert len({cohort_key(one) for one in chained}) == 3


def test_variant_names_what_has_no_column_and_takes_part():
    overrides = (
        "method=standard", "teacher.scale=8", "recipe/optimizer@teacher_recipe.optimizer=adamw", "ensemble=3", "T=4",
        "student.scale=4", "recipe/optimizer=adamw", "recipe.epochs=2", "data.val_fraction=0", "logger.save_dir=x",
    )  # fmt: skip
    of_student = "recipe.epochs=2 recipe/optimizer=adamw student.scale=4"
    of_teacher = "recipe/optimizer@teacher_recipe.optimizer=adamw teacher.scale=8"
    assert variant(overrides, ["student"], ["T"]) == f"data.val_fraction=0 {of_student}"
    assert "teacher_seed=1" in variant(("method=ban", "teacher_seed=1"), ["student"], [], chain=1)
    assert variant(overrides, ["teacher"], ["T"]) == f"data.val_fraction=0 {of_teacher}"
    assert variant(overrides, ["teacher", "student"], ["T"]).split() == sorted(
        f"data.val_fraction=0 ensemble=3 {of_student} {of_teacher}".split()
    )
    assert variant(("+trainer.profiler=simple", "+trainer.limit_test_batches=2"), ["student"], []) == (
        "+trainer.limit_test_batches=2"
    )


def test_hashes_are_those_of_the_runs_which_are_there():
    """With others, users train their teachers and sweeps again, and resume no earlier run: say so in CHANGELOG."""
    key = copy.deepcopy(key_of("trainer.precision=32-true"))
    key["data"]["id"] = "0123456789abcdef"  # depends on scikit-learn
    assert digest(key) == "4b30b5e52b9174dc"
    assert fingerprint(settings("trainer.precision=32-true")) == "ae6a7e6653162d13"
    assert digest(logit_key(settings(), "data", "teacher", "32-true")) == "7ced430e59926bf5"


def test_teacher_key_is_that_of_the_teachers_which_are_there():
    key = key_of("trainer.precision=32-true")
    assert key["trainer"] == {"_target_": "lightning.Trainer", "precision": "32-true", "deterministic": False}
    assert key["format"] == 2
    assert "ema" not in key["recipe"]
    assert key["data"].keys() == {"id", "val_fraction", "split_seed", "augment"}
    assert key["speed"].keys() == {"_target_", "channels_last", "packed_dropout", "fused", "compile", "tensor_cores"}
    assert key.keys() == {"format", "model", "data", "recipe", "speed", "seed", "trainer"}
    assert key["data"]["augment"].keys() == {"_target_", "crop", "flip", "cutout"}


def test_key_of_a_chain_holds_what_rounds_its_teachers_targets():
    """Folded and stored in half precision or not, they teach another network; with labels alone it is the same."""

    def keys(*overrides):
        build = Builder(composed("method=takd", *overrides))
        return build.key(build.first_teachers[0], None), build.key(build.chain[0], [])

    usual, *others = (keys(*changed) for changed in ((), ("speed.fold_teacher=false",), ("speed.stored_logits=false",)))
    assert all(first == usual[0] for first, _ in others)
    assert len({str(link) for _, link in [usual, *others]}) == 3
    assert usual[1]["speed"] == usual[0]["speed"]  # so that chains from before are found


def test_group_of_a_student_that_begins_with_weights_is_that_of_what_is_in_them(tmp_path):
    file = tmp_path / "student.safetensors"
    groups = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        groups.append(group(settings("student=custom", "student.target=my.Net", f"student.pretrained={file}")))
    assert groups[0] == groups[2] != groups[1]


def test_group_of_given_weights_is_that_of_what_is_in_them(tmp_path):
    """A file that is written anew is another teacher, and no further seed of the first."""
    file = tmp_path / "teacher.safetensors"
    groups = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        groups.append(group(settings(f"teacher_weights={file}")))
    assert groups[0] == groups[2] != groups[1]
