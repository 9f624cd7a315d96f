"""The model card of a run: Markdown with the front matter that the Hugging Face hub reads."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from kd.errors import UserError
from kd.files import replaced
from kd.report.statistics import binomial_interval
from kd.report.text import escaped
from kd.runs.given import weights_file
from kd.runs.results import CARD, Result
from kd.terminal import visible

log = logging.getLogger(__name__)

ON_THE_HUB = {
    "CIFAR-100": "uoft-cs/cifar100",
    "CIFAR-10": "uoft-cs/cifar10",
    "FashionMNIST": "zalando-datasets/fashion_mnist",
    "SVHN": "ufldl-stanford/svhn",
    "Tiny ImageNet": "zh-plus/tiny-imagenet",
}
"""Names of data sets there, by ours."""


def write_card(record: Result, directory: Path) -> None:
    """Write the card of a run into its directory, once the run is done.

    A trial has none. A file of that name which is there already stays, whoever wrote it. A card that cannot be written
    is a warning in the log: the run is done all the same.
    """
    path = directory / CARD
    if record.status != "done" or record.trial is not None or os.path.lexists(path):
        return
    try:
        text = card(record, weights_file(directory).name)
        with replaced(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (OSError, UserError, ValueError) as error:  # the last of figures that are none
        log.warning("no model card: %s", visible(str(error)))


def card(
    record: Result,
    weights: str,
    license_name: str | None = None,
    temperature: float = 1.0,
    beside: Sequence[str] = (),
) -> str:
    """Return the card of a run.

    Args:
        record: the run's.
        weights: name of the file of weights beside the card.
        license_name: of the weights, as the hub names licences; None where nobody has said it.
        temperature: what `kd.load` divides the logits by, as was fitted after the run.
        beside: names of further files beside the card, such as of the network as ONNX.

    Raises:
        UserError: for a run that is not done, or a trial, whose figures are not those of a whole run.
    """
    if record.status != "done" or record.test_acc is None or record.test_images is None:
        raise UserError(f"the run is {record.status}, and only one that is done has figures for a card")
    if record.trial is not None:
        raise UserError(f"the run is a trial ({record.trial}); its figures are not those of a whole run")
    own, data, images = _text(record.student or record.teacher), _text(record.dataset), record.test_images
    taught_by = f", taught by {_text(record.teacher)}" if record.student and record.taught and record.teacher else ""
    found = _figures(record, record.test_acc, record.test_images, temperature)
    figures = "\n".join(f"| {name} | {value} |" for name, value in found)
    exported = [name for name in beside if not name.endswith(".json")]
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(record, license_name), sort_keys=False, allow_unicode=True)}---",
        f"# {own} on {data}{taught_by}",
        f"A classifier of images into the classes of {data}, trained with kd by {_recipe(record)}.",
        f"| test split, {images:,} images | |\n| :-- | :-- |\n{figures}",
        "These are the figures of one run with one seed (n = 1), which have no spread over seeds. The interval is that "
        "of other test images of the same kind.",
        "## Use",
        _use(record, weights),
        *([f"The same network in other forms: {_text(', '.join(exported))}."] if exported else []),
        "## Training",
        "It was trained as a teacher; its recipe is in the metadata of the file."
        if record.command is None
        else f"```\npython train.py {visible(record.command)}\n```",
        "\n".join(f"* {name}: {_text(value)}" for name, value in _origin(record)),
        "## Limits",
        " ".join(
            [
                f"For any image at all it names one of the classes of {data}. Its probabilities were measured on "
                "images of that kind, and on no others.",
                *(["No licence has been given for these weights."] if license_name is None else []),
                *(f"{_text(warning)}." for warning in record.warnings),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _use(record: Result, weights: str) -> str:
    """How to load the network, and what that takes."""
    network = record.student or record.teacher
    trust = ", trust=True" if network == "custom" else ""
    described = "Architecture, class names, image size and normalisation are in the metadata of the file"
    needed = {
        "custom": "The metadata of the file name the code of the network, which has to be on the import path; class "
        "names, image size and normalisation are there, too.",
        "timm": f"{described}; it needs timm.",
    }
    code = f'import kd\n\nnetwork = kd.load("{weights}"{trust})\nprint(network.predict("image.png"))'
    return f"```python\n{code}\n```\n\n{needed.get(network or '', f'{described}.')}"


def _front_matter(record: Result, license_name: str | None) -> dict[str, Any]:
    own, method = visible(str(record.student or record.teacher)), visible(record.method)
    whole = record.dataset.removesuffix(" (JPEG)")  # a part of it has another name
    hub = ON_THE_HUB.get(whole)
    name = visible(record.dataset)
    tags = ["image-classification", "pytorch", "safetensors"] + (["knowledge-distillation"] if record.taught else [])
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": name, "type": hub or name, "split": "test"},
        "metrics": [{"type": "accuracy", "value": record.test_acc, "name": f"accuracy, seed {record.seed}, n = 1"}],
    }
    return {
        **({} if license_name is None else {"license": license_name}),
        "library_name": "kd",
        "pipeline_tag": "image-classification",
        "tags": tags,
        **({} if hub is None else {"datasets": [hub]}),
        "metrics": ["accuracy"],
        "model-index": [{"name": f"{own} {method}", "results": [result]}],
    }


def _figures(record: Result, accuracy: float, images: int, temperature: float) -> Iterator[tuple[str, str]]:
    before = "" if temperature == 1 else f", before its logits are divided by {temperature:.3g}"
    low, high = binomial_interval(round(accuracy * images), images)
    yield "accuracy", f"{accuracy:.2%} [{low:.2%}, {high:.2%}]"
    if record.test_nll is not None:
        yield f"negative log-likelihood{before}", f"{record.test_nll:.3f} nats"
    if record.test_ece is not None:
        yield f"expected calibration error{before}", f"{record.test_ece:.2%}"
    count = record.student_params if record.student else record.teacher_params
    if count is not None:
        yield "parameters", f"{count:,}"
    if record.student and record.teacher_test_acc is not None:
        yield "teacher's accuracy", f"{record.teacher_test_acc:.2%}"
    if record.agreement is not None:
        yield "the same class as the teacher", f"{record.agreement:.2%}"


def _recipe(record: Result) -> str:
    knobs = [f"{name}={value}" for name, value in record.knobs.items()]
    return _text(", ".join([f"method={record.method}", *knobs]))


def _origin(record: Result) -> Iterator[tuple[str, str]]:
    yield "seed", str(record.seed)
    yield "epochs", str(record.epochs)
    if record.train_images is not None:
        wrong = f", {record.noisy_labels:,} of them with a wrong label" if record.noisy_labels else ""
        yield "training images", f"{record.train_images:,}{wrong}"
    yield "hash of the images", record.data_id
    if record.taught and record.teacher_id:
        yield "hash of the teacher's weights and settings", record.teacher_id
    yield "begun", record.date
    yield "device, precision", f"{record.device}, {record.precision}"
    yield "versions", record.versions
    yield "revision", record.git or "unknown"


def _text(value: object) -> str:
    return escaped(visible(str(value)))
