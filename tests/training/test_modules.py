import re
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import AdamW
from torch.utils.data import DataLoader, IterableDataset

from kd.data.batch import Batch
from kd.errors import UserError
from kd.methods.base import Method
from kd.methods.feature import Feature
from kd.training.callbacks import DivergenceCheck, EpochSeed, History
from kd.training.modules import Classifier
from kd.training.optim import one_cycle
from tests.training.parts import OnTrainBatch, classifier_arguments, data_module, distiller, equal_state, snapshot


@pytest.mark.parametrize("clip", [1e-3, 0, None])
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


def test_gradient_clipping_by_value_is_lightnings(tiny_net, noise, trainer):
    module = distiller(tiny_net(width=4), tiny_net(width=8, seed=1))
    module._optimizer = partial(torch.optim.SGD, lr=1.0)
    before, rates = [p.detach().clone() for p in module.parameters()], []
    spy = OnTrainBatch(lambda trainer, *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"]))
    trainer(max_steps=1, gradient_clip_val=1e-3, gradient_clip_algorithm="value", callbacks=[spy]).fit(
        module, data_module(noise())
    )
    moved = torch.cat([(p - old).abs().flatten() for p, old in zip(module.parameters(), before, strict=True)])
    assert moved.max().item() == pytest.approx(1e-3 * rates[0], rel=0.01)
    assert (moved > 0.99e-3 * rates[0]).sum() > 10  # not by their norm, of which each would have a part


def test_fused_optimiser_clips_scaled_gradients_as_one_that_is_not(tiny_net, noise, trainer):
    """In fp16, whose gradients are scaled: a fused optimiser would take the scale off only within its step."""

    def trained(fused, clip):
        module = distiller(tiny_net(width=4), tiny_net(width=8, seed=1))
        module._optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=fused)
        fp16 = MixedPrecision("16-mixed", "cpu")
        trainer(max_steps=3, gradient_clip_val=clip, plugins=[fp16]).fit(module, data_module(noise()))
        return module.net.state_dict()

    fused, plain, free = trained(True, 0.01), trained(False, 0.01), trained(True, None)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in fused.items())
    assert not torch.equal(fused["classifier.weight"], free["classifier.weight"])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")  # as the optimiser's step is skipped
@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize(
    "make", [partial(torch.optim.SGD, momentum=0.9, fused=True, lr=0.1), lambda groups: AdamW(groups, fused=True)]
)
def test_fused_optimiser_is_not_used_where_gradients_are_scaled(tiny_net, noise, trainer, clip, make):
    """Its momentum would be memory as it happens to be after a first step that is skipped, on a GPU."""
    module = distiller(tiny_net(width=4), tiny_net(width=8, seed=1))
    module._optimizer = make
    before = snapshot(module.net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)  # of which the first gradients overflow
    lightning = trainer(max_steps=1, gradient_clip_val=clip, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    lightning.fit(module, data_module(noise()))
    (optimizer,) = lightning.optimizers
    assert {settings["fused"] for settings in (optimizer.defaults, *optimizer.param_groups)} == {None}  # torch chooses
    weights = [name for name, _ in module.net.named_parameters()]
    assert all(torch.equal(module.net.state_dict()[name], before[name]) for name in weights)
    assert not any(optimizer.state.values())


class Endless(IterableDataset):
    """Batches of one's own, of which there is no number; the last of each epoch has a single image."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        for n in (10, 10, 1):
            yield Batch.of(self.images.train_x[:n].float(), self.images.train_y[:n])


@pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:The .train_dataloader. does not have many"
)
def test_classifier_needs_to_know_the_number_of_steps(tiny_net, noise, trainer):
    """Lightning says -1 of a loader without a length, from which a schedule makes negative learning rates."""
    loader = DataLoader(Endless(noise()), batch_size=None)
    with pytest.raises(UserError, match=r"needs the number of training steps, .* give the Trainer max_steps="):
        trainer(max_epochs=2).fit(Classifier(**classifier_arguments(tiny_net())), loader)


@pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:The .train_dataloader. does not have many"
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize(("steps", "batches"), [(6, 1), (3, 2)])
def test_classifier_trains_on_a_loader_without_a_length(tiny_net, noise, trainer, precision, steps, batches):
    """Its figures of an epoch are those of all of its images, also where a training ends within one."""
    hits, figures, rates = [], [], []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_epoch_end(self, trainer, pl_module):
            figures.append(trainer.callback_metrics["train/acc"].item())
            found.append(sum(right for right, _ in hits) / sum(images for _, images in hits))
            hits.clear()

    class Counting(Classifier):
        def step(self, batch):
            step = super().step(batch)
            hits.append(((step.output.logits.argmax(dim=1) == batch.y).sum().item(), len(batch.y)))
            return step

    loader, found = DataLoader(Endless(noise()), batch_size=None), []
    settings = {"max_steps": steps, "accumulate_grad_batches": batches, "precision": precision}
    trainer(callbacks=[Look()], **settings).fit(Counting(**classifier_arguments(tiny_net())), loader)
    assert min(rates) >= 0
    assert len(found) == 2
    assert figures == pytest.approx(found, rel=1e-6)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_train_figures_of_a_resumed_epoch_are_means_of_its_rest(tiny_net, noise, trainer, tmp_path):
    """As a Trainer of one's own continues from a checkpoint within an epoch."""

    def fit(steps, resume=None):
        seen, module = [], Classifier(**classifier_arguments(tiny_net()))

        class Look(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, *_):
                seen.append(pl_module.terms["hard"].item())

        keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        lightning = trainer(max_steps=steps, callbacks=[Look(), keep], enable_checkpointing=True)
        lightning.fit(module, data_module(noise()), ckpt_path=resume, weights_only=True)
        return seen, lightning.callback_metrics["train/hard"].item()

    whole, mean = fit(3)
    assert mean == pytest.approx(sum(whole) / 3)
    rest, mean = fit(3, tmp_path / "step=1.ckpt")
    assert len(rest) < 3
    assert mean == pytest.approx(sum(rest) / len(rest))


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


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_batches_of_an_ordinary_loader_are_refused_with_what_makes_them_ours(tiny_net, trainer):
    pairs = [(torch.zeros(3, 8, 8), 0)] * 4
    module = Classifier(tiny_net(), 2, partial(torch.optim.SGD, lr=0.1), partial(one_cycle, warmup=0.1))
    with pytest.raises(TypeError, match=r"a batch is a list, and has to be a kd.Batch; of a loader of pairs"):
        trainer(max_epochs=1).fit(module, *[DataLoader(pairs, batch_size=2)] * 2)


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


def test_divergence_check_finds_it_before_a_training_ends_within_an_epoch(tiny_net, noise, trainer, monkeypatch):
    monkeypatch.setattr(Classifier, "configure_callbacks", lambda module: [DivergenceCheck(every=50)])
    module = distiller(tiny_net(), tiny_net(), Scripted(float("nan"), 1.0))
    with pytest.raises(UserError, match=re.escape("training diverged: the soft loss is nan at step 0 (epoch 0)")):
        trainer(max_steps=2).fit(module, data_module(noise()))


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
