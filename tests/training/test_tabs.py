import re
import threading
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import lightning as L
import markdown
import numpy as np
import pytest
import torch
import yaml
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.projector import projector_config_pb2
from tensorboard.util.tensor_util import make_ndarray
from torch import nn
from torch.utils.tensorboard.summary import compute_curve

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.losses import hard_loss
from kd.methods.fitnet import FitNet
from kd.methods.logits import Logits
from kd.models.output import Output
from kd.runs.predictions import Predictions
from kd.runs.results import Result, read
from kd.runs.weights import load_weights
from kd.teachers.frozen import freeze
from kd.training.fit import train
from kd.training.loggers import TensorBoard
from kd.training.modules import Distiller
from kd.training.optim import one_cycle
from kd.training.tabs import (
    THRESHOLDS,
    GradientNorms,
    charts,
    gradient_norms,
    precision_recall,
    principal_components,
    run_text,
    threshold_counts,
)
from tests.common import pair

RUN = "tensorboard/cnn logits T=4.0 seed=3"
STRANGE = (
    "<script>alert(1)</script>",
    "a\tb",
    "two\nlines",
    "\x1b[31mred",
    "\udcff",
    "x" * 300,
    "6",
    "犬",
    "",
    "| # *",
)


def events_in(folder):
    written = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    written.Reload()
    return written


def scalars(written, tag):
    return [(event.step, event.value) for event in written.Scalars(tag)]


@pytest.fixture
def fit(tiny_net, noise, tmp_path):
    """Trains and tests a student, taught by a frozen teacher, in a folder below; returns the module."""

    def fit(folder, logger="tensorboard", method=None, epochs=2, classes=None, sides=None, batches=1, **settings):
        images = noise(test=30) if classes is None else replace(noise(test=30), classes=classes)
        if sides is not None:
            images = replace(images, test_x=images.test_x.repeat(1, 1, *sides))
        torch.manual_seed(0)
        student, teacher = tiny_net(), tiny_net()
        method = Logits(T=4.0, alpha=0.25) if method is None else method
        method.setup(pair(student, teacher))
        optimizer, schedule = partial(torch.optim.SGD, lr=0.001), partial(one_cycle, warmup=0.0)
        module = Distiller(student, 10, optimizer, schedule, method, freeze(teacher))
        data = DataModule(images, 0.25, 0, Augment(1, True, 0), 10, seed=0)
        known = {"student": "cnn", "epochs": epochs, "dataset": "noise", "status": "running", "command": "T=4 seed=3"}
        record = Result(method="logits", knobs={"T": 4.0}, seed=3, **known)
        loop = {"max_epochs": epochs, "accumulate_grad_batches": batches}
        make_trainer = partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, **loop)
        directory = tmp_path / folder
        directory.mkdir()
        logger = TensorBoard(str(directory), **settings) if logger == "tensorboard" else None
        more = {"settings": {"T": 4.0, "student": {"scale": 2}}}
        train(module, data, record, directory, "w.safetensors", {}, make_trainer, logger, **more)
        return module

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        yield fit


# --- what a run leaves


def test_run_has_every_tab_and_the_same_result_as_without_a_logger(fit, tmp_path):
    """Weights, predictions and the metrics of every epoch, bit by bit, also with gradient norms at every step."""

    def threads():
        """Without those of `kd.training.threads`, which an earlier test may have started, and which come and go."""
        return [thread for thread in threading.enumerate() if thread.name not in ("threads", "crowd")]

    fit("plain", logger=None)
    before = threads()
    module = fit("board", gradient_norms=1)
    assert threads() == before
    assert module.pending_terms == {}
    for name in ("metrics.csv", "predictions.npz"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "board" / name).read_bytes(), name
    plain, board = (load_weights(tmp_path / name / "w.safetensors")[0] for name in ("plain", "board"))
    assert all(torch.equal(value, board[name]) for name, value in plain.items())

    written = events_in(tmp_path / "board" / RUN)
    tags = written.Tags()
    for term, weight in (("hard", 0.25), ("soft", 0.75)):
        weighted, unweighted = scalars(written, f"train/{term}"), scalars(written, f"train_unweighted/{term}")
        assert [step for step, _ in weighted] == [step for step, _ in unweighted] == [2, 5]
        np.testing.assert_allclose([v for _, v in weighted], [weight * v for _, v in unweighted], rtol=1e-5)
        norms = scalars(written, f"train_gradient_norm/{term}")
        assert [step for step, _ in norms] == list(range(6))
        assert min(value for _, value in norms) > 0
    assert {"run/text_summary", "all classes/student", "all classes/teacher", "student, by class/9 j"} <= set(
        tags["tensors"]
    )
    assert sum(file.stat().st_size for file in (tmp_path / "board" / RUN).rglob("*")) < 1e6


def test_gradient_norms_are_measured_once_a_step_of_several_batches(fit, tmp_path):
    fit("run", gradient_norms=1, batches=3)  # of six batches
    written = events_in(tmp_path / "run" / RUN)
    assert [step for step, _ in scalars(written, "train_gradient_norm/soft")] == [0, 1]


def test_gradient_norms_are_off_by_default(fit, tmp_path):
    fit("run", epochs=1)
    assert not [tag for tag in events_in(tmp_path / "run" / RUN).Tags()["scalars"] if "gradient" in tag]


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "often"])
def test_tensorboard_refuses_gradient_norms_that_are_no_number_of_steps(tmp_path, every):
    with pytest.raises(ValueError, match=r"^logger\.gradient_norms must be a whole number"):
        TensorBoard(str(tmp_path), gradient_norms=every)


def test_unweighted_terms_are_left_out_while_they_rest(fit, tmp_path):
    """The first stage has the method's term alone, the second the others: no other weight than 0 is known then."""
    fit("run", method=FitNet(alpha=0.5, warmup=0.5), epochs=4)
    written = events_in(tmp_path / "run" / RUN)
    assert [step for step, _ in scalars(written, "train_unweighted/hint")] == [2, 5]
    assert [step for step, _ in scalars(written, "train_unweighted/hard")] == [8, 11]


def test_run_survives_tabs_that_fail(fit, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("cannot show")

    for name in ("run_text", "charts", "precision_recall", "principal_components"):
        monkeypatch.setattr(f"kd.training.tabs.{name}", fail)
    fit("run", epochs=1)
    assert caplog.text.count("could not be logged: cannot show") == 4
    assert read(tmp_path / "run" / "result.json").status == "done"


def test_run_survives_gradients_that_cannot_be_measured(fit, tmp_path, monkeypatch, caplog):
    """As with torch.compile, whose backward pass may be made for one use."""

    def fail(*_, **__):
        raise RuntimeError("compiled with donated buffers\nand more")

    monkeypatch.setattr("kd.training.tabs.gradient_norms", fail)
    fit("run", gradient_norms=1)
    assert caplog.text.count("gradient norms cannot be measured: compiled with donated buffers") == 1
    assert read(tmp_path / "run" / "result.json").status == "done"


# --- gradient norms


@pytest.mark.parametrize("first", [True, False])
def test_gradient_norms_are_taken_in_every_process_and_logged_in_the_first(monkeypatch, tmp_path, first):
    """Or SyncBatchNorm's backward pass, which is one of all processes, would wait for those that take none."""
    taken, logged = [], []
    monkeypatch.setattr("kd.training.tabs.gradient_norms", lambda *parts: taken.append(parts) or {"hard": 1.0})
    logger = TensorBoard(str(tmp_path))
    monkeypatch.setattr(logger, "log_metrics", lambda *parts: logged.append(parts))
    trainer = SimpleNamespace(is_global_zero=first, loggers=[logger], global_step=4, world_size=2)
    module = SimpleNamespace(pending_terms={}, net=None)
    norms = GradientNorms(2)
    norms.on_before_backward(trainer, module, torch.zeros(()))
    assert (len(taken), len(logged)) == (1, int(first))
    trainer.global_step = 5
    norms.on_before_backward(trainer, module, torch.zeros(()))
    assert len(taken) == 1

    def fail(*_):
        raise RuntimeError("one process")

    monkeypatch.setattr("kd.training.tabs.gradient_norms", fail)
    trainer.global_step = 6
    with pytest.raises(RuntimeError, match="one process"):
        norms.on_before_backward(trainer, module, torch.zeros(()))


def test_gradient_norms_are_those_of_each_term_alone(tiny_net):
    net, other = tiny_net(), nn.Linear(2, 1)
    net(torch.randn(4, 3, 8, 8))
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    logits = net(x).logits
    terms = {"hard": hard_loss(logits, y), "own": other(torch.ones(2)).sum(), "constant": torch.tensor(1.0)}
    norms = gradient_norms(terms, net)
    assert all(parameter.grad is None for parameter in net.parameters())
    terms["hard"].backward()
    total = torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None]).norm()
    assert norms == {"hard": pytest.approx(total.item(), rel=1e-5), "own": 0.0, "constant": 0.0}


# --- text and charts


def test_run_text_is_a_command_and_settings_that_can_be_read_back():
    settings = {"T": 4.0, "student": {"scale": 2, "stages": None}, "chain": [], "note": "<b>*x*</b>\n```\n# y"}
    command = "T=4 'data.root=/a folder/ü' " + " ".join(f"student.setting_{i}={i}" for i in range(12))
    html = markdown.markdown(run_text(command, settings), extensions=["tables", "fenced_code"])
    typed, shown = re.findall("<pre><code>(.*?)</code></pre>", html, re.DOTALL)
    assert typed.startswith("python train.py T=4 'data.root=/a folder/ü' student.setting_0=0")
    assert max(map(len, typed.split("\n"))) <= 102
    assert typed.replace("\\\n    ", "").split() == ["python", "train.py", *command.split()]
    assert "<b>" not in html
    unescaped = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert yaml.safe_load(unescaped) == settings


@pytest.mark.parametrize("name", STRANGE)
def test_run_text_shows_any_name_as_text(name):
    text = run_text(f"data.root={name!r}" if "'" in name else f"'data.root={name}'", {"classes": [name]})
    assert text.encode()  # no half of a pair of surrogates, which no event can hold
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "<script" not in markdown.markdown(text, extensions=["tables", "fenced_code"])


def test_charts_put_the_terms_of_any_method_together(fit, tmp_path):
    fit("run", epochs=1)
    written = events_in(tmp_path / "run" / RUN)
    (event,) = written.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    shown = {
        chart.title: {
            tag for tag in written.Tags()["scalars"] if any(re.match(part, tag) for part in chart.multiline.tag)
        }
        for category in layout.category
        for chart in category.chart
    }
    assert [category.title for category in layout.category] == ["accuracy", "loss"]
    assert shown["training and validation"] == {"train/acc", "val/acc"}
    assert shown["terms, weighted, and their sum"] == {"train/hard", "train/soft", "train/loss"}
    assert shown["terms, unweighted (of known weight)"] == {"train_unweighted/hard", "train_unweighted/soft"}
    assert shown["training loss and validation NLL"] == {"train/loss", "val/nll"}


def test_charts_of_terms_leave_out_monitors():
    (pattern,) = charts({"peer_acc", "T"})["loss"]["terms, weighted, and their sum"][1]
    shown = [
        name for name in ("hard", "acc", "peer_acc", "T", "accuracy", "Total") if re.match(pattern, f"train/{name}")
    ]
    assert shown == ["hard", "accuracy", "Total"]


# --- precision and recall


def test_threshold_counts_are_those_of_torch():
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).mul(3).numpy()
    labels = np.arange(50) % 3
    hits, others = threshold_counts(logits, labels)
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    for label in range(3):
        expected = compute_curve(labels == label, probabilities[:, label], num_thresholds=THRESHOLDS)
        assert np.array_equal(expected[:2], [hits[label], others[label]])


def test_threshold_counts_take_many_images_in_parts(monkeypatch):
    logits, labels = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32), np.arange(10) % 4
    whole = threshold_counts(logits, labels)
    monkeypatch.setattr("kd.training.tabs.ROWS", 3)
    assert np.array_equal(whole, threshold_counts(logits, labels))
    assert whole[0][:, 0].tolist() == [3, 3, 2, 2]  # at threshold 0 every image counts
    assert whole[1][:, 0].tolist() == [7, 7, 8, 8]


def test_precision_recall_of_a_perfect_network(fit, tmp_path):
    perfect = Predictions(np.arange(4), 100 * np.eye(4, dtype=np.float32))
    hits, others = precision_recall(perfect, ("0", "one", "a/b", "3"), "teacher")["all classes/teacher"]
    assert (hits[-1], others[-1]) == (4, 0)
    assert list(precision_recall(perfect, ("0", "one", "a/b", "3"), "teacher")) == [
        "all classes/teacher", "teacher, by class/0", "teacher, by class/1 one", "teacher, by class/2 a/b",
        "teacher, by class/3",
    ]  # fmt: skip


def test_precision_recall_of_many_classes_is_that_of_all_together():
    many = Predictions(np.arange(30), np.zeros((30, 30), np.float32), np.zeros((30, 30), np.float32))
    assert list(precision_recall(many, [str(i) for i in range(30)], "student")) == [
        "all classes/student",
        "all classes/teacher",
    ]


def test_curve_in_the_events_has_precision_and_recall(fit, tmp_path):
    fit("run", epochs=1)
    (event,) = events_in(tmp_path / "run" / RUN).Tensors("all classes/student")
    hits, false, rejected, missed, precision, recall = make_ndarray(event.tensor_proto)
    assert (hits[0], false[0], rejected[0], missed[0]) == (30, 270, 0, 0)
    np.testing.assert_allclose(precision[0], 0.1, rtol=1e-6)
    assert recall[0] == 1
    assert ((hits + missed == 30) & (false + rejected == 270)).all()


# --- embeddings


def read_points(folder):
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), projector_config_pb2.ProjectorConfig())
    return {part.tensor_name: (part, np.loadtxt(folder / part.tensor_path, ndmin=2)) for part in config.embeddings}


def rows_of(folder):
    return [line.split("\t") for line in (folder / "projector" / "images.tsv").read_text().splitlines()]


def test_embeddings_are_those_of_student_and_teacher(fit, noise, tmp_path):
    module = fit("run", epochs=1)
    folder = tmp_path / "run" / RUN
    points = read_points(folder)
    assert list(points) == ["student, test images", "teacher, test images"]
    data = DataModule(noise(test=30), 0.25, 0, Augment(1, True, 0), 30, seed=0)
    (batch,) = data.test_dataloader()
    with torch.inference_mode():
        outputs: dict[str, Output] = {"student": module.net.eval()(batch.x), "teacher": module.teacher(batch)}
    for name, output in outputs.items():
        _, found = points[f"{name}, test images"]
        expected = output.embedding
        assert found.shape == (30, min(30, expected.shape[1]))
        np.testing.assert_allclose(torch.pdist(torch.tensor(found)), torch.pdist(expected), rtol=2e-3, atol=1e-3)
    head, *rows = rows_of(folder)
    assert head == ["class", "student", "teacher", "right", "image"]
    assert [row[0] for row in rows] == ["abcdefghij"[label] for label in batch.y.tolist()]
    assert [row[1] for row in rows] == ["abcdefghij"[i] for i in outputs["student"].logits.argmax(1).tolist()]
    assert {row[3] for row in rows} <= {"both", "student", "teacher", "neither"}
    part, _ = points["student, test images"]
    assert list(part.sprite.single_image_dim) == [8, 8]
    picture = np.asarray(Image.open(folder / part.sprite.image_path))
    assert picture.shape == (6 * 8, 6 * 8, 3)  # 30 images in a square
    assert np.array_equal(picture[8:16, 24:32], noise(test=30).test_x[9].permute(1, 2, 0).numpy())


def test_embeddings_of_many_large_images_are_bounded(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("kd.training.tabs.POINTS", 12)
    fit("run", epochs=1, sides=(2, 8))
    folder = tmp_path / "run" / RUN
    assert [row[4] for row in rows_of(folder)[1:]] == [
        str(i) for i in range(42, 70, 3)
    ]  # evenly, after those of training
    part, found = read_points(folder)["teacher, test images"]
    assert len(found) == 10
    assert list(part.sprite.single_image_dim) == [32, 8]  # of 64 x 16 pixels


def test_embeddings_have_one_line_for_an_image_of_any_class_name(fit, tmp_path):
    fit("run", epochs=1, classes=STRANGE)
    rows = rows_of(tmp_path / "run" / RUN)
    assert {len(row) for row in rows} == {5}
    assert len(rows) == 31
    assert max(len(row[0]) for row in rows) <= 24


def test_principal_components_keep_distances():
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(40, 7)) @ generator.normal(size=(7, 600)) + 5  # 600 dimensions, of which 7 are used
    reduced = principal_components(flat)
    assert reduced.shape == (40, 40)
    before, after = (torch.pdist(torch.tensor(points)) for points in (flat, reduced))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert (np.diff(reduced.var(axis=0)) <= 1e-9).all()
    np.testing.assert_allclose(reduced[:, 7:], 0, atol=1e-4)
    assert principal_components(generator.normal(size=(300, 64))).shape == (300, 50)
