"""scripts/studies.py names rows that are in the records."""

import pytest

from scripts import readme, studies


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("seed_table", [*studies.STUDENTS, *(side for c in studies.GAINS.values() for side in (c.ours, c.theirs))]),
        ("seed_table", [side for family in studies.LOOKS for c in family for side in (c.ours, c.theirs)]),
        ("what_matters", [*studies.NETWORKS, *(c.ours for c in studies.CHANGES), *(c.theirs for c in studies.LENGTH)]),
        ("seed_anomaly", [f"logits mistake={name}" for name in (*studies.MISTAKES, "LabelsOnly")]),
        ("crossed", ["standard", *(f"{name} teacher_seed=3" for name in studies.CROSSED)]),
    ],
)
def test_rows_that_are_compared_are_in_the_records(folder, names):
    assert set(names) <= readme._rows(folder).keys()


def test_figures_that_are_compared_are_in_the_records():
    runs = [run for row in readme._rows("crossed").values() if row.first.student for run in row.runs]
    assert len(runs) > 50
    for name, measure in studies.CHANGED.items():
        assert all(isinstance(measure.figure(run), float) for run in runs), name
