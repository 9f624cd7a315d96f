"""Groups for finding out whether something runs, and what partial runs do to what is kept."""

import pytest

import kd.data.module
from kd.runs.results import collect, read
from tests.common import SMALL


@pytest.mark.parametrize("debug", ["fast_dev_run", "limit"])
def test_debug_run_leaves_the_store_alone(run, tmp_path, monkeypatch, debug):
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 50)  # or one batch would be all test images
    sizes = [part for part in SMALL if part != "epochs=2"]
    code, printed = run(*sizes, "method=feature", f"debug={debug}")
    assert code == 0, printed
    (record,) = collect([tmp_path / "runs" / "debug"]).results
    assert [path.name for path in (tmp_path / "teachers").iterdir()] == ["debug"]
    assert record.test_images < 359
    assert record.variant.split()[0] == f"debug={debug}"
    code, printed = run(*sizes, "method=feature", f"debug={debug}", "T=8")  # finds the teacher, and takes it
    assert code == 0, printed


def test_debug_overfit_learns_its_images_by_heart(run, tmp_path):
    alone = ("data=digits", "student.scale=4", "trainer=cpu", "trainer.enable_progress_bar=false", "logger=none")
    code, printed = run(*alone, "method=standard", "debug=overfit")
    assert code == 0, printed
    (record,) = collect([tmp_path / "runs" / "debug"]).results
    assert record.epoch_train_acc[-1] == 1


def test_debug_profiler_writes_its_report(run, tmp_path):
    code, printed = run(*SMALL, "method=standard", "debug=profiler", "hydra.run.dir=run")
    assert code == 0, printed
    assert "FIT Profiler Report" in (tmp_path / "run" / "tensorboard" / "fit-profile.txt").read_text()


def test_teacher_tested_on_a_part_is_not_condemned_by_the_whole(run, tmp_path, monkeypatch):
    """Its accuracy on record is of two batches; on all of them it is another, and the teacher is none the worse."""
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 20)
    partial = (*SMALL, "method=logits", "+trainer.limit_test_batches=2")
    assert run(*partial, "hydra.run.dir=first")[0] == 0
    (entry,) = tmp_path.glob("teachers/*/result.json")
    first = read(tmp_path / "first" / "result.json")
    assert read(entry).test_images < 100
    assert abs(read(entry).test_acc - first.teacher_test_acc) > 0.01
    code, printed = run(*partial, "T=4", "hydra.run.dir=second")
    assert code == 0, printed
    assert read(tmp_path / "second" / "result.json").teacher_id == first.teacher_id
    assert read(tmp_path / "second" / "result.json").teacher_test_acc == pytest.approx(first.teacher_test_acc)


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
