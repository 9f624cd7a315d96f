"""Tables of the figures of `scripts/benchmark.py`."""

import io
import json

import pytest
from rich.console import Console

from kd.report.speed import limits_to_markdown, limits_to_rich, ratio, remarks, shares, to_markdown, to_rich
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
    "first_step_seconds": [5.0, 4.5, 4.0],
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


def test_remarks_explain_the_table_and_give_the_median_of_the_first_steps():
    lines = list(remarks(FIGURES))
    assert lines[0] == "a processor"
    assert lines[-1].endswith("to the first step: 4.5 s")
    changed = "changed: speed with speed.keep_memory=false, divided by that of train.py"
    assert changed in list(remarks(with_changed()))
    assert changed not in lines


LIMITED = {
    **ENTRY,
    "step": {"flops": {"bf16": 60e9, "fp32": 20e9}, "product_bytes": 1e9, "other_bytes": 3e9},
    "limits": {"bf16": [200e9] * 3, "fp32": [100e9] * 3, "copy": [8e9, 2e9, 10e9], "triad": [4e9, 10e9, 8e9]},
}


def test_shares_are_medians_over_rounds_of_a_step_at_the_limits():
    # Steps of 400, 700 and 600 images at those speeds take a second; products 0.3 + 0.2 s, memory 0.5, 0.4 and 0.4 s.
    found = shares({**LIMITED, "images_per_second": {"train.py": [400, 400, 400]}}, 400)
    assert found == pytest.approx({"products": 0.5, "memory": 0.4, "least": 0.8})
    # Twice as fast in all rounds, twice the share.
    found = shares({**LIMITED, "images_per_second": {"train.py": [800, 800, 800]}}, 400)
    assert found == pytest.approx({"products": 1.0, "memory": 0.8, "least": 1.6})


def test_limit_tables_name_what_binds():
    found = shares(LIMITED, 400)
    figures = {**FIGURES, "workloads": {"logits_stored": LIMITED}, "shares": {"logits_stored": found}}
    assert (
        limits_to_markdown(figures).splitlines()[2] == "| logits, stored | 80.0 | 4.00 | 75% | 60% | 120% | products |"
    )
    text = printed(limits_to_rich(figures))
    assert "limits: bf16 200 GFLOP/s, fp32 100 GFLOP/s, copy 8 GB/s, triad 8 GB/s" in " ".join(text.split())
    figures["workloads"]["logits_stored"] = {**LIMITED, "limits": {**LIMITED["limits"], "bf16": [2000e9] * 3}}
    figures["shares"] = {"logits_stored": shares(figures["workloads"]["logits_stored"], 400)}
    assert limits_to_markdown(figures).splitlines()[2].endswith("| memory |")
