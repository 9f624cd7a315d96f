"""`train.py` from its command line to the files it leaves, on tiny networks and the bundled digits."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from kd.data.digits import digits
from kd.runs import predictions
from kd.runs.results import read, write
from kd.runs.weights import fill, load_weights
from kd.training.device import choose_precision
from kd.training.performance import PackedDropout
from tests.common import QUICK, SMALL, metric_rows, same_weights


class TestRun:
    @pytest.fixture(autouse=True)
    def logits(self, run, tmp_path, finished):
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        self.directory = tmp_path / "run"
        self.result = read(self.directory / "result.json")

    def test_run_leaves_the_documented_files(self):
        for name in (
            ".hydra/config.yaml",
            "result.json",
            "student.safetensors",
            "checkpoints/last.ckpt",
            "metrics.csv",
            "predictions.npz",
            "README.md",
        ):
            assert (self.directory / name).is_file(), name
        assert list((self.directory / "tensorboard").rglob("events*"))

    def test_run_keeps_its_predictions(self):
        kept = predictions.read(self.directory / "predictions.npz")
        assert kept.logits.shape == kept.teacher_logits.shape == (len(kept.labels), 10)
        assert kept.correct.mean() == pytest.approx(self.result.test_acc, abs=1.5 / len(kept.labels))  # rounded: a tie
        taught = (kept.teacher_logits.argmax(1) == kept.labels).mean()  # by a folded copy, in half precision
        assert taught == pytest.approx(self.result.teacher_test_acc, abs=0.01)
        agreement = (kept.logits.argmax(1) == kept.teacher_logits.argmax(1)).mean()
        assert agreement == pytest.approx(self.result.agreement, abs=2.5 / len(kept.labels))

    def test_run_records_settings_and_scores(self):
        result = self.result
        assert (result.method, result.knobs, result.taught) == ("logits", {"T": 2, "alpha": 0.1}, True)
        assert (result.status, result.dataset, result.epochs, result.seed) == ("done", "digits", 2, 0)
        assert (result.student, result.teacher) == ("cnn16", "cnn32")
        assert result.data_id == digits(16).id
        assert result.variant == "data.source.image_size=16 epochs=2 student.scale=2 teacher.scale=2"
        assert result.retention == pytest.approx(result.test_acc / result.teacher_test_acc)
        assert 0 <= result.agreement <= 1
        assert len(result.epoch_val_acc) == len(result.epoch_train_loss) == 2
        assert result.val_acc == result.epoch_val_acc[-1]
        assert result.precision == choose_precision("auto", "cpu")
        assert "torch" in result.versions

    def test_weights_metadata_describes_the_network(self):
        with safe_open(self.directory / "student.safetensors", "pt") as file:
            metadata = {name: json.loads(text) for name, text in file.metadata().items()}
            names = set(file.keys())
        assert metadata["model"]["scale"] == 2
        assert metadata["num_classes"] == 10
        assert metadata["test_acc"] == self.result.test_acc
        assert metadata["test_images"] == self.result.test_images == self.result.test_total == 359
        assert names
        assert not any("adapter" in name or "teacher" in name for name in names)

    def test_tensorboard_logger_holds_scalars_pictures_and_hparams(self):
        events = EventAccumulator(str(self.directory / "tensorboard" / "cnn16 logits T=2 alpha=0.1 seed=0"))
        events.Reload()
        tags = events.Tags()
        for tag in ("train/hard", "train/soft", "lr", "val/acc", "val/kl_to_teacher", "z_final/agreement"):
            assert tag in tags["scalars"], tag
        assert {"samples", "test/confusion"} <= set(tags["images"])
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
        assert events.Scalars("z_final/test_acc")[-1].value == pytest.approx(self.result.test_acc)

    def test_run_and_its_teacher_have_model_cards(self, tmp_path):
        own, *of_teachers = [self.directory / "README.md", *(tmp_path / "teachers").glob("*/README.md")]
        text = own.read_text()
        assert "# cnn16 on digits, taught by cnn32\n" in text
        assert "trained with kd by method=logits, T=2, alpha=0.1." in text
        assert f"python train.py {self.result.command}\n" in text
        assert 'kd.load("student.safetensors")' in text
        (teacher,) = of_teachers
        assert "# cnn32 on digits\n" in teacher.read_text()
        assert "python train.py" not in teacher.read_text()

    def test_run_that_is_done_keeps_a_strangers_readme(self, run):
        again = (*SMALL, "method=logits", "T=2", "hydra.run.dir=run")
        (self.directory / "README.md").write_text("my notes")
        assert run(*again)[0] == 0
        assert (self.directory / "README.md").read_text() == "my notes"
        (self.directory / "README.md").unlink()  # as a kill before the last step leaves a run
        assert run(*again)[0] == 0
        assert "# cnn16 on digits, taught by cnn32\n" in (self.directory / "README.md").read_text()

    def test_run_that_is_done_is_not_repeated(self, run):
        weights = self.directory / "student.safetensors"
        written = weights.stat().st_mtime_ns
        code, printed = run(*SMALL, "method=logits", "T=2", "hydra.run.dir=run")
        assert code == 0
        assert weights.stat().st_mtime_ns == written
        assert f"{100 * self.result.teacher_test_acc:.2f} %" in printed
        assert f"{100 * self.result.test_acc:.2f} %" in printed

    def test_run_directory_refuses_another_configuration(self, run):
        def files():
            return {path: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}

        before = files()
        code, printed = run(*SMALL, "method=logits", "T=3", "hydra.run.dir=run")
        assert code == 1
        assert "another configuration" in printed
        assert files() == before

    def test_resume_still_works_after_a_refused_resume(self, run):
        assert run("resume=run", "T=3")[0] == 1
        assert run("data=digits", "hydra.run.dir=run")[0] == 1
        assert run("resume=run")[0] == 0

    def test_fingerprint_ignores_how_a_number_is_written(self, run):
        assert run(*SMALL, "method=logits", "T=2.0", "hydra.run.dir=run")[0] == 0

    def interrupted(self):
        """The run as if it had been interrupted after its last epoch; returns its checkpoint."""
        record = self.directory / "result.json"
        record.write_text(record.read_text().replace('"done"', '"interrupted"'))
        return self.directory / "checkpoints" / "last.ckpt"

    def test_resume_names_a_damaged_checkpoint(self, run):
        checkpoint = self.interrupted()
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
        code, printed = run("resume=run")
        assert code == 1
        assert f"error: {checkpoint} is damaged (its end is missing or changed); remove it to begin" in printed

    @pytest.mark.parametrize(
        ("change", "reason"), [("missing", "RuntimeError: Error(s) in"), ("rounded", "TypeError: ")]
    )
    def test_resume_names_a_checkpoint_that_cannot_be_restored(self, run, change, reason):
        """Its layout is right; its weights are another network's, or rounded to whole numbers."""
        checkpoint = self.interrupted()
        content = torch.load(checkpoint, weights_only=True)
        first = next(name for name, tensor in content["state_dict"].items() if tensor.is_floating_point())
        weight = content["state_dict"].pop(first)
        if change == "rounded":
            content["state_dict"][first] = weight.to(torch.int8)
        torch.save(content, checkpoint)
        code, printed = run("resume=run")
        assert code == 1
        assert f"error: this training cannot be continued from {checkpoint} ({reason}" in printed
        assert read(self.directory / "result.json").status == "failed"

    def test_resume_on_a_device_that_fails_does_not_blame_the_checkpoint(self, run, monkeypatch):
        checkpoint = self.interrupted()

        def busy(*_):
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

        monkeypatch.setattr("kd.training.modules.Classifier.configure_optimizers", busy)
        with pytest.raises(RuntimeError, match="busy or unavailable"):
            run("resume=run")
        assert checkpoint.exists()

    @pytest.fixture
    def halfway(self, run, tmp_path, monkeypatch):
        """The last checkpoint of a run that was interrupted after two epochs, and the arguments that continue it."""

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("kd.training.fit.write_predictions", interrupt)
            code, printed = run(*SMALL, "method=logits", "T=2", "hydra.run.dir=again", "logger.name=curves")
        assert code == 130
        hint = shlex.split(printed.partition("interrupted; continue with: python train.py ")[2])
        assert hint == [f"resume={tmp_path / 'again'}", "logger.name=curves"]  # a record alone does not bring that in
        return tmp_path / "again" / "checkpoints" / "last.ckpt", hint

    def test_resume_from_the_checkpoint_before_gives_the_same_weights(self, run, tmp_path, halfway):
        checkpoint, hint = halfway
        checkpoint.write_bytes(b"damaged")
        code, printed = run(*hint)
        assert code == 1
        assert "of epoch 1 of 2, type mv" in printed
        offered = re.search(r", type (mv .*) and then the same command again$", printed.strip())[1]
        subprocess.run(offered, shell=True, check=True)
        assert run(*hint)[0] == 0
        assert same_weights(self.directory / "student.safetensors", tmp_path / "again" / "student.safetensors")
        assert metric_rows(self.directory) == metric_rows(tmp_path / "again")
        assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]

    def test_resume_that_fails_in_its_first_step_does_not_blame_the_checkpoint(self, run, monkeypatch, halfway):
        checkpoint, hint = halfway
        checkpoint.with_name("previous.ckpt").replace(checkpoint)  # so that an epoch is left
        monkeypatch.setattr("kd.methods.logits.soft_loss", lambda *_: {}["missing"])
        with pytest.raises(KeyError, match="missing"):
            run(*hint)
        assert checkpoint.exists()

    def test_resume_removes_no_files_that_a_checkpoint_names(self, run, tmp_path, halfway):
        """Lightning removes the best checkpoint so far where it saves a better one, by the name in the file."""
        checkpoint, hint = halfway
        content = torch.load(checkpoint.with_name("previous.ckpt"), weights_only=True)
        (name,) = (name for name in content["callbacks"] if name.startswith("ModelCheckpoint"))
        content["callbacks"][name]["best_model_path"] = str(checkpoint.parent / ".." / ".." / "mine")
        torch.save(content, checkpoint)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("all of it")
        assert run(*hint)[0] == 0
        assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"

    def test_teacher_store_gives_the_same_student_warm_or_cold(self, run, tmp_path):
        assert run(*SMALL, "method=logits", "T=2", "logger=none", "hydra.run.dir=warm")[0] == 0
        assert same_weights(self.directory / "student.safetensors", tmp_path / "warm" / "student.safetensors")

    def test_stored_logits_give_the_same_student_as_live_logits(self, run, tmp_path):
        (file,) = (tmp_path / "teachers" / "logits").glob("*.logits")
        before = file.read_bytes()
        code, printed = run(*SMALL, "method=logits", "T=2", "logger=none", "hydra.run.dir=again")
        assert code == 0
        found, requested = re.search(r"teacher's logits: (\d+) of (\d+) were in", printed).groups()
        assert found == requested  # the same seed has the same views
        assert file.read_bytes() == before
        file.write_bytes(before[: len(before) // 2])
        code, printed = run(*SMALL, "method=logits", "T=2", "logger=none", "hydra.run.dir=cut")
        assert code == 0
        assert "is cut short or not whole; it is made again" in printed
        assert re.search(r"teacher's logits: \d+ of (\d+) were in", printed)[1] == requested
        for other in ("again", "cut"):
            assert same_weights(self.directory / "student.safetensors", tmp_path / other / "student.safetensors")

    @pytest.mark.parametrize(
        ("choice", "reason"),
        [("data.augment.cutout=4", "too many views"), ("speed.stored_logits_gb=0.000001", "not kept: 0.0 GB")],
    )
    def test_stored_logits_are_optional_where_they_cannot_be_kept(self, run, tmp_path, choice, reason):
        code, printed = run(*QUICK, "method=logits", "T=2", "epochs=1", choice, "teacher_store=new")
        assert code == 0
        assert reason in printed
        assert not list(tmp_path.glob("new/logits/*.logits"))

    def test_student_is_the_same_where_no_logits_can_be_kept(self, run, tmp_path):
        shutil.rmtree(tmp_path / "teachers" / "logits")
        (tmp_path / "teachers" / "logits").write_text("in the way")
        code, printed = run(*SMALL, "method=logits", "T=2", "logger=none", "hydra.run.dir=again")
        assert code == 0
        assert "the teacher's logits are not kept" in printed
        assert same_weights(self.directory / "student.safetensors", tmp_path / "again" / "student.safetensors")

    def test_teacher_method_finds_the_same_teacher(self, run, tmp_path):
        assert run(*SMALL, "method=teacher", "logger=none", "hydra.run.dir=alone")[0] == 0
        teacher = read(tmp_path / "alone" / "result.json")
        assert teacher.test_acc == pytest.approx(self.result.teacher_test_acc)
        assert teacher.teacher_id == self.result.teacher_id
        assert (tmp_path / "alone" / "teacher.safetensors").is_file()
        assert "python train.py data=digits" in (tmp_path / "alone" / "README.md").read_text()
        assert len(list((tmp_path / "teachers").glob("*/teacher.safetensors"))) == 1

    def test_teacher_weights_serve_as_teacher(self, run, tmp_path):
        (weights,) = (tmp_path / "teachers").glob("*/teacher.safetensors")
        arguments = (
            *SMALL,
            "method=logits",
            "T=2",
            "logger=none",
            f"teacher_weights={weights}",
            "teacher_store=elsewhere",
        )
        assert run(*arguments, "hydra.run.dir=given")[0] == 0
        assert same_weights(self.directory / "student.safetensors", tmp_path / "given" / "student.safetensors")
        assert not list((tmp_path / "elsewhere").rglob("teacher.safetensors"))

    def test_teacher_whose_accuracy_contradicts_its_record_is_refused(self, run, tmp_path):
        (entry,) = (tmp_path / "teachers").glob("*/result.json")
        write(replace(read(entry), test_acc=0.5), entry)
        code, printed = run(*SMALL, "method=logits", "T=3", "hydra.run.dir=other")
        assert code == 1
        assert "is on record with 50.00 % on this test split but reaches" in printed
        assert not (tmp_path / "other" / "student.safetensors").exists()

    def given(self, tmp_path, tensors=None, **changes):
        """A file of the teacher's weights with other metadata, or other tensors."""
        (weights,) = (tmp_path / "teachers").glob("*/teacher.safetensors")
        with safe_open(weights, "pt") as file:
            metadata = file.metadata()
        metadata |= {name: json.dumps(value) for name, value in changes.items()}
        save_file(load_file(weights) if tensors is None else tensors(load_file(weights)), tmp_path / "given", metadata)
        given = f"teacher_weights={tmp_path / 'given'}"
        return (*SMALL, "method=logits", "T=2", "logger=none", given, "hydra.run.dir=other")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"classes": list("0124356789")}, "whose class 3 is '4', and here it is '3'"),
            ({"classes": list("012")}, "with 3 classes instead of 10"),
            ({"mean": [0.9, 0.9, 0.9]}, "normalised otherwise: the mean of its pixels is (0.900, 0.900, 0.900) and"),
        ],
    )
    def test_teacher_weights_of_other_data_are_refused(self, run, tmp_path, changes, message):
        code, printed = run(*self.given(tmp_path, data_id="other", **changes))
        assert code == 1
        assert message in printed
        assert not (tmp_path / "other" / "student.safetensors").exists()

    def test_teacher_weights_of_other_images_are_a_warning(self, run, tmp_path):
        trial = "tested on 1 of 2 images"
        code, printed = run(*self.given(tmp_path, data_id="other", dataset="numerals", test_acc=0.1, trial=trial))
        assert code == 0, printed
        assert read(tmp_path / "other" / "result.json").warnings == [
            f"{tmp_path / 'given'} was trained on other images of the same classes (numerals)",
            f"{tmp_path / 'given'} comes from a trial: {trial}",
        ]
        assert "(numerals)" in printed

    @pytest.mark.parametrize(
        ("value", "message"),
        [(torch.tensor(torch.nan), "is useless: its classifier"), (torch.tensor(1, dtype=torch.int8), "is int8")],
    )
    def test_teacher_weights_that_cannot_be_used_are_named(self, run, tmp_path, value, message):
        def spoilt(tensors):
            name = next(name for name in sorted(tensors) if name.startswith("classifier"))
            return {**tensors, name: value.expand(tensors[name].shape).contiguous()}

        code, printed = run(*self.given(tmp_path, spoilt))
        assert code == 1
        assert f"error: {tmp_path / 'given'}" in printed
        assert message in printed
        assert "lower lr" not in printed

    def test_teacher_weights_of_another_network_of_equal_shapes_are_refused(self, run, tmp_path):
        """Its activation has no weights, so that the tensors fit; the accuracy in the file's metadata does not."""
        given = self.given(tmp_path)
        code, printed = run(*given, "teacher.activation=elu")
        assert code == 1
        assert "; give teacher.activation=relu" in printed

    def test_teacher_at_chance_is_a_warning_in_the_record(self, run, tmp_path):
        def forgetful(tensors):
            return {name: torch.zeros_like(t) if name.startswith("classifier") else t for name, t in tensors.items()}

        code, printed = run(*self.given(tmp_path, forgetful, data_id="other"))
        assert code == 0, printed
        record = read(tmp_path / "other" / "result.json")
        warning = record.warnings[1]
        assert warning.startswith(
            f"the teacher reaches {100 * record.teacher_test_acc:.1f} %, no better than chance (10."
        )
        assert warning in printed

    def test_weights_reproduce_the_logits_without_the_run(self):
        """Network and normalisation come from the file's metadata alone; the logits are those that the run kept."""
        tensors, metadata = load_weights(self.directory / "student.safetensors")
        net = instantiate(metadata["model"], num_classes=metadata["num_classes"], image_size=metadata["image_size"])
        fill(net, tensors, self.directory)
        images = digits(metadata["image_size"])
        mean, std = (torch.tensor(metadata[name])[:, None, None] for name in ("mean", "std"))
        with torch.no_grad():
            logits = net.eval()((images.test_x / 255 - mean) / std).logits
        kept = torch.from_numpy(predictions.read(self.directory / "predictions.npz").logits)
        assert (logits - kept).abs().max() < 0.02 * kept.abs().max()  # the run's were computed in half precision
        assert tuple(metadata["classes"]) == images.classes

    @pytest.mark.parametrize("fast", [True, False])
    def test_speed_settings_are_applied(self, run, tmp_path, monkeypatch, fast):
        trained = []
        monkeypatch.setattr(
            "kd.app.train.train", lambda module, data, *_, **__: trained.append((module, data)) or self.result
        )
        (weights,) = (tmp_path / "teachers").glob("*/teacher.safetensors")
        speed = () if fast else ("speed=reference", "trainer.precision=32-true")
        dropout = ("student.conv_dropout=0.1", f"teacher_weights={weights}", "method=feature")
        assert run(*SMALL, *speed, *dropout, "hydra.run.dir=spied")[0] == 0
        ((module, data),) = trained
        batch = next(iter(data.train_dataloader()))
        assert any(isinstance(part, PackedDropout) for part in module.net.modules()) == fast
        assert batch.x.is_contiguous(memory_format=torch.channels_last) == fast
        assert any(isinstance(part, nn.BatchNorm2d) for part in module.teacher.inference_net.modules()) != fast

    def test_teacher_weights_of_another_architecture_are_refused(self, run, tmp_path):
        (weights,) = (tmp_path / "teachers").glob("*/teacher.safetensors")
        code, printed = run(*SMALL, f"teacher_weights={weights}", "teacher.scale=3", "hydra.run.dir=other")
        assert code == 1
        assert "another architecture" in printed
        assert not (tmp_path / "other" / "student.safetensors").exists()
