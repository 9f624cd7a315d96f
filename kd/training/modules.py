"""The two LightningModules: a network trained on labels, and a student trained by a method."""

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from kd.data.batch import Batch, require_batch
from kd.errors import UserError
from kd.losses import hard_loss, soft_loss
from kd.methods.base import Method, Step, Teacher
from kd.models.output import Output, checked
from kd.ranges import require
from kd.training.callbacks import CHECK_EVERY, DivergenceCheck
from kd.training.optim import DOT, OptimizerFactory, ScheduleFactory, parameter_groups

TASK = "hard"
"""Name of the labels' term, or its end after an underscore; an optimiser may treat these terms apart from others."""


def scales_gradients(trainer: L.Trainer) -> bool:
    """Whether the loss is scaled, so that small gradients do not vanish in fp16."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def check_scaling(optimizer: Optimizer, trainer: L.Trainer) -> None:
    """Refuse an optimiser that needs parts of the gradient where gradients are scaled.

    Raises:
        UserError: for DOT in `16-mixed`.
    """
    if isinstance(optimizer, DOT) and scales_gradients(trainer):
        raise UserError(
            f"trainer.precision={trainer.precision} scales the gradients, of which the optimiser DOT needs parts; set "
            "trainer.precision=bf16-mixed or 32-true, or choose another recipe/optimizer"
        )


class Mean(Metric):
    """A mean over images in fp32, whatever the precision of the network; one NaN makes it NaN.

    torchmetrics' own takes on the network's precision in `bf16-true`, and leaves NaN out.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, value: Tensor, count: int) -> None:
        """Add the mean `value` of `count` images."""
        self.total = self.total.float() + count * value.float()
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count


class Scores(nn.Module):
    """How well logits predict labels, accumulated over a split: each child is one metric, named as it is logged."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.acc = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.acc_top5 = MulticlassAccuracy(num_classes, min(5, num_classes), average="micro", validate_args=False)
        self.nll = Mean()
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
        self.kl_to_teacher = Mean()

    def update(self, student: Tensor, teacher: Tensor) -> None:
        self.agreement.update(student, teacher.argmax(dim=1))
        self.kl_to_teacher.update(soft_loss(student, teacher, T=1), len(student))


class Classifier(L.LightningModule):
    """Trains a network on labels alone: the teacher, and the student without one.

    Logs per epoch `train/<term>` for every term of the loss, `train/loss` and `train/acc`; on either evaluation split
    `acc`, `acc_top5`, `nll` (nats) and `ece` (15 bins, in [0, 1]), as `val/...` and `test/...`; and `lr`
    every `log_every_n_steps` steps and at an epoch's end.

    Args:
        net: returns `Output` with C logits.
        num_classes: C.
        optimizer: makes the optimiser from parameter groups.
        schedule: makes the learning rate schedule from the optimiser and the total number of steps.
        label_smoothing: of the loss, in [0, 1].
        decay_all: whether biases and BatchNorm have weight decay, too.

    Raises:
        ValueError: for a label smoothing outside its range.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        label_smoothing: float = 0.0,
        decay_all: bool = False,
    ) -> None:
        super().__init__()
        require("label_smoothing", label_smoothing)
        self.net, self.label_smoothing, self.decay_all = net, label_smoothing, decay_all
        self._optimizer, self._schedule = optimizer, schedule
        self._forget_sums()
        self.terms: dict[str, Tensor] = {}
        """The latest step's terms of the loss, detached."""
        self.pending_terms: dict[str, Tensor] = {}
        """The terms of the step whose backward pass is to come, with their graphs; empty at all other times."""
        self.embeddings: dict[str, Tensor] = {}
        """The latest evaluation batch's embeddings, (B, D), of the `network` and, where there is one, its `teacher`."""
        self.val_scores, self.test_scores = Scores(num_classes), Scores(num_classes)

    @property
    def inference_net(self) -> nn.Module:
        """The network that is validated, tested and kept."""
        return self.net

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse tensors of another kind, such as int8, which torch would round to without a word.

        Raises:
            TypeError: naming the first.
        """
        saved = checkpoint["state_dict"]
        for name, tensor in self.state_dict().items():
            if name in saved and saved[name].is_floating_point() != tensor.is_floating_point():
                raise TypeError(f"{name} is {saved[name].dtype} there and {tensor.dtype} here")

    def step(self, batch: Batch) -> Step:
        """One forward pass over a training batch: the output, and the weighted, named terms of the loss."""
        output = checked(self.net(batch.x), self.net)
        return Step(output, {"hard": hard_loss(output.logits, batch.y, self.label_smoothing)})

    def configure_callbacks(self) -> list[L.Callback]:
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        return [DivergenceCheck(every=1 if on_cpu else CHECK_EVERY)]

    def term_weights(self) -> dict[str, float]:
        """Factors of the latest step's terms, as `kd.methods.base.Method.term_weights`."""
        return {"hard": 1.0}

    def on_train_start(self) -> None:
        self._forget_sums()

    def on_train_epoch_start(self) -> None:
        self._forget_sums()

    def _forget_sums(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._summed = 0
        self._right: Tensor | int = 0
        self._seen = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        require_batch(batch)
        step = self.step(batch)
        loss = step.loss
        self.terms = {name: term.detach() for name, term in step.terms.items()}
        self.pending_terms = step.terms
        self._right = self._right + (step.output.logits.detach().argmax(dim=1) == batch.labels).sum()
        self._seen += len(batch.labels)
        for name, value in {**step.terms, "loss": loss, **step.monitors}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._summed += 1
        steps_now = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        last = self.trainer.is_last_batch or (steps_now and self.global_step + 1 == self.trainer.max_steps)
        if last:
            # Once an epoch and not at every step: each call of `log` takes as long as a small layer.
            # Not by batch_idx: a training that continues within an epoch has the terms of the rest of it.
            means = {f"train/{name}": total / self._summed for name, total in self._sums.items()}
            self.log_dict(means, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=1)
            right = self._right.float() / self._seen  # of integers it would be in the default precision
            self.log("train/acc", right, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        if last or (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self.log("lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        """Give an optimiser that treats the labels apart the gradients of their term."""
        terms, self.pending_terms = self.pending_terms, {}
        optimizer = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimizer, DOT):
            labels = [term for name, term in terms.items() if name == TASK or name.endswith(f"_{TASK}")]
            if 0 < len(labels) < len(terms):  # else nothing is to be set apart, and DOT is SGD
                optimizer.add_task_gradients(self._task_gradients(optimizer, torch.stack(labels).sum()))

    def _task_gradients(self, optimizer: DOT, task: Tensor) -> Sequence[Tensor | None]:
        """The gradients of the labels' terms, averaged over the ranks; the graph is kept for the whole loss."""
        gradients = torch.autograd.grad(
            task / self.trainer.accumulate_grad_batches, optimizer.parameters, retain_graph=True, allow_unused=True
        )
        if self.trainer.world_size == 1:
            return gradients
        shares = [gradient if gradient is None else gradient / self.trainer.world_size for gradient in gradients]
        for share in shares:
            if share is not None:
                dist.all_reduce(share)
        return shares

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        require_batch(batch)
        self.score("val", self.val_scores, checked(self.inference_net(batch.x), self.inference_net), batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Score a test batch; returns, by the names of `kd.runs.predictions.Predictions`, what each image got."""
        require_batch(batch)
        output = checked(self.inference_net(batch.x), self.inference_net)
        more = self.score("test", self.test_scores, output, batch)
        return {"index": batch.index, "labels": batch.y, "logits": output.logits, **more}

    def score(self, split: str, scores: Scores, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Update and log the metrics of one batch; return further values of its images, by name."""
        self.embeddings = {"network": output.embedding}
        scores.update(output.logits.float(), batch.y)
        self.log_scores(split, scores, len(batch.y))
        return {}

    def log_scores(self, split: str, scores: nn.Module, batch_size: int) -> None:
        for name, metric in scores.named_children():
            self.log(f"{split}/{name}", cast(Metric, metric), prog_bar=name == "acc", batch_size=batch_size)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(parameter_groups(self, self.decay_all))
        check_scaling(optimizer, self.trainer)
        if scales_gradients(self.trainer) and optimizer.defaults.get("fused"):
            # A fused optimiser takes off the scale of gradients within its step: after they are clipped. And where its
            # first step is skipped, for a scale too large, SGD's momentum is left as memory happens to be.
            for settings in (optimizer.defaults, *optimizer.param_groups):
                settings["fused"] = None  # False would mean one parameter at a time
            cast(Any, optimizer)._step_supports_amp_scaling = False
        steps = self.trainer.estimated_stepping_batches
        if not 0 <= steps < math.inf:
            raise UserError(
                "the learning rate schedule needs the number of training steps, which is not known; give the Trainer "
                "max_steps=, or a loader that has a length"
            )
        schedule = self._schedule(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, but also with a fused optimiser where no gradient scaler is in its way."""
        if not gradient_clip_val:
            return
        if scales_gradients(self.trainer):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            if isinstance(optimizer, DOT):
                raise UserError("the optimiser DOT clips by norm alone; leave gradient_clip_algorithm out")
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            return
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        if isinstance(optimizer, DOT):
            optimizer.scale_task_gradients((gradient_clip_val / (norm + 1e-6)).clamp(max=1))


class Distiller(Classifier):
    """Trains a student by a method, usually with a frozen teacher; also logs how closely it follows the teacher.

    Logs beyond `Classifier`, where there is a teacher: `val/agreement` and `test/agreement`, the share of images for
    which student and teacher predict the same class, and `kl_to_teacher` (nats).

    Args:
        method: makes the terms of the loss; its own layers, if any, are trained and saved in checkpoints. One that has
            layers of its own is set up before: `kd.distill` does that, and has it as its `method`.
        teacher: returns the teacher's output for a batch. Not registered as a submodule: its weights are neither
            trained, nor moved between train and eval mode, nor saved in checkpoints. None for a method without one.
        decay_all: as of `Classifier`; the method's own layers are among what has weight decay.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        method: Method,
        teacher: Teacher | None = None,
        decay_all: bool = False,
    ) -> None:
        super().__init__(net, num_classes, optimizer, schedule, decay_all=decay_all)
        self.method = method
        self.teacher = teacher
        self._steps = 1
        if teacher is not None:
            self.val_fidelity, self.test_fidelity = FidelityScores(num_classes), FidelityScores(num_classes)

    @property
    def inference_net(self) -> nn.Module:
        return self.method.inference_net(self.net)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._steps = max(1, int(self.trainer.estimated_stepping_batches))

    def term_weights(self) -> dict[str, float]:
        return self.method.term_weights()

    def step(self, batch: Batch) -> Step:
        self.method.progress = self.global_step / self._steps
        return self.method.step(self.net, self.teacher, batch)

    def score(self, split: str, scores: Scores, output: Output, batch: Batch) -> dict[str, Tensor]:
        more = super().score(split, scores, output, batch)
        if self.teacher is None:
            return more
        fidelity = self.val_fidelity if split == "val" else self.test_fidelity
        theirs = checked(self.teacher(batch), self.teacher)
        self.embeddings["teacher"], teacher_logits = theirs.embedding, theirs.logits.float()
        fidelity.update(output.logits.float(), teacher_logits)
        self.log_scores(split, fidelity, len(batch.y))
        return {**more, "teacher_logits": teacher_logits}
