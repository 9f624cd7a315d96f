import copy
import math
import re
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.special import log_softmax
from torch import nn

import kd.data.module
from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.errors import UserError
from kd.methods.base import Method, Step
from kd.methods.feature import Feature
from kd.methods.logits import Logits
from kd.teachers.frozen import FrozenTeacher
from kd.training.callbacks import DivergenceCheck, EpochSeed, History, KeepPredictions
from kd.training.modules import Classifier, Distiller, Mean, Scores
from kd.training.optim import one_cycle
from tests.common import pair


def classifier_arguments(net, lr=0.05):
    return {
        "net": net,
        "num_classes": net.classifier.out_features,
        "optimizer": partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=0.1),
        "schedule": partial(one_cycle, warmup=0.25),
    }


def distiller(net, teacher, method=None, **recipe):
    method = method or Logits(2.0, 0.3, 0.0)
    method.setup(pair(net, teacher))
    frozen = None if teacher is None else FrozenTeacher(teacher, "id")
    return Distiller(**classifier_arguments(net, **recipe), teacher=frozen, method=method)


def data_module(images, val_fraction=0.25):
    return DataModule(images, val_fraction, 0, Augment(1, True, 0), batch_size=10, seed=3)


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal_state(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class OnTrainBatch(L.Callback):
    """Calls a function at the start of one training step, or of each."""

    def __init__(self, act, step=None):
        self.act, self.step = act, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.step in (None, trainer.global_step):
            self.act(trainer, pl_module, batch)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_gradient_clipping_covers_student_and_method(tiny_net, noise, trainer, clip):
    student, teacher = tiny_net(width=4), tiny_net(width=8, seed=1)
    module = distiller(student, teacher, Feature(2.0, 0.1, 0.3, [-1], 0.0))
    module._optimizer = partial(torch.optim.SGD, lr=1.0)
    before, rates = [p.detach().clone() for p in module.parameters()], []
    assert any(p.requires_grad for p in module.method.parameters())
    spy = OnTrainBatch(lambda trainer, *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    trainer(max_steps=1, gradient_clip_val=clip, callbacks=[spy]).fit(module, data_module(noise()))
    moved = torch.stack([(p - old).norm() for p, old in zip(module.parameters(), before, strict=True)]).norm().item()
    assert moved == pytest.approx(1e-3 * rates[0], rel=0.01) if clip else moved > 0.1 * rates[0]


# --- what is logged


def expected_calibration_error(p, y, bins=15):
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    error = 0.0
    for i in range(bins):
        bin = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if bin.any():
            error += bin.mean() * abs(right[bin].mean() - confidence[bin].mean())
    return error


def outputs_of(net, loader):
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(batch.x).logits for batch in loader])
    return log_softmax(logits.double().numpy(), axis=1), torch.cat([batch.y for batch in loader]).numpy()


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_match_plain_formulas(tiny_net, noise, trainer, monkeypatch, split):
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 32)  # 80 images in 27 + 27 + 26: their means differ
    images = noise(train=160, test=80)
    data = data_module(images, val_fraction=0.5)
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    student = tiny_net(seed=1)
    student.classifier.weight.data *= 20  # from unsure to nearly certain
    teacher = copy.deepcopy(student)
    teacher.classifier.weight.data += torch.randn(10, 4)  # which agrees on many images
    log_p, y = outputs_of(student, loader)
    p, predicted = np.exp(log_p), log_p.argmax(axis=1)
    known = np.arange(80) % 5 > 1  # else the student is wrong about nearly all of this noise
    y[known] = predicted[known]
    loader.pixels.y[loader.sampler.index] = torch.from_numpy(y)

    module, lightning = distiller(student, teacher), trainer()
    (lightning.validate if split == "val" else lightning.test)(module, data, verbose=False)
    logged = {name: value.item() for name, value in lightning.callback_metrics.items()}

    log_q, _ = outputs_of(teacher, loader)
    assert p.max(axis=1).min() < 0.5 < 0.9 < p.max() < 1
    expected = {
        "acc": np.mean(predicted == y),
        "acc_top5": np.mean([y[i] in np.argsort(-log_p[i])[:5] for i in range(80)]),
        "nll": -log_p[np.arange(80), y].mean(),
        "ece": expected_calibration_error(p, y),
        "agreement": np.mean(predicted == log_q.argmax(axis=1)),
        "kl_to_teacher": (np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean(),
    }
    assert logged == pytest.approx({f"{split}/{name}": value for name, value in expected.items()}, rel=1e-4)
    assert expected["ece"] != pytest.approx(expected_calibration_error(p, y, bins=14), rel=1e-2)
    assert 0 < expected["acc"] < expected["acc_top5"] < 1
    assert 0 < expected["agreement"] < 1


def test_scores_ece_puts_confidence_1_into_the_last_of_15_bins():
    scores = Scores(2)
    # confidences 1 (wrong) and 0.9526 (right) share a bin: |1/2 - 0.9763|
    scores.update(torch.tensor([[50.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 0]))
    assert scores.ece.compute().item() == pytest.approx(0.4763, abs=1e-4)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_scores_are_in_fp32_in_every_precision(tiny_net, noise, trainer, monkeypatch, precision):
    """The network's own numbers may be coarse, but not the means of what comes of them."""
    monkeypatch.setattr(kd.data.module, "EVAL_BATCH", 7)
    data, kept = data_module(noise(test=80)), KeepPredictions()
    lightning = trainer(precision=precision, callbacks=[kept])
    lightning.test(distiller(tiny_net(), tiny_net(seed=1)), data, verbose=False)
    labels, logits, teacher = kept.predictions(lightning)
    log_p, log_q = (log_softmax(z.astype(np.float64), axis=1) for z in (logits, teacher))
    logged = {name: value.item() for name, value in lightning.callback_metrics.items()}
    assert logged["test/nll"] == pytest.approx(-log_p[np.arange(80), labels].mean(), rel=1e-5)
    expected = (np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean()
    assert logged["test/kl_to_teacher"] == pytest.approx(expected, rel=1e-3)


def test_mean_of_nan_is_nan():
    mean = Mean()
    mean.update(torch.tensor(2.0), 3)
    mean.update(torch.tensor(6.0), 1)
    assert mean.compute() == 3
    mean.update(torch.tensor(math.nan), 1)
    assert mean.compute().isnan()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_scores_top5_with_fewer_than_five_classes_is_1(tiny_net, noise, trainer, num_classes):
    data = data_module(noise(num_classes=num_classes))
    lightning = trainer(max_epochs=1)
    module = distiller(tiny_net(num_classes=num_classes), tiny_net(num_classes=num_classes, seed=1))
    lightning.fit(module, data)
    log_p, y = outputs_of(module.net, data.val_dataloader())
    assert lightning.callback_metrics["val/acc_top5"] == 1
    assert lightning.callback_metrics["val/acc"].item() == pytest.approx(np.mean(log_p.argmax(axis=1) == y))


def epoch_means(net, data, terms):
    """Return the means over one epoch's steps of `terms` and the accuracy, at a learning rate of 0."""
    net = copy.deepcopy(net).train()
    steps = []
    for batch in data.train_dataloader():
        output = net(batch.x)
        accuracy = (output.logits.argmax(dim=1) == batch.y).float().mean()
        steps.append({**terms(output, batch), "acc": accuracy})
    return {name: np.mean([step[name].item() for step in steps]) for name in steps[0]}


def test_distiller_logs_each_weighted_term_and_their_sum(tiny_net, noise, trainer):
    data = data_module(noise())
    student, teacher = tiny_net(seed=1), tiny_net(width=6, seed=2)
    module, lightning = distiller(student, teacher, lr=0.0), trainer(max_epochs=1)

    def terms(output, batch):
        log_p, log_q = ((z / 2).log_softmax(dim=1) for z in (output.logits, teacher.eval()(batch.x).logits))
        kl = (log_q.exp() * (log_q - log_p)).sum(dim=1).mean()
        return {"hard": 0.3 * F.cross_entropy(output.logits, batch.y), "soft": 0.7 * 4 * kl}

    expected = epoch_means(student, data, terms)
    expected["loss"] = expected["hard"] + expected["soft"]
    lightning.fit(module, data)
    logged = {name: value.item() for name, value in lightning.callback_metrics.items() if name.startswith("train/")}
    assert logged == pytest.approx({f"train/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_distiller_trains_on_the_step_and_measures_the_teachers_own_output(tiny_net, noise, trainer):
    """The loss uses what `step` computes from the teacher; fidelity is measured against the teacher's own output."""

    class Contrary(Logits):
        def step(self, student, teacher, batch):
            output, answer = student(batch.x), teacher(batch)
            return Step(
                output, self(output, answer._replace(logits=-answer.logits), batch), {"mean": output.logits.mean()}
            )

    fits = {}
    for method in (Logits, Contrary):
        module = distiller(tiny_net(), tiny_net(6, seed=1), method(2.0, 0.0, 0.0), lr=0.0)
        fit = trainer(max_epochs=1)
        fit.fit(module, data_module(noise()))
        fits[method] = dict(fit.callback_metrics)
    assert fits[Contrary]["train/soft"] != fits[Logits]["train/soft"]
    assert fits[Contrary]["val/kl_to_teacher"] == fits[Logits]["val/kl_to_teacher"]
    # A monitor is logged like a term and is no part of the loss.
    assert fits[Contrary]["train/mean"] != 0
    loss = fits[Contrary]["train/hard"] + fits[Contrary]["train/soft"]
    assert fits[Contrary]["train/loss"].item() == pytest.approx(loss.item())


def test_distiller_sets_the_methods_progress(tiny_net, noise, trainer):
    progress = []

    class Patient(Logits):
        def forward(self, student, teacher, batch):
            progress.append(self.progress)
            return super().forward(student, teacher, batch)

    trainer(max_epochs=2).fit(distiller(tiny_net(), tiny_net(6, seed=1), Patient()), data_module(noise()))
    assert progress == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_distiller_without_a_teacher_measures_no_fidelity(tiny_net, noise, trainer):
    class Alone(Method):
        reads = frozenset()

        def step(self, student, teacher, batch):
            assert teacher is None
            output = student(batch.x)
            return Step(output, {"hard": F.cross_entropy(output.logits, batch.y)})

    lightning, kept = trainer(max_epochs=1, callbacks=[KeepPredictions()]), None
    module = distiller(tiny_net(), None, Alone())
    lightning.fit(module, data_module(noise()))
    lightning.test(module, data_module(noise()), verbose=False)
    assert not [name for name in lightning.callback_metrics if "teacher" in name or "agreement" in name]
    (kept,) = (callback for callback in lightning.callbacks if isinstance(callback, KeepPredictions))
    assert kept.predictions(lightning).teacher_logits is None


def test_distiller_tests_the_methods_inference_net(tiny_net, noise, trainer):
    class Behind(nn.Module):
        """The student with another head, as in methods that reuse the teacher's."""

        def __init__(self, student):
            super().__init__()
            self.student = student

        def forward(self, x):
            output = self.student(x)
            return output._replace(logits=-output.logits)

    class Headed(Logits):
        def setup(self, pair):
            self.behind = Behind(pair.student_net)

        def inference_net(self, student):
            return self.behind

    keep = KeepPredictions()
    net = tiny_net()
    module = distiller(net, tiny_net(6, seed=1), Headed())
    lightning = trainer(callbacks=[keep])
    lightning.test(module, data_module(noise()), verbose=False)
    (batch,) = list(data_module(noise()).test_dataloader())
    with torch.no_grad():
        assert np.allclose(keep.predictions(lightning).logits, -net.eval()(batch.x).logits, atol=1e-5)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_distiller_names_a_network_that_returns_no_output(tiny_net, noise, trainer, role):
    class Plain(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

    plain = Plain(3 * 8 * 8, 10)
    module = distiller(tiny_net(), tiny_net(6, seed=1))
    if role == "student":
        module.net = plain
    else:
        module.teacher = lambda batch: plain(batch.x)
    name = "Plain" if role == "student" else "function"
    with pytest.raises(TypeError, match=f"{name} returned a Tensor, not a kd.Output"):
        trainer(max_epochs=1).fit(module, data_module(noise()))


def test_keep_predictions_restores_the_order_of_the_test_split(tiny_net, noise, trainer, monkeypatch):
    images = noise()
    module, keep = distiller(tiny_net(), tiny_net(6, seed=1)), KeepPredictions()
    lightning = trainer(max_epochs=1, callbacks=[keep])
    lightning.fit(module, data_module(images))
    lightning.test(module, data_module(images), verbose=False)
    (batch,) = list(data_module(images).test_dataloader())
    with torch.no_grad():
        logits, teacher_logits = module.net.eval()(batch.x).logits, module.teacher(batch).logits
    found = keep.predictions(lightning)
    assert np.allclose(found.logits, logits, atol=1e-5)
    assert np.allclose(found.teacher_logits, teacher_logits, atol=1e-5)
    keep.on_test_start(lightning, module)
    for part in reversed(torch.arange(len(batch.y)).split(7)):  # as batches may come from several ranks
        rows = {"index": batch.index, "labels": batch.y, "logits": logits, "teacher_logits": teacher_logits}
        keep.on_test_batch_end(lightning, module, {name: row[part] for name, row in rows.items()}, None, 0)
    kept = keep.predictions(lightning)
    assert kept.labels.tolist() == images.test_y.tolist()
    assert np.allclose(kept.logits, found.logits, atol=1e-5)
    assert np.allclose(kept.teacher_logits, found.teacher_logits, atol=1e-5)


def test_classifier_logs_no_soft_terms(tiny_net, noise, trainer):
    data, net = data_module(noise()), tiny_net()
    expected = epoch_means(
        net, data, lambda output, batch: {"hard": F.cross_entropy(output.logits, batch.y, label_smoothing=0.2)}
    )
    lightning = trainer(max_epochs=1)
    lightning.fit(Classifier(**classifier_arguments(net, lr=0.0), label_smoothing=0.2), data)
    names = [f"val/{name}" for name in ("acc", "acc_top5", "nll", "ece")]
    assert lightning.callback_metrics.keys() == {"train/hard", "train/loss", "train/acc", "lr", *names}
    logged = {name: lightning.callback_metrics[f"train/{name}"].item() for name in ("hard", "loss", "acc")}
    assert logged == pytest.approx({**expected, "loss": expected["hard"]}, rel=1e-4)


# --- what is trained


def test_distiller_leaves_the_teacher_unchanged_to_the_bit(tiny_net, noise, trainer):
    data = data_module(noise())
    student, teacher = tiny_net(seed=1, dropout=0.3), tiny_net(width=6, seed=2, dropout=0.3)
    teacher(torch.randn(4, 3, 8, 8))  # BatchNorm has something to lose
    module = distiller(student, teacher, Feature(2.0, 0.3, 0.3, [0], 0.0))
    teacher_before, student_before, method_before = snapshot(teacher), snapshot(student), snapshot(module.method)
    modes = []
    spy = OnTrainBatch(lambda trainer, pl_module, batch: modes.append((pl_module.net.training, teacher.training)))
    lightning = trainer(max_epochs=2, callbacks=[spy])
    lightning.fit(module, data)
    lightning.test(module, data, verbose=False)
    assert set(modes) == {(True, False)}
    assert len(modes) == 6
    assert equal_state(teacher, teacher_before)
    assert not equal_state(student, student_before)
    assert not equal_state(module.method, method_before)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_distiller_optimises_and_saves_student_and_adapters_only(tiny_net, noise, trainer, tmp_path):
    data = data_module(noise())
    student, teacher = tiny_net(seed=1), tiny_net(width=6, seed=2)
    module = distiller(student, teacher, Feature(2.0, 0.3, 0.3, [0], 0.0))
    lightning = trainer(max_epochs=1)
    lightning.fit(module, data)
    lightning.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    weights = {name for name in checkpoint["state_dict"] if name.split(".")[0] in ("net", "method")}
    assert weights == {f"net.{name}" for name in student.state_dict()} | {
        "method.adapters.0.weight",
        "method.adapters.0.bias",
    }
    other_modules = {name.split(".")[0] for name in checkpoint["state_dict"].keys() - weights}
    assert not other_modules, "metrics start anew with every epoch"
    assert "hyper_parameters" not in checkpoint

    trainable = [*student.parameters(), *module.method.parameters()]
    optimizer = lightning.optimizers[0]
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, trainable))
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in optimizer.param_groups] == [
        (0.1, {2, 4}),
        (0.0, {1}),
    ]


def test_classifier_schedule_ends_with_the_last_step(tiny_net, noise, trainer):
    rates = []
    spy = OnTrainBatch(lambda trainer, pl_module, batch: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    lightning = trainer(max_epochs=2, callbacks=[spy])
    lightning.fit(Classifier(**classifier_arguments(tiny_net())), data_module(noise()))
    # six steps, the first two rise
    assert rates == pytest.approx([0.05 * f for f in (1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4)])
    assert lightning.callback_metrics["lr"].item() == pytest.approx(rates[-1])
    assert lightning.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_data_module_gives_every_epoch_its_own_batches(tiny_net, noise, trainer):
    data, seen = data_module(noise()), []
    spy = OnTrainBatch(lambda trainer, pl_module, batch: seen.append(batch))
    trainer(max_epochs=3, callbacks=[spy]).fit(Classifier(**classifier_arguments(tiny_net())), data)
    data.trainer = None
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch, expected in zip(seen[3 * epoch :], loader, strict=False):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch, expected, strict=True))
    assert len({tuple(batch.index.tolist()) for batch in seen}) == 9


# --- divergence


class Scripted(Method):
    """A method with scripted values of the soft term, and a negligible hard one."""

    def __init__(self, *soft, hard=1e-9):
        super().__init__()
        self.soft, self.hard = list(soft), hard

    def forward(self, student, teacher, batch):
        anchor = 0 * student.logits.sum()
        return {"hard": self.hard + anchor, "soft": self.soft.pop(0) + anchor}


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Scripted(1.0, 1.0, 1.0, 1.0, 1.0, float("nan")), "the soft loss is nan"),
        (Scripted(1.0, 1.0, 1.0, 1.0, 1.0, float("inf")), "the soft loss is inf"),
        (Scripted(1.0, 1.0, 1.0, 1.0, 1.0, 3e38, hard=3e38), "the sum of the losses overflows"),
    ],
)
def test_divergence_check_stops_before_the_update(tiny_net, noise, trainer, method, reason):
    student = tiny_net()
    module = distiller(student, tiny_net(), method)
    # the last of six steps, of which two rise: a quarter of 0.05
    message = f"training diverged: {reason} at step 5 (epoch 1), learning rate 0.0125; try "
    with pytest.raises(UserError, match=re.escape(message)):
        trainer(max_epochs=2).fit(module, data_module(noise()))
    assert all(p.isfinite().all() for p in student.parameters())


def test_divergence_check_finds_it_before_the_epoch_ends_on_an_asynchronous_device(
    tiny_net, noise, trainer, monkeypatch
):
    monkeypatch.setattr(Classifier, "configure_callbacks", lambda module: [DivergenceCheck(every=50)])
    student, soft = tiny_net(), [1.0, float("nan"), 1.0, 1.0, 1.0, 1.0]
    method = Scripted(*soft)
    with pytest.raises(UserError, match=re.escape("training diverged: the soft loss is nan at step 1 (epoch 0)")):
        trainer(max_epochs=2).fit(distiller(student, tiny_net(), method), data_module(noise()))
    assert len(method.soft) == 3  # checked at the first epoch's third and last step


# --- resuming


class Crash(BaseException):
    """Like KeyboardInterrupt, but Lightning lets it through."""


def crash(*_):
    raise Crash


def test_resume_is_bitwise_the_uninterrupted_run(tiny_net, noise, trainer, tmp_path):
    images = noise()

    def fit(directory, seed, *callbacks):
        student = tiny_net(seed=seed, dropout=0.3)
        module = distiller(student, tiny_net(width=6, seed=50), Feature(2.0, 0.3, 0.3, [0], 0.0))
        history = History(tmp_path / f"{directory}.csv")
        checkpoint = ModelCheckpoint(
            tmp_path / directory, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        lightning = trainer(
            max_epochs=3, enable_checkpointing=True, callbacks=[EpochSeed(7), history, checkpoint, *callbacks]
        )
        torch.manual_seed(seed)  # what ran before must not matter
        path = tmp_path / directory / "last.ckpt"
        data = data_module(images)
        lightning.fit(module, data, ckpt_path=path if path.exists() else None, weights_only=True)
        return module, history

    module, history = fit("whole", 1)
    with pytest.raises(Crash):
        fit("broken", 1, OnTrainBatch(crash, step=4))  # the second of three steps in the second of three epochs
    resumed, continued = fit("broken", 2)
    assert equal_state(resumed, module.state_dict())
    assert continued.rows == history.rows
    assert [row["epoch"] for row in history.rows] == [0, 1, 2]
    assert continued.images == history.images == 3 * 30
    assert (tmp_path / "broken.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_resume_depends_on_the_epoch_seed(tiny_net, noise, trainer):
    """Without dropout the test above would pass even without EpochSeed."""

    def fit(seed):
        net = tiny_net(seed=1, dropout=0.3)
        torch.manual_seed(seed)
        trainer(max_epochs=1).fit(Classifier(**classifier_arguments(net)), data_module(noise()))
        return net

    assert not equal_state(fit(1), snapshot(fit(2)))
