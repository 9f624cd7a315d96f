"""Records of runs as a report shows them, whoever wrote them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kd.report.text import shortened
from kd.runs.results import Knob, Result
from kd.terminal import visible

MOST_OVERRIDES = 100
_NAMES = ("method", "student", "teacher", "dataset", "trial")


def prepared(results: Iterable[Result]) -> list[Result]:
    """Return the records, in order, as a report shows them: texts visible, names shortened, trials marked as such.

    In records of older versions, a trial is a run that was tested on fewer images than another on the same data. A
    record that needs no change is returned as it is.
    """
    results = list(results)
    total: dict[str, int] = {}
    for run in results:
        total[run.data_id] = max(total.get(run.data_id, 0), run.test_images or 0, run.test_total or 0)
    return [_prepared(run, total[run.data_id] if run.data_id else run.test_total or 0) for run in results]


def _prepared(run: Result, total: int) -> Result:
    texts = {name: visible(value) for name, value in vars(run).items() if isinstance(value, str)}
    texts |= {name: shortened(texts[name]) for name in _NAMES if name in texts}
    texts["variant"] = " ".join(map(shortened, texts["variant"].split(" ")[:MOST_OVERRIDES]))
    changes: dict[str, Any] = {name: text for name, text in texts.items() if text != getattr(run, name)}
    knobs = {shortened(visible(name)): _visible(value) for name, value in run.knobs.items()}
    changes |= {"knobs": knobs} if knobs != run.knobs else {}
    for field in ("also_test_acc", "also_test_nll"):
        figures = {shortened(visible(name)): value for name, value in getattr(run, field).items()}
        changes |= {field: figures} if figures != getattr(run, field) else {}
    warnings = [shortened(visible(warning), 500) for warning in run.warnings]
    changes |= {"warnings": warnings} if warnings != run.warnings else {}
    if run.trial is None and run.test_images is not None and run.test_images < total:
        changes["trial"] = f"tested on {run.test_images:,} of {total:,} images"
    return replace(run, **changes) if changes else run


def _visible(value: Knob) -> Knob:
    if isinstance(value, list):
        return [visible(item) if isinstance(item, str) else item for item in value]
    return visible(value) if isinstance(value, str) else value
