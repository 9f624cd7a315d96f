"""What both LightningModules log and keep."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import nn

import kd.data.module
from kd.methods.base import Method, Step
from kd.methods.logits import Logits
from kd.training.callbacks import KeepPredictions
from kd.training.modules import Classifier, Mean, Scores
from tests.training.parts import classifier_arguments, data_module, distiller


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


def test_classifier_logs_training_that_ends_within_an_epoch(tiny_net, noise, trainer):
    lightning = trainer(max_steps=2)  # of six steps an epoch
    lightning.fit(Classifier(**classifier_arguments(tiny_net())), data_module(noise()))
    assert {"train/hard", "train/loss", "train/acc", "lr"} <= lightning.callback_metrics.keys()


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
