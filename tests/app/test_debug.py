"""Groups for finding out whether something runs, and what partial runs do to what is kept."""

import pytest

import kd.data.module
from kd.app.compose import compose
from kd.runs.results import collect, read
from tests.common import QUICK, SMALL


@pytest.mark.parametrize("debug", ["fast_dev_run", "limit"])
def test_debug_run_leaves_the_store_alone(run, tmp_path, monkeypatch, debug):
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 50)  # or one batch would be all test images
    sizes = [part for part in SMALL if part != "epochs=2"]
    code, printed = run(*sizes, "method=feature", f"debug={debug}")
    assert code == 0, printed
    (record,) = collect([tmp_path / "runs" / "debug"]).results
    assert [path.name for path in (tmp_path / "teachers").iterdir()] == ["debug"]
    assert record.test_images < record.test_total == 359
    assert record.trial.startswith(f"tested on {record.test_images} of 359 images, trained on ")
    assert f"this is a trial: {record.trial}" in printed
    (entry,) = tmp_path.glob("teachers/debug/*/result.json")
    assert read(entry).trial
    assert not list(tmp_path.rglob("README.md"))  # no figures of a whole run
    assert f"debug={debug}" in record.variant.split()
    again = (*sizes, "logger=none", "method=feature", f"debug={debug}", "T=8")
    code, printed = run(*again)  # finds the teacher, and takes it
    assert code == 0, printed
    assert "training the student" in printed
    assert "training the teacher" not in printed


def test_debug_overfit_learns_its_images_by_heart(run, tmp_path):
    alone = ("data=digits", "data.source.image_size=16", "student.scale=4", "trainer=cpu", "logger=none")
    # Of 1,409 validation images in batches of 40, one batch: they are 98 % of the images, and 60 epochs see them.
    few = ("+trainer.limit_val_batches=1", "trainer.enable_progress_bar=false")
    code, printed = run(*alone, "method=standard", "debug=overfit", *few)
    assert code == 0, printed
    (record,) = collect([tmp_path / "runs" / "debug"]).results
    assert record.epoch_train_acc[-1] == 1


def test_debug_profiler_writes_its_report(run, tmp_path):
    code, printed = run(*SMALL, "method=standard", "debug=profiler", "hydra.run.dir=run")
    assert code == 0, printed
    (report,) = (tmp_path / "run" / "tensorboard").rglob("fit-profile.txt")
    assert "FIT Profiler Report" in report.read_text()
    assert read(tmp_path / "run" / "result.json").trial is None


def test_teacher_of_a_run_on_a_part_is_that_of_a_whole_run(run, tmp_path, monkeypatch):
    """It is trained, validated and tested as ever, so that it serves every later run and contradicts none."""
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 20)
    few = ("+trainer.limit_test_batches=2", "+trainer.limit_val_batches=3", "+trainer.detect_anomaly=true")
    code, printed = run(*QUICK, "method=logits", *few, "hydra.run.dir=part")
    assert code == 0, printed
    (entry,) = (read(path) for path in tmp_path.glob("teachers/*/result.json"))
    part = read(tmp_path / "part" / "result.json")
    assert (entry.test_images, entry.test_total, entry.trial) == (359, 359, None)
    assert (part.test_images, part.test_total) == (40, 359)
    assert part.trial == "tested on 40 of 359 images, validated on 3 of 8 batches"
    assert part.teacher_test_acc == entry.test_acc
    assert part.retention is None  # of 40 images and 359 it would be no share of anything
    code, printed = run(*QUICK, "method=logits", "hydra.run.dir=whole")
    assert code == 0, printed
    whole = read(tmp_path / "whole" / "result.json")
    assert len(list(tmp_path.glob("teachers/*/teacher.safetensors"))) == 1
    assert (whole.trial, whole.teacher_id) == (None, part.teacher_id)
    assert whole.fingerprint != part.fingerprint


@pytest.mark.parametrize(
    ("setting", "trial"),
    [
        ("+trainer.limit_train_batches=3", "trained on 6 of 88 batches"),
        ("+trainer.limit_test_batches=0.5", "tested on 180 of 359 images"),
        ("+trainer.limit_val_batches=0", "validated on 0 of 8 batches"),
        ("+trainer.limit_train_batches=1000", None),
    ],
)
def test_run_that_leaves_something_out_is_a_trial(run, tmp_path, monkeypatch, setting, trial):
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 20)
    settings = (*SMALL, "method=standard", "logger=none", "data.val_fraction=0.11", "batch_size=29", setting)
    code, printed = run(*settings, "hydra.run.dir=run")
    assert code == 0, printed
    assert read(tmp_path / "run" / "result.json").trial == trial


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.limit_val_batches=2", "write +trainer.limit_val_batches=2"),
        ("trainer.max_epochs=2", "trainer.max_epochs is set by the run itself; give epochs=2 instead"),
        ("+trainer.max_epochs=2", "trainer.max_epochs is set by the run itself; give epochs instead"),
        ("+trainer.callbacks=[]", "trainer.callbacks is set by the run itself"),
    ],
)
def test_trainer_settings_are_explained(run, setting, message):
    code, printed = run(*SMALL, setting)
    assert code == 1
    assert message in printed


@pytest.mark.parametrize("debug", ["fast_dev_run", "limit", "overfit"])
def test_debug_runs_of_an_experiment_are_no_part_of_its_sweep(debug):
    hydra = compose(["experiment=best_1m", f"debug={debug}"]).hydra
    assert hydra.sweep.dir.startswith("multirun/debug/")


@pytest.mark.parametrize("preset", ["recipe=published", "experiment=cifar100/vgg13_vgg8", "experiment=best_1m"])
def test_debug_shortens_a_preset_that_has_its_own_epochs(preset):
    cfg = compose([preset, "debug=limit"]).cfg
    assert (cfg.recipe.epochs, cfg.teacher_recipe.epochs) == (1, 1)
    cfg = compose([preset, "debug=overfit", "epochs=7"]).cfg
    assert (cfg.recipe.epochs, cfg.teacher_recipe.epochs, cfg.recipe.batch_size) == (7, 7, 20)
    augment = cfg.data.augment
    assert augment.keys() - {"_target_", "strength"} == set(
        ["crop", "flip", "cutout", "mixup", "cutmix", "policy", "transform"]
    )  # all of which are switched off
    assert augment.transform is None
    assert (augment.crop, augment.flip, augment.mixup, augment.cutmix, augment.policy) == (0, False, None, None, None)
