"""Settings of methods, images, networks and recipes, from the command line to the record."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import kd
from kd.data.digits import digits
from kd.data.fetch import OnDisk
from kd.data.resize import images_of_channels
from kd.data.stored import StoredPixels
from kd.runs import predictions
from kd.runs.results import read
from tests.common import QUICK, SMALL, metric_rows, same_weights


def test_ensemble_averages_its_teachers(run, tmp_path, finished):
    shutil.copytree(finished / "teachers", tmp_path / "teachers")
    code, printed = run(*SMALL, "method=feature", "ensemble=2", "logger=none", "hydra.run.dir=run")
    assert code == 0, printed
    record = read(tmp_path / "run" / "result.json")
    entries = [read(path) for path in (tmp_path / "teachers").glob("*/result.json")]
    assert sorted(entry.seed for entry in entries) == [0, 1]
    assert {entry.teacher for entry in entries} == {"cnn32"}
    assert record.teacher == "2 x cnn32"
    assert record.teacher_params == sum(entry.teacher_params for entry in entries)
    assert record.teacher_id not in {entry.teacher_id for entry in entries}
    kept = [predictions.read(path) for path in (tmp_path / "teachers").glob("*/predictions.npz")]
    together = predictions.read(tmp_path / "run" / "predictions.npz").teacher_logits
    assert abs(together - (kept[0].logits + kept[1].logits) / 2).max() < 0.05  # half precision
    assert record.teacher_test_acc == pytest.approx((together.argmax(1) == kept[0].labels).mean())

    # The same two by their files, as an ensemble and as what teaches an assistant.
    directories = [path.parent for path in (tmp_path / "teachers").glob("*/result.json")]
    names = [str(path) for path in sorted(directories, key=lambda path: read(path / "result.json").seed)]
    given = (*SMALL, f"teacher_weights=[{','.join(names)}]", "teacher_store=elsewhere", "logger=none")
    code, printed = run(*given, "method=feature", "hydra.run.dir=given")
    assert code == 0, printed
    again = read(tmp_path / "given" / "result.json")
    assert (again.teacher, again.teacher_id) == (record.teacher, record.teacher_id)
    assert again.teacher_test_acc == record.teacher_test_acc
    assert again.test_nll == pytest.approx(record.test_nll, rel=1e-3)
    assert not (tmp_path / "elsewhere").exists()
    code, printed = run(*given, "method=takd", "assistants=[{scale:3}]", "hydra.run.dir=assisted")
    assert code == 0, printed
    assert read(tmp_path / "assisted" / "result.json").teacher == "2 x cnn32 > scale=3"


def test_mistakes_in_any_of_several_given_teachers_are_named(run, tmp_path, finished):
    (good,) = (finished / "teachers").glob("*/teacher.safetensors")
    with safe_open(good, "numpy") as file:
        metadata = file.metadata()
    turned = {"classes": list("1023456789"), "data_id": "other"}
    for name, changes in {"turned": turned, "better": {"test_acc": 0.999}}.items():
        save_file(load_file(good), tmp_path / name, {**metadata, **{key: json.dumps(v) for key, v in changes.items()}})
        code, printed = run(*SMALL, f"teacher_weights=[{good},{tmp_path / name}]", "hydra.run.dir=run")
        assert code == 1
        expected = {"turned": "turned comes from .* whose class 0 is '1'", "better": "better is on record with 99.90 %"}
        assert re.search(expected[name], printed), printed


def test_standard_and_feature_record_their_terms(run, tmp_path):
    assert run(*QUICK, "method=standard", "data.val_fraction=0", "hydra.run.dir=standard")[0] == 0
    standard = read(tmp_path / "standard" / "result.json")
    assert (standard.teacher, standard.knobs, standard.val_acc, standard.epoch_val_acc) == (None, {}, None, [])
    assert not (tmp_path / "teachers").exists()

    assert run(*QUICK, "method=feature", "method.stages=[0,1]", "hydra.run.dir=feature")[0] == 0
    assert {"train/hard", "train/feature", "train/soft"} <= metric_rows(tmp_path / "feature")[0].keys()
    assert not (tmp_path / "feature" / "tensorboard").exists()
    assert not any("adapter" in name for name in load_file(tmp_path / "feature" / "student.safetensors"))


def test_diverged_run_says_so(run, tmp_path, monkeypatch):
    """Its loss and its weights were finite to the end, and its outputs are not, or are far from every label."""
    quick = (*SMALL, "method=standard", "recipe.clip_norm=null", "logger=none")
    assert run(*quick, "lr=1e20", "epochs=1", "+trainer.limit_train_batches=1", "hydra.run.dir=nan")[0] == 0
    assert read(tmp_path / "nan" / "result.json").diverged
    monkeypatch.setattr("kd.training.fit.DIVERGED", 0.1)
    code, printed = run(*quick, "epochs=1", "hydra.run.dir=run")
    record = read(tmp_path / "run" / "result.json")
    assert code == 0, printed
    assert (record.status, record.diverged) == ("done", True)
    assert record.warnings[0].startswith(f"training diverged: test NLL {record.test_nll:.4g}, and guessing has 2.3; ")
    assert record.warnings[0] in printed


def test_training_that_ends_with_broken_weights_is_an_error(run, tmp_path):
    """Every step's loss was finite."""
    code, printed = run(*SMALL, "method=standard", "lr=1e3", "recipe.clip_norm=null", "logger=none")
    assert code == 1
    assert re.search(r"error: training diverged: \S+ ends with weights that are not finite; try a lower lr", printed)
    (record,) = tmp_path.rglob("result.json")
    assert read(record).diverged
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("method", ["ban", "teacher"])
def test_diverged_network_of_a_chain_or_teacher_alone_is_the_runs(run, tmp_path, method):
    """So that a report counts it as lost, as it does a student; a student's teacher that diverges is another's."""
    wild = {of: (f"{of}.optimizer.lr=1e3", f"{of}.clip_norm=null") for of in ("recipe", "teacher_recipe")}
    small, own = (*SMALL, "logger=none"), wild["recipe" if method == "ban" else "teacher_recipe"]
    code, printed = run(*small, *own, f"method={method}", "hydra.run.dir=run")
    assert code == 1
    assert "error: training diverged" in printed
    assert read(tmp_path / "run" / "result.json").diverged
    code, printed = run(*small, *wild["teacher_recipe"], "method=logits", "hydra.run.dir=other")
    assert code == 1
    assert not read(tmp_path / "other" / "result.json").diverged


@pytest.mark.parametrize(
    "choices",
    [
        ("method=standard", "recipe/optimizer=adamw", "recipe/schedule=multistep", "recipe.clip_norm=null"),
        ("method=standard", "recipe/schedule=cosine", "recipe.label_smoothing=0.1", "student.activation=elu"),
        ("method=standard", "data.augment.cutout=8", "trainer.precision=bf16-mixed"),
        ("method=logits", "speed=reference", "trainer.precision=32-true"),
        ("method=teacher", "recipe/optimizer@teacher_recipe.optimizer=adamw"),
    ],
    ids=lambda choices: choices[1],
)
def test_recipe_variants_train(run, tmp_path, choices):
    code, printed = run(*SMALL, *choices, "logger=none", "hydra.run.dir=run")
    assert code == 0, printed
    record = read(tmp_path / "run" / "result.json")
    assert record.test_acc > 0.12  # chance is 0.1
    assert record.epoch_train_loss[-1] < record.epoch_train_loss[0] or record.epochs == 1
    assert choices[1] in record.variant or choices[1].startswith("trainer")


def test_folder_data_trains_in_memory_and_on_disk(run, tmp_path, monkeypatch):
    from PIL import Image

    read_from, fetch = [], OnDisk.fetch
    monkeypatch.setattr(OnDisk, "fetch", lambda disk, steps: read_from.append(type(disk.x)) or fetch(disk, steps))
    for split, count in (("train", 12), ("test", 4)):
        for i, name in enumerate(("dark", "light")):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (20, 30), (200 * i + k,) * 3).save(tmp_path / "mine" / split / name / f"{k}.png")
    small = (*SMALL[1:], "data=folder", "data.root=mine", "batch_size=8", "logger=none")
    assert run(*small, "method=logits", "hydra.run.dir=run")[0] == 0
    assert (read(tmp_path / "run" / "result.json").dataset, read_from) == ("mine", [])
    assert run(*small, "method=logits", "hydra.run.dir=disk", "data.in_memory=false")[0] == 0
    assert {*read_from} == {StoredPixels}
    assert same_weights(tmp_path / "run" / "student.safetensors", tmp_path / "disk" / "student.safetensors")


def test_run_with_few_and_wrong_labels_and_further_test_sets_records_them(run, tmp_path):
    images = digits(16)
    (tmp_path / "again").mkdir()
    x = images.test_x.permute(0, 2, 3, 1).contiguous().numpy()
    np.save(tmp_path / "again" / "again_data.npy", x)
    np.save(tmp_path / "again" / "again_labels.npy", images.test_y.numpy())
    few = (*QUICK, "epochs=1", "batch_size=32", "data.fraction=0.1", "data.noise=0.2", "method=standard")
    assert run(*few, "data.also_test=[again]", "hydra.run.dir=run")[0] == 0
    record = read(tmp_path / "run" / "result.json")
    assert " data.fraction=0.1 data.noise=0.2 " in record.variant
    assert "also_test" not in record.variant
    assert 120 < record.train_images < 140  # a tenth of nine tenths of 1,438
    assert record.noisy_labels == round(0.2 * record.train_images)
    assert record.also_test_acc == pytest.approx({"again": record.test_acc})
    assert record.also_test_nll == pytest.approx({"again": record.test_nll}, rel=1e-4)


def test_teacher_alone_is_also_tested(run, tmp_path):
    images = digits(16)
    again = tmp_path / "again"
    again.mkdir()
    np.save(again / "again_data.npy", images.test_x.permute(0, 2, 3, 1).contiguous().numpy())
    np.save(again / "again_labels.npy", images.test_y.numpy())
    same = (*QUICK, "method=teacher", "epochs=1")
    assert run(*same, "hydra.run.dir=before")[0] == 0  # its teacher is found in the store by the next one
    code, printed = run(*same, "data.also_test=[again]", "hydra.run.dir=run")
    assert code == 0, printed
    record = read(tmp_path / "run" / "result.json")
    assert record.also_test_acc == pytest.approx({"again": record.test_acc})
    assert record.also_test_nll == pytest.approx({"again": record.test_nll}, rel=1e-4)
    assert read(tmp_path / "before" / "result.json").also_test_acc == {}
    assert read(next(tmp_path.glob("teachers/*/result.json"))).also_test_acc == {}


@pytest.mark.parametrize("method", ["ofd", "mlkd"])
def test_wide_grey_images_are_kept_from_the_source_to_the_file_of_weights(run, tmp_path, method):
    small = (
        "data=digits", "epochs=1", "batch_size=256", "trainer=cpu", "trainer.enable_progress_bar=false", "threads=1",
        "student=resnet8", "teacher=cnn32", "teacher.scale=2", "data.image_size=[12,16]", "data.channels=1",
        "data.augment.cutout=3", "data.augment.policy=trivialaugment", "logger=none",
    )  # fmt: skip
    code, printed = run(*small, f"method={method}", "hydra.run.dir=run")
    assert code == 0, printed
    assert "resized from 8x8 to 16x12" in printed
    assert "made grey" in printed
    predictor = kd.load(tmp_path / "run")
    assert (predictor.image_size, len(predictor.mean)) == ([12, 16], 1)
    assert predictor.net.stem[0].in_channels == 1
    images = images_of_channels(digits([12, 16]), 1)
    found = [prediction.label for prediction in predictor.predict(images.test_x)]
    accuracy = np.mean([images.classes[y] == label for y, label in zip(images.test_y, found, strict=True)])
    assert accuracy == pytest.approx(read(tmp_path / "run" / "result.json").test_acc, abs=0.01)


def test_averaged_weights_are_tested_and_kept_and_change_no_training(run, tmp_path):
    same = (*QUICK, "method=standard")
    for name, *more in (("plain",), ("averaged", "recipe.ema=0.9")):
        assert run(*same, *more, f"hydra.run.dir={name}")[0] == 0
    plain, averaged = (read(tmp_path / name / "result.json") for name in ("plain", "averaged"))
    assert plain.epoch_train_loss == averaged.epoch_train_loss
    assert plain.test_nll != averaged.test_nll
    kept = load_file(tmp_path / "averaged" / "student.safetensors")
    (state,) = (
        state
        for name, state in torch.load(tmp_path / "averaged" / "checkpoints" / "last.ckpt")["callbacks"].items()
        if "WeightAverage" in name
    )
    assert any(torch.equal(kept["classifier.weight"], tensor) for tensor in state["average"])


@pytest.mark.parametrize("checkpoint", ["last.ckpt", "previous.ckpt"])
def test_interrupted_run_continues_with_its_averaged_weights(run, tmp_path, monkeypatch, checkpoint):
    """Before its test, and after its first epoch of two."""
    same = (*QUICK, "method=standard", "epochs=2", "recipe.ema=0.99", "data.val_fraction=0.2")
    assert run(*same, "hydra.run.dir=whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("lightning.Trainer.test", lambda *_, **__: raised(KeyboardInterrupt()))
        assert run(*same, "hydra.run.dir=run")[0] == 130
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / checkpoint).replace(checkpoints / "last.ckpt")
    assert run("resume=run")[0] == 0
    assert same_weights(tmp_path / "whole" / "student.safetensors", tmp_path / "run" / "student.safetensors")
    whole, resumed = (read(tmp_path / name / "result.json") for name in ("whole", "run"))
    assert (whole.val_acc, whole.test_nll) == (resumed.val_acc, resumed.test_nll)


def raised(error):
    raise error


def test_cohort_gives_the_students_of_single_runs_with_every_setting_of_the_images(run, tmp_path, cohorts):
    same = (
        *QUICK, "epochs=1", "method=logits", "data.order_seed=0", "recipe.ema=0.9", "data.fraction=0.5",
        "data.noise=0.2", "data.balance=weights", "data.augment.policy=randaugment", "data.augment.cutmix=1",
    )  # fmt: skip
    assert run(*same, "T=2", "hydra.run.dir=alone")[0] == 0
    assert run("-m", *same, "T=4,2", "hydra/launcher=cohort", "hydra.sweep.dir=both")[0] == 0
    assert cohorts == [2]
    assert same_weights(tmp_path / "alone" / "student.safetensors", tmp_path / "both" / "1" / "student.safetensors")


def test_new_run_begins_with_the_weights_of_another(run, tmp_path):
    """As the cookbook has it for longer trainings: the network by its class, the weights by the run's directory."""
    small = [part for part in QUICK if not part.startswith("student.")]
    assert run(*QUICK, "method=standard", "lr=0.3", "epochs=3", "hydra.run.dir=first")[0] == 0
    own = ("student=custom", "student.target=kd.models.cnn.CNN", "student.pretrained=first", "recipe.optimizer.lr=1e-9")
    settings = "student.settings={scale: 2, activation: relu, conv_dropout: 0, head_dropout: 0}"
    code, printed = run(*small, "method=standard", *own, settings, "hydra.run.dir=second")
    assert code == 0, printed
    first, second = (load_file(tmp_path / name / "student.safetensors") for name in ("first", "second"))
    weights = {name: tensor for name, tensor in second.items() if "running" not in name and "num_batches" not in name}
    assert {name.removeprefix("net.") for name in second} == first.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, first[name.removeprefix("net.")], rtol=1e-3, atol=1e-5)


def test_network_that_torch_cannot_compile_is_one_line(run, monkeypatch):
    broken = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})

    def fail(*_):
        raise broken("no compiler\nmore")

    monkeypatch.setattr("kd.methods.logits.soft_loss", fail)
    code, printed = run(*QUICK, "method=logits")
    assert code == 1
    assert "speed.compile=true: torch cannot compile (no compiler); write speed.compile=false" in printed
