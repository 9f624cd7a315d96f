from dataclasses import replace

import pytest

from kd.report.comparison import compare
from kd.report.rows import Role, Spread, role, teacher_name
from kd.report.summary import summarize
from kd.report.tables import to_markdown
from tests.report.made import ALONE, DISTILLED, MUTUAL, TEACHER, changed, seeds


def labels(results):
    return [row.label for row in summarize(results).rows]


def test_summarize_does_not_merge_long_names_that_differ():
    long = [replace(ALONE, method="m" * 400 + middle + "m" * 400) for middle in "ab"]
    assert [row.n for row in summarize(long).rows] == [1, 1]


# Figures over seeds


def test_row_has_mean_and_sample_standard_deviation():
    (row,) = summarize(seeds(DISTILLED, 0.82, 0.83, 0.87)).rows
    assert row.n == 3
    assert row.seeds == [0, 1, 2]
    # mean 2.52 / 3; deviations -0.02, -0.01, 0.03; their squares sum to 0.0014; sqrt(0.0014 / 2)
    assert row.test_acc.mean == pytest.approx(0.84, abs=1e-12)
    assert row.test_acc.std == pytest.approx(0.026457513110645907, abs=1e-12)
    assert row.retention == pytest.approx(0.84 / 0.9, abs=1e-12)


def test_row_of_one_seed_has_no_spread():
    (row,) = summarize([ALONE]).rows
    assert row.test_acc == Spread(0.8, None)
    assert row.test_interval is None
    assert "95 % interval" not in to_markdown([row])


def test_row_has_no_interval_over_some_of_the_runs():
    lost = replace(DISTILLED, seed=2, test_acc=None)
    (row,) = summarize([*seeds(DISTILLED, 0.8, 0.81), lost]).rows
    assert row.test_acc is None
    assert row.test_interval is None


def test_row_figures_are_means():
    runs = [replace(DISTILLED, seed=0), replace(DISTILLED, seed=1, test_nll=0.8, test_ece=0.05, agreement=0.75)]
    (row,) = summarize(runs).rows
    assert row.test_nll == pytest.approx(0.7)
    assert row.test_ece == pytest.approx(0.04)
    assert row.agreement == pytest.approx(0.8)
    assert row.train_seconds == 100


def test_row_has_no_mean_over_some_of_the_runs():
    diverged = replace(DISTILLED, seed=1, test_nll=None, test_acc=0.1)
    (row,) = summarize([DISTILLED, diverged]).rows
    assert row.test_nll is None
    assert row.test_acc.mean == pytest.approx(0.45)


# Which runs count


def test_summarize_counts_the_latest_of_repeated_runs():
    first = replace(ALONE, group="g", fingerprint="f", date="2026-01-01T10:00:00", test_acc=0.7)
    again = replace(first, date="2026-01-02T10:00:00", test_acc=0.8)
    second = replace(first, seed=1, fingerprint="f1", test_acc=0.9)
    for results in ([first, again, second], [again, second, first]):
        summary = summarize(results)
        (row,) = summary.rows
        assert row.n == 2
        assert row.test_acc.mean == pytest.approx(0.85)
        assert "1 repeat of a run (same configuration and seed) left out: the latest counts." in summary.notes


def test_latest_of_repeated_runs_is_by_time_and_not_by_the_clock():
    """A run of the hour after clocks are put back, or of a machine in another time zone."""
    first = replace(ALONE, group="g", fingerprint="f", date="2026-10-25T02:30:00+02:00", test_acc=0.7)
    again = replace(first, date="2026-10-25T02:10:00+01:00", test_acc=0.8)
    for results in ([first, again], [again, first]):
        (row,) = summarize(results).rows
        assert row.test_acc.mean == 0.8


def test_summarize_counts_a_seed_once_whatever_its_fingerprint():
    """A teacher from the store has a record in each run of a sweep over the students' seeds."""
    taken = [replace(TEACHER, group="g", fingerprint=name) for name in "abc"]
    (row,) = summarize(taken).rows
    assert row.n == 1
    assert row.test_acc == Spread(0.9, None)
    (row,) = summarize([ALONE, ALONE]).rows
    assert row.n == 1


# Groups, labels, order


def test_summarize_makes_one_row_of_a_group():
    runs = seeds(replace(DISTILLED, group="g"), 0.8, 0.82)
    assert [row.n for row in summarize(runs).rows] == [2]


def test_summarize_separates_groups_with_the_same_knobs():
    runs = [replace(DISTILLED, group="aaaaaaaaaa"), replace(DISTILLED, group="bbbbbbbbbb", seed=1)]
    assert labels(runs) == ["logits #aaaaaaaa", "logits #bbbbbbbb"]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "other"},
        {"T": 2.0},
        {"alpha": 0.2},
        {"beta": 0.2},
        {"margin": 0.2},
        {"layers": [1]},
        {"student": "mlp"},
        {"teacher": "resnet8"},
        {"dataset": "CIFAR-10 (JPEG)"},
        {"epochs": 50},
        {"variant": "recipe.lr=0.1"},
    ],
)
def test_summarize_groups_by_all_but_the_seed_without_a_group(change):
    rows = summarize([DISTILLED, replace(DISTILLED, seed=1), changed(DISTILLED, seed=1, **change)]).rows
    assert sorted(row.n for row in rows) == [1, 2]
    assert len({(row.first.dataset, row.label) for row in rows}) == 2


def test_label_of_a_methods_only_row_is_its_name():
    assert labels([ALONE, DISTILLED]) == ["standard", "logits"]


def test_label_shows_the_swept_knob_only():
    sweep = [changed(DISTILLED, T=T, variant="recipe.epochs=30") for T in (16.0, 4.0, 0.5)]
    assert labels([ALONE, *sweep]) == ["standard", "logits T=0.5", "logits T=4", "logits T=16"]


def test_label_shows_any_swept_knob_and_rows_follow_its_values():
    sweep = [changed(DISTILLED, warmup=warmup, mode="cosine") for warmup in (100, 20, None)]
    assert labels(sweep) == ["logits", "logits warmup=20", "logits warmup=100"]
    sweep = [changed(DISTILLED, margin=margin) for margin in ("auto", "10", 9.5)]
    assert labels(sweep) == ["logits margin=9.5", "logits margin=10", "logits margin=auto"]


def test_summarize_separates_rows_by_a_knob_that_is_a_list():
    runs = [changed(DISTILLED, layers=layers, seed=seed) for seed in (0, 1) for layers in ([1, 10], [1, 2])]
    rows = summarize(runs).rows
    assert [(row.label, row.n) for row in rows] == [("logits layers=[1,2]", 2), ("logits layers=[1,10]", 2)]


def test_summarize_groups_equal_integers_and_floats():
    (row,) = summarize([changed(DISTILLED, T=4), changed(DISTILLED, T=4.0, seed=1)]).rows
    assert row.n == 2


def test_label_shows_the_overrides_that_differ():
    variants = ["student.scale=16 recipe.epochs=50", "student.scale=8 recipe.epochs=50", "recipe.epochs=50"]
    sweep = [replace(ALONE, variant=variant) for variant in variants]
    assert labels(sweep) == ["standard", "standard student.scale=8", "standard student.scale=16"]


def test_label_shows_the_networks_where_no_knob_differs():
    assert labels([replace(ALONE, student="mlp"), ALONE]) == ["standard student=cnn", "standard student=mlp"]


def test_summarize_sorts_by_role():
    runs = [replace(DISTILLED, method="at"), DISTILLED, ALONE, replace(ALONE, method="smooth"), TEACHER]
    assert labels(runs) == ["teacher", "smooth", "standard", "at", "logits"]
    assert [role(run) for run in (TEACHER, ALONE, DISTILLED)] == list(Role)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (MUTUAL, Role.DISTILLED),
        (replace(ALONE, taught=False), Role.ALONE),
        (replace(DISTILLED, taught=True), Role.DISTILLED),
        (replace(TEACHER, taught=False), Role.TEACHER),
        (replace(TEACHER, taught=True), Role.TEACHER),
    ],
)
def test_role_follows_taught(run, expected):
    assert role(run) is expected


def test_role_does_not_depend_on_the_name():
    assert labels([DISTILLED, ALONE, replace(TEACHER, method="oracle")]) == ["oracle", "standard", "logits"]


def test_summarize_separates_data_sets():
    svhn = [replace(run, dataset="SVHN") for run in (DISTILLED, TEACHER)]
    summary = summarize([*svhn, DISTILLED, TEACHER])
    assert [(row.first.dataset, row.first.method) for row in summary.rows] == [
        ("CIFAR-10", "teacher"),
        ("CIFAR-10", "logits"),
        ("SVHN", "teacher"),
        ("SVHN", "logits"),
    ]
    assert summary.datasets == "CIFAR-10, SVHN"
    assert [row.label for row in summary.rows][2:] == ["teacher", "logits"]
    assert [[row.first.dataset for row in part.rows] for part in summary.by_dataset()] == [
        ["CIFAR-10", "CIFAR-10"],
        ["SVHN", "SVHN"],
    ]


# Trials, diverged runs, warnings


def test_summarize_does_not_average_over_trials_of_different_size():
    kinds = [replace(run, trial=trial) for trial in ("a", "b") for run in seeds(ALONE, 0.1, 0.2)]
    assert [(row.label, row.n) for row in summarize(kinds).rows] == [("standard trial=a", 2), ("standard trial=b", 2)]


def test_seeds_with_an_order_in_common_are_a_row_of_their_own():
    """The hash of a group, which is that of seed 0, is the same for an order of seed 0 and for one that is not set."""
    runs = seeds(replace(ALONE, group="aaaaaaaaaa"), 0.80, 0.81, 0.82)
    shared = [replace(run, variant="data.order_seed=0", test_acc=0.7) for run in runs]
    summary = summarize([*runs, *shared])
    assert [(row.label, row.n, row.test_acc.mean) for row in summary.rows] == [
        ("standard", 3, pytest.approx(0.81)),
        ("standard data.order_seed=0", 3, pytest.approx(0.7)),
    ]
    note = "The seeds of {} have the order, crops and flips of the images in common"
    assert any(found.startswith(note.format("standard data.order_seed=0")) for found in summary.notes)
    known = [replace(run, order_seed=0) for run in shared[1:]]  # a sweep that a newer version went on with
    assert any(found.startswith(note.format("all rows")) for found in summarize([shared[0], *known]).notes)
    assert not any("in common" in found for found in summarize(runs).notes)


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        ("resnet20", "teacher"),
        ("3 x resnet20", "ensemble of 3 teachers"),
        ("resnet8 + cnn32", "ensemble of 2 teachers"),
        ("2 x cnn32 + resnet8", "ensemble of 3 teachers"),
        ("2 x cnn32 > scale=3", "teacher"),
    ],
)
def test_teachers_of_an_ensemble_are_counted(teacher, name):
    assert teacher_name(teacher) == name


def test_own_teacher_is_that_which_taught():
    rows = summarize([ALONE, TEACHER, MUTUAL, replace(DISTILLED, teacher="3 x resnet20")]).rows
    names = {row.first.method: row.own_teacher for row in rows}
    assert names == {"teacher": None, "standard": None, "dml": None, "logits": "ensemble of 3 teachers"}


def test_test_interval_needs_three_seeds_and_keeps_to_its_range():
    """Two seeds of a good network gave 93.99 to 104.61 %."""
    assert summarize(seeds(ALONE, 0.9888, 0.9972)).rows[0].test_interval is None
    low, high = summarize(seeds(ALONE, 0.97, 1.0, 0.999)).rows[0].test_interval
    assert 0.9 < low < 0.97
    assert high == 1.0
    assert summarize(seeds(ALONE, 0.0, 0.03, 0.001)).rows[0].test_interval.low == 0


# Retention


def retention_of_alone(*results):
    return next(row for row in summarize([ALONE, *results]).rows if row.role is Role.ALONE).retention


def test_retention_of_a_student_alone_refers_to_the_distilled_students_teacher():
    assert retention_of_alone(*seeds(TEACHER, 0.9, 0.92), DISTILLED) == pytest.approx(0.8 / 0.9)


def test_retention_of_a_student_alone_refers_to_the_teachers_rows_else():
    assert retention_of_alone(*seeds(TEACHER, 0.9, 0.92)) == pytest.approx(0.8 / 0.91)


def test_retention_takes_rounding_for_the_same_teacher():
    again = replace(DISTILLED, method="at", teacher_test_acc=0.8999999761581421)
    assert retention_of_alone(DISTILLED, again) == pytest.approx(0.8 / 0.9)


def test_retention_of_a_student_alone_is_unknown_without_exactly_one_teacher():
    assert retention_of_alone() is None
    assert retention_of_alone(DISTILLED, replace(DISTILLED, method="at", teacher_test_acc=0.91)) is None
    assert retention_of_alone(TEACHER, replace(TEACHER, teacher="resnet8", test_acc=0.91)) is None
    assert retention_of_alone(replace(DISTILLED, dataset="SVHN")) is None


def test_retention_of_a_distilled_student_refers_to_its_own_teacher():
    (row,) = (row for row in summarize([TEACHER, replace(DISTILLED, teacher_test_acc=0.88)]).rows if row.agreement)
    assert row.teacher_acc == 0.88
    assert row.retention == pytest.approx(0.8 / 0.88)


def test_retention_of_a_student_taught_without_a_teacher_is_like_that_of_one_alone():
    rows = {row.first.method: row for row in summarize([ALONE, MUTUAL, DISTILLED, TEACHER]).rows}
    assert rows["dml"].retention == pytest.approx(0.83 / 0.9)
    assert rows["dml"].agreement is None
    assert rows["standard"].retention == pytest.approx(0.8 / 0.9)
    by_itself = {row.first.method: row for row in summarize([ALONE, MUTUAL, *seeds(TEACHER, 0.92, 0.94)]).rows}
    assert by_itself["dml"].retention == pytest.approx(0.83 / 0.93)  # the teacher's own rows, as it had none itself


def test_retention_of_a_teacher_is_none():
    (row,) = summarize([TEACHER]).rows
    assert row.retention is None
    assert row.params == 1_070_000
    assert row.network == "resnet20"


def test_row_counts_the_runs_that_diverged():
    lost = changed(ALONE, seed=7, diverged=True, test_acc=0.1)
    elsewhere = changed(DISTILLED, seed=7, diverged=True, T=9.0)
    alone, taught = summarize([*seeds(ALONE, 0.8, 0.81), lost, *seeds(DISTILLED, 0.8, 0.9), elsewhere]).rows
    assert (alone.n, alone.diverged, taught.n, taught.diverged) == (2, 1, 2, 0)


@pytest.mark.parametrize(
    "how", [{"diverged": True, "test_acc": 0.1}, {"diverged": True, "status": "failed", "test_acc": None}]
)
def test_method_of_which_runs_diverged_is_not_called_better(how):
    """Finished with nonsense, or ended by a loss of NaN: what is left of it are the lucky runs."""
    sound = [*seeds(ALONE, *(0.8 + i / 1000 for i in range(4))), *seeds(DISTILLED, *(0.9 + i / 2000 for i in range(4)))]
    (better,) = compare(summarize(sound).rows)
    assert better.verdict == "better"
    lost = [changed(DISTILLED, seed=seed, **how) for seed in (4, 5)]
    (refused,) = compare(summarize([*sound, *lost]).rows)
    assert (refused.verdict, refused.difference.p) == ("2 of 10 runs diverged: no statement", None)
    copies = summarize([*sound, lost[0], lost[0]]).rows
    assert [row.diverged for row in copies] == [0, 1]


def test_latest_run_of_a_seed_counts_whether_it_diverged_or_not():
    early, late = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    good, bad = changed(ALONE, seed=3), changed(ALONE, seed=3, diverged=True, test_acc=0.1)
    for first, second, n in ((bad, good, 3), (good, bad, 2)):
        runs = [*seeds(ALONE, 0.8, 0.81), replace(first, date=early), replace(second, date=late)]
        (row,) = summarize(runs).rows
        assert (row.n, row.diverged) == (n, 3 - n)


def test_note_says_if_students_of_a_data_set_differ_in_precision():
    runs = [replace(run, precision="bf16-mixed") for run in (*seeds(ALONE, 0.8, 0.81), *seeds(DISTILLED, 0.82, 0.83))]
    mixed = "Students on CIFAR-10 were trained in different precisions (1 in 32-true, 3 in bf16-mixed): differences may"
    teacher = replace(TEACHER, precision="32-true")
    elsewhere = replace(ALONE, precision="32-true", dataset="CIFAR-100")
    assert not any("precisions (" in note for note in summarize([*runs, teacher, elsewhere]).notes)
    other = replace(runs[0], precision="32-true")
    assert any(note.startswith(mixed) for note in summarize([other, *runs[1:]]).notes)
    assert not any("precisions (" in note for note in summarize([replace(runs[0], precision=None), *runs[1:]]).notes)


def test_training_time_is_the_median_and_a_note_says_if_devices_differ():
    """The first seed also stores the teacher's logits, which the others read."""
    runs = [
        replace(run, train_seconds=s) for run, s in zip(seeds(DISTILLED, 0.8, 0.8, 0.8), (900, 300, 310), strict=True)
    ]
    summary = summarize(runs)
    assert summary.rows[0].train_seconds == 310
    note = "Training times are of different devices or precisions: do not compare them."
    assert note not in summary.notes
    assert note in summarize([replace(runs[0], device="another"), *runs[1:]]).notes
