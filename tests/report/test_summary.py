from dataclasses import replace

import pytest
from scipy import stats

from kd.errors import UserError
from kd.report.ranking import best
from kd.report.rows import titled
from kd.report.summary import summarize
from kd.report.tables import to_csv, to_markdown
from tests.report.made import ALONE, DISTILLED, changed, seeds

TRIAL = "tested on 2,000 of 10,000 images"
HOSTILE = "\x1b]0;t\x07\r\n<script>|a|`b`[x](javascript:1)$x^2$\u202e"


def test_summarize_shows_no_control_characters_wherever_they_are():
    """Nor does any name reach a table with its 1,000 characters."""
    for changes in (
        *({name: HOSTILE} for name in ("method", "student", "teacher", "dataset", "variant", "trial")),
        {"knobs": {HOSTILE: HOSTILE, "a": [HOSTILE]}},
        {"warnings": [HOSTILE]},
        {"method": "m" * 1000, "dataset": "d" * 1000, "variant": "v" * 1000, "knobs": {"k" * 1000: "x" * 1000}},
    ):
        hostile = replace(DISTILLED, group="b", seed=1, **changes)
        summary = summarize([replace(DISTILLED, group="a"), hostile], ["\x1b[2J/result.json: cut"])
        labels = [row.label for row in summarize([DISTILLED, hostile]).rows]
        everything = [*summary.notes, titled(summary.rows), *labels, to_csv(summary.rows)]
        everything += to_markdown(summary.rows).splitlines() + [best(part.rows) for part in summary.by_dataset()]
        assert all(line.isprintable() for text in everything for line in text.splitlines())
        assert max(len(label) for label in labels) < 500


def test_summarize_names_few_of_many_skipped_records():
    notes = summarize([ALONE], [f"{i}/result.json: {'x' * 1000}" for i in range(1000)]).left_out
    assert len(notes) == 6
    assert notes[-1] == "995 more records or directories skipped."
    assert max(map(len, notes)) < 320


def test_summarize_counts_finished_runs_and_lists_the_rest():
    failed = replace(ALONE, seed=1, status="failed")
    running = [replace(ALONE, seed=seed, status="running") for seed in (2, 3)]
    summary = summarize([ALONE, failed, *running])
    assert [row.n for row in summary.rows] == [1]
    assert "3 runs not counted: 1 failed, 2 running." in summary.notes
    assert "1 run not counted: 1 failed." in summarize([ALONE, failed]).notes
    assert not any("not counted" in note for note in summarize([ALONE]).notes)


@pytest.mark.parametrize(
    ("results", "message"), [([], "no runs at all"), ([replace(ALONE, status="failed")], "1 failed")]
)
def test_summarize_refuses_runs_of_which_none_is_finished(results, message):
    with pytest.raises(UserError, match=f"no finished run to report on: {message}"):
        summarize(results)


def test_summarize_names_skipped_records():
    assert "Skipped a/result.json: cut short" in summarize([ALONE], ["a/result.json: cut short"]).notes


def test_summarize_leaves_out_trials_and_names_them():
    trials = seeds(ALONE, 0.1, 0.1, trial=TRIAL)
    summary = summarize([*seeds(ALONE, 0.8, 0.81), *trials, replace(DISTILLED, trial="fast_dev_run")])
    (row,) = summary.rows
    assert row.test_acc.mean == pytest.approx(0.805)
    assert summary.left_out == [f"2 trial runs left out: {TRIAL}.", "1 trial run left out: fast_dev_run."]


def test_summarize_shows_trials_where_there_is_nothing_else():
    summary = summarize([*seeds(ALONE, 0.1, 0.1, trial=TRIAL), replace(DISTILLED, trial=TRIAL)])
    assert [(row.label, row.trial) for row in summary.rows] == [("standard", TRIAL), ("logits", TRIAL)]
    assert titled(summary.rows) == f"CIFAR-10 (trial: {TRIAL})"
    assert summary.left_out == [f"Trial runs only, whose figures are not those of whole runs: {TRIAL}."]


def test_summarize_takes_an_older_run_tested_on_fewer_images_for_a_trial():
    whole = replace(ALONE, data_id="x", test_images=10_000)
    summary = summarize([whole, replace(whole, seed=1, test_images=2000), replace(whole, seed=2, data_id="y")])
    assert [row.seeds for row in summary.rows] == [[0, 2]]
    assert summary.left_out == [f"1 trial run left out: {TRIAL}."]
    (alone,) = summarize([replace(whole, test_images=2000)]).rows
    assert alone.trial is None  # with nothing to compare, nothing is known
    (cut,) = summarize([replace(whole, test_images=2000, test_total=10_000)]).rows
    assert cut.trial == TRIAL


def test_summarize_leaves_diverged_runs_out_of_means_and_names_them():
    bad = changed(DISTILLED, seed=3, test_acc=0.1, diverged=True)
    summary = summarize([*seeds(DISTILLED, 0.8, 0.82), bad])
    assert summary.rows[0].test_acc.mean == pytest.approx(0.81)
    assert summary.left_out == ["1 diverged run left out, in no mean: logits T=4 alpha=0.1 seed=3."]
    with pytest.raises(UserError, match=r"1 run diverged, logits T=4 alpha=0\.1 seed=3; try a lower lr"):
        summarize([bad])


def test_summarize_lists_each_warning_once_with_its_runs():
    odd, rare = "The teacher is near chance.", "The loss was NaN for a while."
    runs = [replace(run, warnings=[odd]) for run in seeds(DISTILLED, 0.8, 0.81)]
    summary = summarize([*runs, replace(ALONE, warnings=[rare, odd])])
    assert summary.warnings == [
        "Warning (standard seed=0): The loss was NaN for a while.",
        "Warning (standard seed=0; logits seed=0,1): The teacher is near chance.",
    ]


def test_summarize_gives_both_ends_where_the_interval_of_few_images_is_lopsided():
    (note,) = [note for note in summarize(seeds(ALONE, 1.0, 1.0, test_images=18)).notes if "binomial" in note]
    low, high = stats.binomtest(18, 18).proportion_ci(method="wilson")
    assert note.startswith(
        f"18 test images tell an accuracy of 100.00 % to be {100 * low:.1f} to {100 * high:.1f} % on all images"
    )


def test_summarize_notes_the_precision_of_the_test_split():
    notes = [note for note in summarize(seeds(ALONE, 0.85, 0.85, test_images=10_000)).notes if "binomial" in note]
    low, high = stats.binomtest(8500, 10_000).proportion_ci(method="wilson")
    assert len(notes) == 1
    assert notes[0].startswith(
        f"10,000 test images tell an accuracy of 85.00 % to within about ±{50 * (high - low):.2f}"
    )
    assert not any(
        "binomial" in note for note in summarize(seeds(ALONE, 0.80, 0.81)).notes
    )  # older records lack the number of test images
