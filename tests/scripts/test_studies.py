"""scripts/studies.py names rows that are in the records."""

import pytest
from omegaconf import OmegaConf

from kd.report.summary import summarize
from scripts import readme, studies
from tests.common import ROOT
from tests.report.made import DISTILLED, changed
from tests.report.test_contrasts import cells


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
    for name, measure in studies.changed(lambda run: run.test_acc).items():
        assert all(isinstance(measure.figure(run), float) for run in runs), name


def test_published_values_are_the_defaults():
    for method, (knob, value) in studies.PUBLISHED.items():
        assert OmegaConf.load(ROOT / "conf" / "method" / f"{method}.yaml")[knob] == value, method


def of(method, value, seed, **figures):
    knob, _ = studies.PUBLISHED[method]
    return changed(DISTILLED, method=method, seed=seed, **{knob: value}, **figures)


@pytest.fixture
def tuning():
    """Search and final runs in which dkd gains by its best value, and no other value is better than the published."""
    tried, final = [], []
    for method, (_, published) in studies.PUBLISHED.items():
        best = 3 * published if method == "dkd" else published
        values = [published * factor for factor in (0.1, 0.3, 1, 3, 10)]
        tried += [of(method, v, 0, val_acc=0.7 - 0.01 * (v != best), test_acc=0.9 * (v != best)) for v in values]
        for value in {published, best}:
            gain = 0.02 * (value != published)
            final += [of(method, value, s, test_acc=0.6 + gain + 0.001 * s + gain * s / 100) for s in (1, 2, 3)]
    return summarize(tried).rows, summarize(final).rows


def test_choice_is_by_validation_accuracy(tuning):
    tried, _ = tuning
    assert studies.choice(tried, "dkd") == 24.0
    assert studies.choice(tried, "sp") == 3000.0
    lines = cells(studies.choices(tried))
    assert lines["dkd"] == ["beta = 0.8, 2.4, 8, 24, 80", "69.00", "69.00", "69.00 published", "70.00 chosen", "69.00"]
    assert lines["sp"][3] == "70.00 published chosen"


def test_tuned_compares_what_was_chosen(tuning):
    lines = cells(studies.tuned(*tuning))
    assert next(iter(lines)) == "dkd"
    n, published, chosen, gain, *_, in_words = lines["dkd"]
    assert (n, published[:5], chosen[:5], gain) == ("3", "60.20", "62.24", "+2.04")
    assert in_words == "better"
    assert lines["sp"][3:6] == ["", "", ""]  # the published value was chosen
    assert lines["logits"][6:] == ["", "", ""]
