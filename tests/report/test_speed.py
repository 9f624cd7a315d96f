"""Tables of the figures of `scripts/benchmark.py`."""

import io
import json

import pytest
from rich.console import Console

from kd.report.speed import ratio, remarks, to_markdown, to_rich
from tests.common import ROOT

ENTRY = {
    # The medians are 200 and 600. The rounds' ratios are 4, 3.5 and 2, whose median is not 600 / 200.
    "images_per_second": {"textbook": [100, 200, 300], "train.py": [400, 700, 600]},
    "memory_gb": {"textbook": 3.0, "train.py": 2.5},
}
FIGURES = {
    "machine": {"device": "a processor", "rounds": 3},
    "overrides": [],
    "workloads": {"logits_stored": ENTRY},
    "first_step_seconds": [5.0, 4.5],
}


def with_changed():
    # The rounds' ratios to train.py are 0.5, 0.4 and 0.6; that of the medians is 0.47.
    rates = {**ENTRY["images_per_second"], "changed": [200, 280, 360]}
    workloads = {"logits_stored": {**ENTRY, "images_per_second": rates}}
    return {**FIGURES, "overrides": ["speed.keep_memory=false"], "workloads": workloads}


def printed(shown):
    console = Console(width=100, file=io.StringIO())
    console.print(shown)
    return console.file.getvalue()


def test_ratio_is_the_median_over_turns_of_the_same_round():
    assert ratio(ENTRY, "train.py") == pytest.approx(3.5)
    assert ratio(ENTRY, "textbook", "train.py") == pytest.approx(1 / 3.5)
    with pytest.raises(ValueError, match="longer"):
        ratio({"images_per_second": {"textbook": [100, 200], "train.py": [400]}}, "train.py")


def test_to_markdown_has_a_line_a_workload():
    lines = to_markdown(FIGURES).splitlines()
    assert lines[0] == "| training | images/s, textbook | images/s, `train.py` | ratio | s / epoch |"
    assert lines[2:] == ["| logits, stored | 200 | 600 | 3.5x | 83.3 |"]


def test_to_markdown_reads_a_record_with_further_loops():
    recorded = json.loads((ROOT / "docs" / "results" / "speed" / "two_cores.json").read_text())
    assert "bare" in recorded["workloads"]["teacher"]["images_per_second"]
    assert to_markdown(recorded).splitlines()[2] == "| teacher | 493 | 1,312 | 2.9x | 38.1 |"


def test_to_rich_adds_memory_and_the_changed_loop():
    text = printed(to_rich(FIGURES))
    assert "changed" not in text
    cells = [cell.strip() for cell in text.splitlines()[-2].strip("│").split("│")]
    assert cells == ["logits, stored", "200", "600", "3.5x", "83.3", "2.5"]
    assert "0.50x" in printed(to_rich(with_changed()))


def test_remarks_explain_the_table_and_give_the_shortest_first_step():
    lines = list(remarks(FIGURES))
    assert lines[0] == "a processor"
    assert lines[-1].endswith("to the first step: 4.5 s")
    changed = "changed: speed with speed.keep_memory=false, divided by that of train.py"
    assert changed in list(remarks(with_changed()))
    assert changed not in lines
