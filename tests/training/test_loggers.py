import io
import os
import resource
import signal
import sys
import threading
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing import plugin_event_multiplexer as event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import backend_context

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.errors import UserError
from kd.runs import predictions
from kd.runs.predictions import Predictions, confusion
from kd.runs.results import Result, read
from kd.runs.weights import load_weights
from kd.training.fit import train
from kd.training.loggers import (
    TensorBoard,
    abandon,
    conclude,
    confusion_figure,
    log_confusion,
    log_settings,
    name_run,
    render,
    sample_grid,
)
from kd.training.modules import Classifier
from kd.training.optim import one_cycle
from tests.training.test_pictures import STRANGE

# --- TensorBoard


def events_in(folder):
    written = EventAccumulator(str(folder))
    written.Reload()
    return written


@pytest.fixture
def fit(tiny_net, noise, trainer, tmp_path):
    """Trains and tests, as often as it is called, and leaves events in one folder; returns data and test logits."""

    def fit(epochs=2, classes=None, test_y=None, **settings):
        images = noise() if classes is None else replace(noise(), classes=classes)
        images = images if test_y is None else replace(images, test_y=test_y)
        data = DataModule(images, 0.25, 0, Augment(1, True, 0), 10, seed=0)
        module = Classifier(tiny_net(), 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0), 0.0)
        record = Result(method="logits", knobs={"T": 4.0}, seed=3, dataset="noise", epochs=epochs, status="running")
        make_trainer = partial(L.Trainer, max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
        logger = TensorBoard(str(tmp_path))
        return data, train(module, data, record, tmp_path, "w.safetensors", {}, make_trainer, logger, **settings)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        yield fit


def test_failed_training_ends_the_processes_that_train_along(fit, monkeypatch):
    """At the end of this one, or Lightning would end it with them, before its record is written."""
    planned, ended = [], []
    monkeypatch.setattr("kd.training.fit.atexit.register", lambda *call: planned.append(call))

    class Fail(L.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.strategy._launcher = SimpleNamespace(kill=ended.append, launch=None)
            raise UserError("failed")

    with pytest.raises(UserError, match="failed"):
        fit(callbacks=[Fail()])
    assert ended == []
    assert planned == [(ended.append, signal.SIGKILL)]


def test_record_warns_of_classes_without_test_images(noise, fit):
    _, record = fit(test_y=noise().test_y.clamp(max=8))
    assert "there are no test images of j" in record.warnings


RUN = "tensorboard/logits T=4.0 seed=3"


def read_picture(written, tag):
    (event,) = written.Images(tag)
    return event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_tensorboard_receives_pictures_curves_and_final_figures(fit, tmp_path):
    data, record = fit()
    written = events_in(tmp_path / RUN)
    assert set(written.Tags()["images"]) == {"samples", "test/confusion"}
    step, picture = read_picture(written, "samples")
    data.trainer = None
    assert step == 0
    assert np.array_equal(picture, sample_grid(data.train_dataloader()))
    step, picture = read_picture(written, "test/confusion")
    assert step == 2 * 3
    counts = confusion(*predictions.read(tmp_path / "predictions.npz")[:2])
    assert np.array_equal(picture, render(confusion_figure(counts, data.images.classes)))

    scalars = sorted(written.Tags()["scalars"])
    dots = [tag for tag in scalars if len(written.Scalars(tag)) == 1]
    assert (
        dots == scalars[-len(dots) :] == [f"z_final/{name}" for name in ("test_acc", "test_ece", "test_nll", "val_acc")]
    )
    assert {"train/hard", "train/loss", "train/acc", "val/acc", "val/nll", "lr"} <= set(scalars)
    assert "epoch" not in scalars
    assert written.Scalars("z_final/test_acc")[0].value == pytest.approx(record.test_acc)


def test_tensorboard_has_one_picture_of_samples_after_resuming(fit, tmp_path):
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        fit(3, callbacks=[Stop()])
    fit(3)
    written = events_in(tmp_path / RUN)
    assert len(written.Images("samples")) == 1
    assert len(written.Scalars("train/loss")) == 3


def test_tensorboard_shows_the_knobs_of_every_run(tmp_path):
    """The tab of hyperparameters, as TensorBoard's own server computes it, has the columns of both methods."""
    for name, knobs in (("standard", {}), ("logits", {"T": 4.0, "mode": "cosine"})):
        logger = TensorBoard(str(tmp_path / name))
        conclude([logger], {"method": name, **knobs}, {"test_acc": 0.5})
    files = event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    files.Reload()
    provider = data_provider.MultiplexerDataProvider(files, str(tmp_path))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = RequestContext()
    runs = context.hparams_metadata(request, "")
    found = context.experiment_from_metadata(request, "", True, runs, [])
    assert {info.name for info in found.hparam_infos} == {"method", "T", "mode"}
    assert {info.name.tag for info in found.metric_infos} == {"z_final/test_acc"}


def test_tensorboard_writes_at_once_and_without_a_thread(tmp_path):
    threads, files = threading.enumerate(), os.listdir("/proc/self/fd")
    logger = TensorBoard(str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 0)
    assert threading.enumerate() == threads
    assert [event.value for event in events_in(tmp_path / "tensorboard").Scalars("loss")] == [1.0]
    conclude([logger], {"T": 4.0}, {"test_acc": 0.5})
    assert os.listdir("/proc/self/fd") == files
    assert len(events_in(tmp_path / "tensorboard").Scalars("z_final/test_acc")) == 1


def test_tensorboard_on_a_full_disk_raises_and_leaves_no_half_event(tmp_path, capfd):
    def fill():
        for step in range(20):
            logger.log_metrics({"loss": 1.0}, step)

    logger = TensorBoard(str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (file,) = (tmp_path / "tensorboard").iterdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.log_metrics({"loss": 2.0}, 99)
    abandon([logger])
    assert capfd.readouterr() == ("", "")
    assert events_in(tmp_path / "tensorboard").Scalars("loss")[-1].value == 2.0


def test_failed_training_closes_its_files(fit):
    class Stop(L.Callback):
        def on_train_epoch_end(self, *_):
            raise UserError("stopped")

    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="stopped"):
        fit(3, callbacks=[Stop()])
    assert len(os.listdir("/proc/self/fd")) == files


def test_name_run_makes_a_directory_of_any_knobs(tmp_path):
    logger = TensorBoard(str(tmp_path))
    name_run(logger, "takd assistants=[{'scale': 24}] note=a/../b\\x00" + "x" * 200)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name.startswith("takd assistants= scale 24 note=a .. b x")
    assert len(folder.name) <= 100


# --- what fails


def test_training_survives_pictures_and_summaries_that_fail(fit, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("cannot draw")

    for name in ("sample_grid", "render", "hparams"):
        monkeypatch.setattr(f"kd.training.loggers.{name}", fail)
    fit(classes=STRANGE)
    assert caplog.text.count("could not be logged: cannot draw") == 3
    assert read(tmp_path / "result.json").status == "done"
    assert load_weights(tmp_path / "w.safetensors")[1]["test_images"] == 20
    assert len(predictions.read(tmp_path / "predictions.npz").labels) == 20


def test_log_confusion_counts_the_labels_as_rows(monkeypatch):
    shown = []
    monkeypatch.setattr("kd.training.loggers.log_picture", lambda loggers, name, picture, step: shown.append(name))
    logits = np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 1.0, 9.0]], np.float32)
    made = Predictions(np.array([0, 1, 2]), logits)
    assert confusion(made.labels, made.logits).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    log_confusion([CSVLogger("nowhere")], made, "abc", 7)
    assert shown == ["test/confusion"]


def test_settings_are_logged_before_training_but_to_tensorboard(tmp_path, noise, tiny_net):
    """A run that fails has them, too; TensorBoard shows them as text."""

    class Broken(L.Callback):
        def on_train_start(self, *_):
            raise UserError("broken")

    logger = CSVLogger(tmp_path)
    module = Classifier(tiny_net(), 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0), 0.0)
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=10, seed=0)
    record = Result(method="standard", seed=0, dataset="noise", epochs=3, status="running")
    make_trainer = partial(L.Trainer, max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    own = {"recipe": {"optimizer": {"lr": 0.1}}, "seed": 0}
    with pytest.raises(UserError, match="broken"):
        train(module, data, record, tmp_path, "w.safetensors", {}, make_trainer, logger, [Broken()], settings=own)
    assert logger.experiment.hparams == {"settings": own}
    board = TensorBoard(str(tmp_path / "board"))
    log_settings([board], own)
    assert not (tmp_path / "board").exists()


def test_logger_that_cannot_begin_ends_the_run_in_a_line(tmp_path):
    """As W&B without a login: Lightning would open it again, unprotected."""

    class Locked(CSVLogger):
        @property
        def experiment(self):
            raise RuntimeError("api_key not configured (no-tty)\nmore")

    with pytest.raises(
        UserError, match=r"^Locked cannot begin: api_key not configured \(no-tty\); mend that, or choose"
    ):
        log_settings([Locked(tmp_path)], {"seed": 0})


def test_final_figures_are_logged_though_settings_are_refused(tmp_path):
    """As MLflow refuses another value of a parameter that it has."""

    class Strict(CSVLogger):
        def log_hyperparams(self, params):
            raise ValueError("Changing param values is not allowed")

    logger = Strict(tmp_path)
    conclude([logger], {"method": "logits"}, {"test_acc": 0.8})
    assert logger.experiment.metrics[-1]["z_final/test_acc"] == 0.8


def test_abandon_ends_the_wandb_run_of_a_failed_training(tmp_path, noise, tiny_net, monkeypatch):
    """W&B has one run a process until `finish` is called; a dummy takes its place here."""

    class Dummy(CSVLogger):
        def log_image(self, *_, **__):
            pass

    class Broken(L.Callback):
        def on_train_batch_end(self, *_):
            raise UserError("broken")

    codes = []
    monkeypatch.setattr("kd.training.loggers.WandbLogger", Dummy)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda exit_code: codes.append(exit_code)))
    module = Classifier(tiny_net(), 10, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.0), 0.0)
    data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=10, seed=0)
    record = Result(method="standard", seed=0, dataset="noise", epochs=3, status="running")
    make_trainer = partial(L.Trainer, max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(UserError, match="broken"):
        train(module, data, record, tmp_path, "student.safetensors", {}, make_trainer, Dummy(tmp_path), [Broken()])
    assert codes == [1]
