"""TensorBoard beyond curves and pictures: text, charts of several curves, precision and recall, embeddings.

Nothing here changes a training: no random number is drawn, no gradient is kept, no metric is added to the record. What
takes time comes once, after the test. As in `kd.training.loggers`, what fails is a warning.
"""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from kd.data.batch import Batch
from kd.data.images import Images
from kd.errors import reason_of
from kd.files import replaced
from kd.runs.predictions import Predictions
from kd.terminal import visible
from kd.training.loggers import TensorBoard, as_rgb, class_label, optional
from kd.training.modules import Classifier

THRESHOLDS = 101
"""Thresholds of a curve of precision and recall, evenly from 0 to 1."""
FEW = 20
"""Classes that have a curve each."""
ROWS = 4096
"""Images whose probabilities are computed at once."""
POINTS = 500
"""Test images whose embeddings are shown, at most."""
AXES = 50
"""Principal components of an embedding that are shown, at most; distances keep most of themselves in these."""
WIDTH = 100
"""Letters of a line of text."""
THUMBNAIL = 32
"""Longer side in pixels of an image among the embeddings, at most."""
RIGHT = {(True, True): "both", (True, False): "student", (False, True): "teacher", (False, False): "neither"}
"""Who is right about an image, by whether the student and the teacher are."""

log = logging.getLogger(__name__)


class Tabs(L.Callback):
    """Fill TensorBoard's further tabs, and log the terms of the loss unweighted.

    Without TensorBoard it does nothing.

    Args:
        role: what is trained, `student` or `teacher`.
        images: the data set, of which test images are shown among the embeddings.
        command: overrides of the command line; None where there was none.
        settings: the resolved configuration.
    """

    def __init__(self, role: str, images: Images, command: str | None, settings: Mapping[str, Any]) -> None:
        self.role, self.images, self.command, self.settings = role, images, command, settings
        self._weights: dict[str, float] = {}
        self._batches = 0
        self._points = _Points(len(images.test_y))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the text, before the first epoch only: a resumed run has it."""
        for logger in _loggers(trainer) if not trainer.current_epoch else ():
            with optional("the text"):
                logger.experiment.add_text("run", run_text(self.command, self.settings), trainer.global_step)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._weights, self._batches = {}, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._batches += 1
        for name, weight in cast(Classifier, pl_module).term_weights().items():
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means of the terms without their weights; where a weight varies, the mean that it weights."""
        for logger in _loggers(trainer):
            means = {
                f"train_unweighted/{name}": float(trainer.callback_metrics[f"train/{name}"]) * self._batches / weight
                for name, weight in self._weights.items()
                if weight and f"train/{name}" in trainer.callback_metrics
            }
            logger.log_metrics(means, trainer.global_step - 1)  # where Lightning has the epoch's metrics
            if not trainer.current_epoch:
                with optional("the charts"):
                    names = {name.removeprefix("train/") for name in trainer.callback_metrics if name[:6] == "train/"}
                    monitors = names - cast(Classifier, pl_module).terms.keys() - {"loss"}
                    logger.experiment.add_custom_scalars(charts(monitors))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._points = _Points(len(self.images.test_y))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        if _loggers(trainer):
            found = cast(Classifier, pl_module).embeddings
            self._points.add(outputs, {self.role if name == "network" else name: part for name, part in found.items()})

    def conclude(self, trainer: L.Trainer, predictions: Predictions) -> None:
        """Log precision and recall, and write the embeddings of the latest test into the projector's files."""
        for logger in _loggers(trainer):
            with optional("precision and recall"):
                for name, counts in precision_recall(predictions, self.images.classes, self.role).items():
                    _add_curve(logger.experiment, name, *counts, trainer.global_step)
            with optional("the embeddings"):
                self._points.write(Path(logger.log_dir), self.role, self.images)


class GradientNorms(L.Callback):
    """Log the norm of the gradient of each term of the loss for the student's weights, as `train_gradient_norm/NAME`.

    Each costs a backward pass of its own. The training's result is the same. With several processes it is the gradient
    of the first one's images.

    Args:
        every: steps between two measurements.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._works, self._measured = True, -1

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        step = trainer.global_step  # of several batches, where gradients are accumulated: the first is measured
        if not self._works or step % self.every or step == self._measured:
            return
        self._measured = step
        module = cast(Classifier, pl_module)
        try:
            # In every process: SyncBatchNorm's backward pass is one of all of them.
            norms = gradient_norms(module.pending_terms, module.net)
        except RuntimeError as error:  # of torch.compile, whose backward passes may be made for one use, or of memory
            if trainer.world_size > 1:  # the others would go on without this one
                raise
            self._works = False
            log.warning("gradient norms cannot be measured: %s", reason_of(error))
            return
        for logger in _loggers(trainer):
            logger.log_metrics(
                {f"train_gradient_norm/{name}": norm for name, norm in norms.items()}, trainer.global_step
            )


def gradient_norms(terms: Mapping[str, Tensor], net: nn.Module) -> dict[str, float]:
    """Return the Euclidean norm of each term's gradient for all trained weights of a network, by the term's name.

    The graph is kept, and no gradient is added to those of the weights. 0 for a term that does not depend on them.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    norms = {}
    for name, term in terms.items():
        if term.requires_grad:
            parts = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            squares = [part.float().square().sum() for part in parts if part is not None]
        else:
            squares = []
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    return norms


# --- text and charts


def run_text(command: str | None, settings: Mapping[str, Any]) -> str:
    """Return a command and the resolved configuration in Markdown, as blocks of code, where nothing has a meaning."""
    typed = [] if command is None else ["### Command", "", *_code(wrapped(command)), ""]
    configuration = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=WIDTH)
    return "\n".join([*typed, "### Configuration", "", *_code(configuration)])


def wrapped(command: str) -> str:
    """Return the overrides of a command line as that command, in lines that a shell takes together."""
    lines = ["python train.py"]
    for word in map(shlex.quote, shlex.split(command)):
        if len(lines[-1]) + len(word) < WIDTH:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {word}")
    return "\n".join(lines)


def _code(text: str) -> list[str]:
    return [f"    {visible(line)}" for line in text.rstrip("\n").split("\n")]


def charts(monitors: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the layout of the custom scalars: accuracies, and the terms of the loss.

    TensorBoard takes a chart from the first of all runs that has one of that title. So charts fit every method: their
    curves are patterns.

    Args:
        monitors: names of `train/NAME` that are no terms of the loss.
    """
    others = "|".join(["acc", *sorted(set(monitors) - {"acc"})])
    return {
        "accuracy": {"training and validation": ["Multiline", ["^(train|val)/acc$"]]},
        "loss": {
            "terms, weighted, and their sum": ["Multiline", [f"^train/(?!({others})$)"]],
            "terms, unweighted (of known weight)": ["Multiline", ["^train_unweighted/"]],
            "training loss and validation NLL": ["Multiline", ["^train/loss$", "^val/nll$"]],
            "norm of each term's gradient": ["Multiline", ["^train_gradient_norm/"]],
        },
    }


# --- precision and recall


def precision_recall(
    predictions: Predictions, classes: Sequence[str], role: str
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return by the name of a curve what `threshold_counts` has of it: of all classes together, and of each of few.

    Args:
        predictions: of the test.
        classes: their names.
        role: what was trained, `student` or `teacher`.
    """
    hits, others = threshold_counts(predictions.logits, predictions.labels)
    curves = {f"all classes/{role}": (hits.sum(axis=0), others.sum(axis=0))}
    if predictions.teacher_logits is not None:
        taught = threshold_counts(predictions.teacher_logits, predictions.labels)
        curves["all classes/teacher"] = taught[0].sum(axis=0), taught[1].sum(axis=0)
    if len(classes) <= FEW:
        for label, name in enumerate(classes):
            shown = name if name == str(label) else f"{label} {class_label(name)}"
            curves[f"{role}, by class/{shown}"] = hits[label], others[label]
    return curves


def threshold_counts(
    logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return by class, (C, `THRESHOLDS`), how many images of it, and of others, have at least that probability of it.

    Args:
        logits: (M, C).
        labels: (M,).
    """
    C = logits.shape[1]
    hits, everything = np.zeros(C * THRESHOLDS, np.int64), np.zeros(C * THRESHOLDS, np.int64)
    for start in range(0, len(labels), ROWS):
        z, y = torch.from_numpy(logits[start : start + ROWS]), labels[start : start + ROWS]
        bins = (z.softmax(dim=1) * (THRESHOLDS - 1)).floor().long().numpy() + THRESHOLDS * np.arange(C)
        everything += np.bincount(bins.ravel(), minlength=C * THRESHOLDS)
        hits += np.bincount(bins[np.arange(len(y)), y], minlength=C * THRESHOLDS)
    above = [counts.reshape(C, THRESHOLDS)[:, ::-1].cumsum(axis=1)[:, ::-1] for counts in (hits, everything - hits)]
    return above[0], above[1]


def _add_curve(writer: SummaryWriter, name: str, hits: NDArray[np.int64], false: NDArray[np.int64], step: int) -> None:
    """Add a curve from the numbers of images at or above each threshold, of the class and of others."""
    precision = hits / np.maximum(hits + false, 1)
    recall = hits / max(int(hits[0]), 1)
    parts = (hits, false, false[0] - false, hits[0] - hits, precision, recall)
    writer.add_pr_curve_raw(name, *parts, global_step=step, num_thresholds=THRESHOLDS)


# --- embeddings


class _Points:
    """Test images, `POINTS` at most and evenly over the split, with their embeddings and what was predicted.

    Args:
        total: number of images in the split.
    """

    def __init__(self, total: int) -> None:
        self.step = max(1, -(-total // POINTS))
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, outputs: Mapping[str, Tensor], embeddings: Mapping[str, Tensor]) -> None:
        """Keep some images of a batch: what `test_step` returned of them, and their embeddings, (B, D), by network."""
        chosen = outputs["index"] % self.step == 0
        kept = {"index": outputs["index"], "labels": outputs["labels"]}
        kept |= {name: outputs[name].argmax(dim=1) for name in ("logits", "teacher_logits") if name in outputs}
        kept |= {f"embedding {name}": part.detach().flatten(1).float() for name, part in embeddings.items()}
        for name, part in kept.items():
            self._parts.setdefault(name, []).append(part[chosen].cpu())

    def write(self, directory: Path, role: str, images: Images) -> None:
        """Write the projector's files into a run's directory; nothing without images."""
        parts = {name: torch.cat(kept) for name, kept in self._parts.items()}
        if not parts or not len(parts["index"]):
            return
        folder = directory / "projector"
        folder.mkdir(parents=True, exist_ok=True)
        rows = parts["index"] - len(images.train_y)
        width, height = _write_thumbnails(images.test_x[rows], folder / "images.png")
        lines = ("\t".join(row) + "\n" for row in _table(parts, role, images.classes))
        (folder / "images.tsv").write_text("".join(lines), encoding="utf-8")
        blocks = []
        for name in [name for name in parts if name.startswith("embedding ")]:
            network = name.removeprefix("embedding ")
            points = principal_components(parts[name].double().numpy())
            line = "\t".join(["%.4g"] * points.shape[1]) + "\n"
            (folder / f"{network}.tsv").write_text("".join(line % tuple(row) for row in points.tolist()))
            blocks.append(
                f'embeddings {{\n  tensor_name: "{network}, test images"\n'
                f'  tensor_path: "projector/{network}.tsv"\n  metadata_path: "projector/images.tsv"\n'
                f'  sprite {{\n    image_path: "projector/images.png"\n'
                f"    single_image_dim: {width}\n    single_image_dim: {height}\n  }}\n}}\n"
            )
        with replaced(directory / "projector_config.pbtxt") as temporary:  # last: it names the others
            temporary.write_text("".join(blocks))


def _table(parts: Mapping[str, Tensor], role: str, classes: Sequence[str]) -> Iterable[list[str]]:
    """Yield the rows of the images' table, its head first."""
    labels, predicted, taught = parts["labels"], parts["logits"], parts.get("teacher_logits")
    yield ["class", role, *([] if taught is None else ["teacher"]), "right", "image"]
    for row, (label, own) in enumerate(zip(labels.tolist(), predicted.tolist(), strict=True)):
        seen = [label, own] if taught is None else [label, own, int(taught[row])]
        right = RIGHT[own == label, seen[2] == label] if len(seen) > 2 else ("yes" if own == label else "no")
        yield [*(class_label(classes[i]) for i in seen), right, str(int(parts["index"][row]))]


def _write_thumbnails(pixels: Tensor, file: Path) -> tuple[int, int]:
    """Write images, (N, C, H, W) uint8, as one picture, row by row in a square; return width and height of each."""
    height, width = (max(1, round(side * min(1, THUMBNAIL / max(pixels.shape[2:])))) for side in pixels.shape[2:])
    pixels = as_rgb(pixels)
    if (height, width) != tuple(pixels.shape[2:]):
        pixels = F.interpolate(pixels.float(), (height, width), mode="area").round().to(torch.uint8)
    side = int(np.ceil(np.sqrt(len(pixels))))
    tiles = torch.zeros(side * side, 3, height, width, dtype=torch.uint8)
    tiles[: len(pixels)] = pixels
    picture = tiles.view(side, side, 3, height, width).permute(0, 3, 1, 4, 2).reshape(side * height, side * width, 3)
    Image.fromarray(picture.numpy()).save(file, compress_level=3)  # in less than half the time of 6, no larger
    return width, height


def principal_components(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points, (N, D), in their first principal components, (N, min(N, D, `AXES`))."""
    centred = x - x.mean(axis=0)
    narrow = x.shape[0] > x.shape[1]  # the smaller of two matrices with the same eigenvalues
    values, vectors = np.linalg.eigh(centred.T @ centred if narrow else centred @ centred.T)
    kept = slice(-min(*x.shape, AXES), None)
    largest = vectors[:, kept]
    components = centred @ largest if narrow else largest * np.sqrt(np.maximum(values[kept], 0))
    return np.ascontiguousarray(components[:, ::-1], np.float64)


def _loggers(trainer: L.Trainer) -> list[TensorBoard]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)] if trainer.is_global_zero else []
