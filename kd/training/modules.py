"""The two LightningModules: a network trained on labels, and a student trained with a frozen teacher's help."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from kd.data.batch import Batch
from kd.errors import UserError
from kd.losses import hard_loss, soft_loss
from kd.methods.base import Method
from kd.models.output import Output
from kd.ranges import require
from kd.runs.predictions import Predictions
from kd.training.optim import OptimizerFactory, ScheduleFactory, parameter_groups

CHECK_EVERY = 50
"""Steps between two looks at the loss, on devices that work on while the program waits."""


class _Step(NamedTuple):
    number: int
    learning_rate: float
    terms: dict[str, Tensor]


class Scores(nn.Module):
    """How well logits predict labels, accumulated over a split: each child is one metric, named as it is logged."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.acc = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.acc_top5 = MulticlassAccuracy(num_classes, min(5, num_classes), average="micro", validate_args=False)
        self.nll = MeanMetric()
        self.ece = MulticlassCalibrationError(num_classes, n_bins=15, validate_args=False)

    def update(self, logits: Tensor, y: Tensor) -> None:
        self.acc.update(logits, y)
        self.acc_top5.update(logits, y)
        self.nll.update(F.cross_entropy(logits, y), len(y))
        # torchmetrics gives a confidence of exactly 1 a bin of its own, beyond the last.
        self.ece.update(logits.softmax(dim=1).clamp(max=1 - 1e-6), y)


class FidelityScores(nn.Module):
    """How closely a student follows its teacher: share of equal predictions, and KL(teacher || student) at T = 1."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.agreement = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.kl_to_teacher = MeanMetric()

    def update(self, student: Tensor, teacher: Tensor) -> None:
        self.agreement.update(student, teacher.argmax(dim=1))
        self.kl_to_teacher.update(soft_loss(student, teacher, T=1), len(student))


class Classifier(L.LightningModule):
    """Trains a network on labels alone: the teacher, and the student without one.

    Logs per epoch `train/<term>` for every term of the loss, `train/loss` and `train/acc`; on either evaluation split
    `acc`, `acc_top5`, `nll` (nats) and `ece` (15 bins, in [0, 1]), as `val/...` and `test/...`; and per step `lr`.

    Args:
        net: returns `Output` with C logits.
        num_classes: C.
        optimizer: makes the optimiser from parameter groups.
        schedule: makes the learning rate schedule from the optimiser and the total number of steps.
        label_smoothing: of the loss, in [0, 1].

    Raises:
        ValueError: for a label smoothing outside its range.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        require("label_smoothing", label_smoothing)
        self.net, self.label_smoothing = net, label_smoothing
        self._optimizer, self._schedule = optimizer, schedule
        self._check_every = 1
        self._unchecked: list[tuple[_Step, Tensor]] = []
        self._sums: dict[str, Tensor | float] = {}
        self._answers: dict[str, list[Tensor]] = {}
        self.train_acc = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.val_scores, self.test_scores = Scores(num_classes), Scores(num_classes)
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

    def losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted, named terms whose sum is the loss."""
        return {"hard": hard_loss(output.logits, batch.y, self.label_smoothing)}

    def on_fit_start(self) -> None:
        self._check_every = 1 if self.device.type == "cpu" else CHECK_EVERY

    def on_train_epoch_start(self) -> None:
        self._sums = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self.net(batch.x)
        terms = self.losses(output, batch)
        loss = torch.stack(list(terms.values())).sum()
        last = batch_idx + 1 == self.trainer.num_training_batches
        self._refuse_divergence(terms, loss, last)
        self.train_acc.update(output.logits.detach(), batch.y)
        for name, value in {**terms, "loss": loss}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        if last:
            # Once an epoch and not at every step: each call of `log` takes as long as a small layer.
            means = {f"train/{name}": total / (batch_idx + 1) for name, total in self._sums.items()}
            self.log_dict(means, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=1)
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, batch_size=1)
        if last or (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self.log("lr", self._learning_rate)
        return loss

    @property
    def _learning_rate(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def _refuse_divergence(self, terms: dict[str, Tensor], loss: Tensor, last: bool) -> None:
        """Raise UserError for a loss that is not finite, naming term, step and learning rate."""
        step = _Step(self.global_step, self._learning_rate, {name: term.detach() for name, term in terms.items()})
        self._unchecked.append((step, loss.detach()))
        # To look at a value is to wait for the device: now and then, and before a checkpoint is written.
        if len(self._unchecked) < self._check_every and not last:
            return
        waiting, self._unchecked = self._unchecked, []
        finite = torch.stack([loss for _, loss in waiting]).isfinite().tolist()
        if all(finite):
            return
        step = waiting[finite.index(False)][0]
        bad = [f"the {name} loss is {term.item()}" for name, term in step.terms.items() if not torch.isfinite(term)]
        raise UserError(
            f"training diverged: {', '.join(bad) or 'the sum of the losses overflows'} at step {step.number} "
            f"(epoch {self.current_epoch}), learning rate {step.learning_rate:.3g}; "
            "try a lower recipe.optimizer.lr, recipe.clip_norm=1 (of a teacher: teacher_recipe instead of recipe) or "
            "trainer.precision=32-true"
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.score("val", self.val_scores, self.net(batch.x), batch)

    def on_test_start(self) -> None:
        self._answers = {}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        output = self.net(batch.x)
        self.confusion.update(output.logits, batch.y)
        self.keep(index=batch.index, labels=batch.y, logits=output.logits)
        self.score("test", self.test_scores, output, batch)

    def keep(self, **parts: Tensor) -> None:
        """What `predictions` is to have of one test batch, with as many rows as that has images."""
        for name, part in parts.items():
            self._answers.setdefault(name, []).append(part.cpu())

    def predictions(self) -> Predictions:
        """What was said to the test images, on every rank: to be called on all of them, as they gather it."""
        parts = {name: torch.cat(kept) for name, kept in self._answers.items()}
        if self.trainer.world_size > 1:
            gathered: list[dict[str, Tensor]] = [{}] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = {name: torch.cat([one[name] for one in gathered]) for name in parts}
        order = parts.pop("index").argsort()
        arrays = {
            name: (part.float() if part.is_floating_point() else part)[order].numpy() for name, part in parts.items()
        }
        return Predictions(**arrays)

    def score(self, split: str, scores: Scores, output: Output, batch: Batch) -> None:
        """Account for one evaluation batch."""
        scores.update(output.logits.float(), batch.y)
        self.log_scores(split, scores, len(batch.y))

    def log_scores(self, split: str, scores: nn.Module, batch_size: int) -> None:
        for name, metric in scores.named_children():
            self.log(f"{split}/{name}", cast(Metric, metric), prog_bar=name == "acc", batch_size=batch_size)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(parameter_groups(self))
        schedule = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning, which however refuses fused optimisers also where no gradient scaler is in their way."""
        if gradient_clip_val is None:
            return
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            if optimizer.defaults.get("fused"):
                raise UserError(
                    f"trainer.precision={self.trainer.precision} scales the gradients, and a fused optimiser cannot "
                    "clip them then; set speed.fused=false, recipe.clip_norm=null or trainer.precision=bf16-mixed"
                )
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)


class Distiller(Classifier):
    """Trains a student with the help of a frozen teacher; overrides the loss, and adds what compares the two.

    Logs beyond `Classifier`: `val/agreement` and `test/agreement`, the share of images for which student and teacher
    predict the same class, and `kl_to_teacher` (nats).

    Args:
        teacher: what the teacher says to a batch. Not a module of this one: its weights are neither trained, nor moved
            between train and eval mode, nor saved in checkpoints.
        method: makes the terms of the loss; its own layers, if any, are trained and saved in checkpoints.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        label_smoothing: float,
        teacher: Callable[[Batch], Output],
        method: Method,
    ) -> None:
        super().__init__(net, num_classes, optimizer, schedule, label_smoothing)
        self.teacher, self.method = teacher, method
        self.val_fidelity, self.test_fidelity = FidelityScores(num_classes), FidelityScores(num_classes)

    def losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.method(output, self.method.ask(self.teacher, batch), batch))

    def score(self, split: str, scores: Scores, output: Output, batch: Batch) -> None:
        super().score(split, scores, output, batch)
        fidelity = self.val_fidelity if split == "val" else self.test_fidelity
        answer = self.teacher(batch).logits.float()
        fidelity.update(output.logits.float(), answer)
        if split == "test":
            self.keep(teacher_logits=answer)
        self.log_scores(split, fidelity, len(batch.y))
