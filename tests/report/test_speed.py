"""Tables of what `scripts/benchmark.py` measured."""

import io

import pytest
from rich.console import Console

from kd.report.speed import BRIEF, FULL, overhead, ratio, remarks, to_markdown, to_rich

ENTRY = {
    # Medians are 200 and 500, and the rounds' ratios 4, 2.5 and 2.
    "images_per_second": {"textbook": [100, 200, 300], "bare": [500, 400, 750], "train.py": [400, 500, 600]},
    "memory_gb": {"textbook": 3.0, "bare": 2.0, "train.py": 2.5},
}
FIGURES = {
    "machine": {"device": "a processor", "rounds": 3},
    "overrides": [],
    "workloads": {"logits_stored": ENTRY},
    "training_flops": {"student": 4e7, "teacher": 1e8},
    "evaluation": {
        "images_per_second": {"textbook": [100.0, 100.0], "ours": [200.0, 400.0]},
        "teacher_forward_flops": 1e8,
        "matmul_flops": 4e11,
    },
    "first_step_seconds": [5.0, 4.5],
}


def printed(table):
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_ratio_is_the_median_within_rounds():
    assert ratio(ENTRY, "train.py") == pytest.approx(2.5)
    assert ratio(ENTRY, "train.py", "bare") == pytest.approx(0.8)
    assert overhead(ENTRY) == pytest.approx(0.25)


def test_to_markdown_has_brief_and_full_columns():
    assert to_markdown(FIGURES, BRIEF).splitlines()[2] == "| logits, stored | 200 | 500 | 2.5x | 100.0 |"
    assert to_markdown(FIGURES, FULL).splitlines()[2] == (
        "| logits, stored | 200 | 500 | 500 | 2.5x | 2.5x | +25.0 % | 100.0 |"
    )


def test_to_rich_adds_computation_memory_and_the_changed_loop():
    text = printed(to_rich(FIGURES))
    assert "changed" not in text
    cells = [cell.strip() for cell in text.splitlines()[-2].strip("│").split("│")]
    assert cells == ["logits, stored", "200", "500", "500", "2.5x", "+25.0 %", "100.0", "20", "2.5"]
    changed = {**ENTRY, "images_per_second": {**ENTRY["images_per_second"], "changed": [200, 250, 300]}}
    more = {**FIGURES, "overrides": ["speed.keep_memory=false"], "workloads": {"logits_stored": changed}}
    assert "0.50x" in printed(to_rich(more))
    assert "changed: speed with speed.keep_memory=false, to that of train.py without" in list(remarks(more))


def test_remarks_report_what_the_table_lacks():
    lines = "\n".join(remarks(FIGURES))
    assert "100 images/s plain, 300 ours (3.0x), 30 GFLOP/s" in lines
    assert "400 GFLOP/s" in lines
    assert "first step: 4.5 s" in lines
