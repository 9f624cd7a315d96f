"""The model card of a run: Markdown with the front matter that the Hugging Face hub reads."""

from collections.abc import Iterator
from typing import Any

import yaml

from kd.errors import UserError
from kd.report.statistics import binomial_interval
from kd.report.text import escaped, visible
from kd.runs.results import Result

CARD = "README.md"

ON_THE_HUB = {"CIFAR-100": "uoft-cs/cifar100", "CIFAR-10": "uoft-cs/cifar10"}
"""Names of data sets there, by how ours begin."""


def card(record: Result, weights: str, license_name: str | None = None) -> str:
    """Return the card of a run.

    Args:
        record: the run's.
        weights: name of the file of weights beside the card.
        license_name: of the weights, as the hub names licences; None where nobody has said it.

    Raises:
        UserError: for a run that is not done, or a trial, whose figures are not those of a whole run.
    """
    if record.status != "done" or record.test_acc is None or record.test_images is None:
        raise UserError(f"the run is {record.status}, and only one that is done has figures for a card")
    if record.trial is not None:
        raise UserError(f"the run is a trial ({record.trial}); its figures are not those of a whole run")
    own, data, images = _text(record.student or record.teacher), _text(record.dataset), record.test_images
    taught_by = f", taught by {_text(record.teacher)}" if record.student and record.taught and record.teacher else ""
    figures = "\n".join(
        f"| {name} | {value} |" for name, value in _figures(record, record.test_acc, record.test_images)
    )
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(record, license_name), sort_keys=False, allow_unicode=True)}---",
        f"# {own} on {data}{taught_by}",
        f"A classifier of images into the classes of {data}, trained with kd by `method={record.method}`.",
        f"| test split, {images:,} images | |\n| :-- | :-- |\n{figures}",
        "These are the figures of one run with one seed (n = 1), which have no spread over seeds. The interval is that "
        "of other test images of the same kind.",
        "## Use",
        f'```python\nimport kd\n\nnetwork = kd.load("{weights}")\nprint(network.predict("image.png"))\n```',
        "Architecture, class names, image size and normalisation are in the metadata of the file.",
        "## Training",
        f"```\npython train.py {visible(record.command or '')}\n```",
        "\n".join(f"* {name}: {_text(value)}" for name, value in _origin(record)),
        "## Limits",
        " ".join(
            [
                f"For any image at all it names one of the classes of {data}. Its probabilities were measured on "
                "images of that kind, and on no others.",
                *map(_text, record.warnings),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: Result, license_name: str | None) -> dict[str, Any]:
    own = visible(str(record.student or record.teacher))
    hub = next((name for ours, name in ON_THE_HUB.items() if record.dataset.startswith(ours)), None)
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
        "model-index": [{"name": f"{own} {record.method}", "results": [result]}],
    }


def _figures(record: Result, accuracy: float, images: int) -> Iterator[tuple[str, str]]:
    low, high = binomial_interval(round(accuracy * images), images)
    yield "accuracy", f"{accuracy:.2%} [{low:.2%}, {high:.2%}]"
    if record.test_nll is not None:
        yield "negative log-likelihood", f"{record.test_nll:.3f} nats"
    if record.test_ece is not None:
        yield "expected calibration error", f"{record.test_ece:.2%}"
    count = record.student_params if record.student else record.teacher_params
    if count is not None:
        yield "parameters", f"{count:,}"
    if record.student and record.teacher_test_acc is not None:
        yield "teacher's accuracy", f"{record.teacher_test_acc:.2%}"
    if record.agreement is not None:
        yield "the same class as the teacher", f"{record.agreement:.2%}"


def _origin(record: Result) -> Iterator[tuple[str, str]]:
    yield "seed", str(record.seed)
    yield "epochs", str(record.epochs)
    if record.train_images is not None:
        yield "training images", f"{record.train_images:,}"
    yield "hash of the images", record.data_id
    yield "begun", record.date
    yield "device, precision", f"{record.device}, {record.precision}"
    yield "versions", record.versions
    yield "revision", record.git or "unknown"


def _text(value: object) -> str:
    return escaped(visible(str(value)))
