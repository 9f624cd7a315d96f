from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.training.callbacks import History
from kd.training.checkpoints import AtomicCheckpoints
from kd.training.ema import WeightAverage
from kd.training.modules import Classifier


@pytest.fixture
def data(noise):
    return DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=10, seed=3)


@pytest.fixture
def classifier(tiny_net):
    return lambda: Classifier(tiny_net(), 10, partial(torch.optim.SGD, lr=0.5), constant)


def constant(optimizer, steps):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


class Watch(Callback):
    """Notes the classifier's weight after each step, and what is validated."""

    def __init__(self):
        self.steps, self.validated, self.after = [], [], []

    def on_fit_start(self, trainer, module):
        self.steps.append(weight(module))

    def on_train_batch_end(self, trainer, module, *_):
        self.steps.append(weight(module))

    def on_validation_epoch_start(self, trainer, module):
        self.validated.append(weight(module))

    def on_train_epoch_end(self, trainer, module):
        self.after.append(weight(module))


def weight(module):
    return module.net.classifier.weight.detach().clone()


def averaged(weights, decay):
    average = weights[0]
    for t, value in enumerate(weights[1:], 1):
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * value
    return average


def test_weight_average_is_what_is_validated_and_kept(trainer, data, classifier):
    watch, module = Watch(), classifier()
    trainer(max_epochs=3, callbacks=[WeightAverage(0.4), watch]).fit(module, data)
    assert len(watch.steps) == 10
    for epoch, (validated, after) in enumerate(zip(watch.validated, watch.after, strict=True), 1):
        torch.testing.assert_close(validated, averaged(watch.steps[: 1 + 3 * epoch], 0.4))
        assert torch.equal(after, watch.steps[3 * epoch])  # training goes on with the weights themselves
    assert torch.equal(weight(module), watch.validated[-1])
    assert not torch.equal(weight(module), watch.after[-1])


def test_weight_average_leaves_training_as_it_is(trainer, data, classifier):
    plain, with_average = Watch(), Watch()
    trainer(max_epochs=2, callbacks=[plain]).fit(classifier(), data)
    trainer(max_epochs=2, callbacks=[WeightAverage(0.9), with_average]).fit(classifier(), data)
    assert all(torch.equal(a, b) for a, b in zip(plain.steps, with_average.steps, strict=True))


def test_weight_average_takes_the_statistics_of_batchnorm(trainer, data, classifier):
    module = classifier()
    statistics = []

    class Statistics(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            statistics.append(module.net.stage[1].running_mean.clone())

    trainer(max_epochs=1, callbacks=[WeightAverage(0.4), Statistics()]).fit(module, data)
    torch.testing.assert_close(module.net.stage[1].running_mean, averaged([torch.zeros(4), *statistics], 0.4))
    assert module.net.stage[1].num_batches_tracked == 3


def test_weight_average_counts_steps_and_not_batches(trainer, data, classifier):
    watch = Watch()
    module = classifier()
    trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[WeightAverage(0.9), watch]).fit(module, data)
    torch.testing.assert_close(weight(module), averaged([watch.steps[0], watch.steps[-1]], 0.9))


@pytest.mark.parametrize("more", [0, 2])
def test_weight_average_resumes_to_the_bit(trainer, data, classifier, tmp_path, more):
    """Also where nothing is left to train, as in a run that was interrupted before its test."""

    def fit(epochs, resume=None):
        module = classifier()
        keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        made = trainer(
            max_epochs=epochs,
            callbacks=[History(tmp_path / "metrics.csv"), WeightAverage(0.9), keep],
            plugins=[AtomicCheckpoints("", 1 + more)],
            enable_checkpointing=True,
        )
        made.fit(module, data, ckpt_path=resume, weights_only=None if resume is None else True)
        return module.net.state_dict()

    whole = fit(1 + more)
    fit(1)
    resumed = fit(1 + more, tmp_path / "last.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_weight_average_refuses_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=rf"^recipe.ema must be in \(0, 1\), got {decay:g}$"):
        WeightAverage(decay)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_average_comes_to_what_the_weights_are_in_any_precision(classifier, dtype):
    """A hundredth of the rest is at last less than half a step of bf16: rounded each time, it would stay at 1.6."""
    module, callback = classifier().to(dtype), WeightAverage(0.99)
    for tensor in (*module.net.parameters(), *module.net.buffers()):
        tensor.data.fill_(1)
    trainer = SimpleNamespace(global_step=0)
    callback.on_fit_start(trainer, module)
    for parameter in module.net.parameters():
        parameter.data.fill_(2)
    for trainer.global_step in range(1000, 1601):  # where the decay is no longer that of the first steps
        callback.on_train_batch_end(trainer, module)
    callback.on_validation_start(trainer, module)
    assert weight(module).float().mean().item() == pytest.approx(2, abs=0.01)
    callback.on_validation_end(trainer, module)
    assert (weight(module) == 2).all()
    assert weight(module).dtype == dtype


def test_weight_average_leaves_out_what_is_no_part_of_the_state(classifier):
    """Such as what a network is told of the data's normalisation: a checkpoint would not fit its own average."""
    module, callback = classifier(), WeightAverage(0.99)
    module.net.register_buffer("shift", torch.zeros(3, 1, 1), persistent=False)
    callback.on_fit_start(SimpleNamespace(global_step=0), module)
    shapes = [tensor.shape for tensor in module.inference_net.state_dict().values() if tensor.is_floating_point()]
    assert sorted(tensor.shape for tensor in callback.state_dict()["average"]) == sorted(shapes)
