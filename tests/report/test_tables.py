import csv
import io
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from kd.errors import UserError
from kd.report.comparison import compare
from kd.report.rows import Role, Spread, role, summarize
from kd.report.tables import (
    differences_to_markdown,
    differences_to_rich,
    single,
    to_brief,
    to_csv,
    to_markdown,
    to_rich,
)
from kd.results import Result

ALONE = Result(
    method="standard",
    seed=0,
    student="cnn",
    student_params=21_350,
    dataset="CIFAR-10",
    epochs=30,
    test_acc=0.8,
    test_nll=0.6,
    test_ece=0.03,
    val_acc=0.81,
    train_seconds=100.0,
    status="done",
)
DISTILLED = replace(
    ALONE,
    method="logits",
    T=4.0,
    alpha=0.1,
    teacher="resnet20",
    teacher_params=1_070_000,
    teacher_test_acc=0.9,
    agreement=0.85,
)
TEACHER = Result(
    method="teacher",
    seed=0,
    teacher="resnet20",
    teacher_params=1_070_000,
    dataset="CIFAR-10",
    epochs=30,
    test_acc=0.9,
    status="done",
)


def seeds(run, *accuracies, **changes):
    return [replace(run, seed=seed, test_acc=acc, **changes) for seed, acc in enumerate(accuracies)]


def labels(results):
    return [row.label for row in summarize(results).rows]


def records(results):
    return list(csv.DictReader(io.StringIO(to_csv(summarize(results).rows))))


def text(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_needs_no_torch():
    modules = "kd.results, kd.report.tables, kd.report.sweeps, kd.report.figures, kd.report.page, sys"
    code = f"import {modules}; assert 'torch' not in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Figures over seeds


def test_mean_and_sample_standard_deviation():
    (row,) = summarize(seeds(DISTILLED, 0.82, 0.83, 0.87)).rows
    assert row.n == 3
    assert row.seeds == [0, 1, 2]
    # mean 2.52 / 3; deviations -0.02, -0.01, 0.03; their squares sum to 0.0014; sqrt(0.0014 / 2)
    assert row.test_acc.mean == pytest.approx(0.84, abs=1e-12)
    assert row.test_acc.std == pytest.approx(0.026457513110645907, abs=1e-12)
    assert row.retention == pytest.approx(0.84 / 0.9, abs=1e-12)


def test_one_seed_has_no_standard_deviation_and_no_interval():
    (row,) = summarize([ALONE]).rows
    assert row.test_acc == Spread(0.8, None)
    assert row.test_interval is None
    assert "95 % interval" not in to_markdown([row])


def test_no_interval_over_some_of_the_runs():
    lost = replace(DISTILLED, seed=2, test_acc=None)
    (row,) = summarize([*seeds(DISTILLED, 0.8, 0.81), lost]).rows
    assert row.test_acc is None
    assert row.test_interval is None


def test_the_other_figures_are_means():
    runs = [replace(DISTILLED, seed=0), replace(DISTILLED, seed=1, test_nll=0.8, test_ece=0.05, agreement=0.75)]
    (row,) = summarize(runs).rows
    assert row.test_nll == pytest.approx(0.7)
    assert row.test_ece == pytest.approx(0.04)
    assert row.agreement == pytest.approx(0.8)
    assert row.train_seconds == 100


def test_no_mean_over_some_of_the_runs():
    diverged = replace(DISTILLED, seed=1, test_nll=None, test_acc=0.1)
    (row,) = summarize([DISTILLED, diverged]).rows
    assert row.test_nll is None
    assert row.test_acc.mean == pytest.approx(0.45)


# Which runs count


def test_only_finished_runs_count_and_the_others_are_listed():
    failed = replace(ALONE, seed=1, status="failed")
    running = [replace(ALONE, seed=seed, status="running") for seed in (2, 3)]
    summary = summarize([ALONE, failed, *running])
    assert [row.n for row in summary.rows] == [1]
    assert "3 runs not counted: 1 failed, 2 running." in summary.notes
    assert "1 run not counted: 1 failed." in summarize([ALONE, failed]).notes
    assert not any("not counted" in note for note in summarize([ALONE]).notes)


@pytest.mark.parametrize(("results", "said"), [([], "no runs at all"), ([replace(ALONE, status="failed")], "1 failed")])
def test_no_finished_run_is_a_mistake(results, said):
    with pytest.raises(UserError, match=f"no finished run to report on: {said}"):
        summarize(results)


def test_skipped_records_are_named():
    assert "Skipped a/result.json: cut short" in summarize([ALONE], ["a/result.json: cut short"]).notes


def test_a_repeated_run_counts_once_the_latest():
    first = replace(ALONE, group="g", fingerprint="f", date="2026-01-01T10:00:00", test_acc=0.7)
    again = replace(first, date="2026-01-02T10:00:00", test_acc=0.8)
    other = replace(first, seed=1, fingerprint="f1", test_acc=0.9)
    for results in ([first, again, other], [again, other, first]):
        summary = summarize(results)
        (row,) = summary.rows
        assert row.n == 2
        assert row.test_acc.mean == pytest.approx(0.85)
        assert "1 repeat of a run (same configuration and seed) left out: the latest counts." in summary.notes


def test_one_seed_counts_once_whatever_its_fingerprint():
    """As with a teacher from the store that a sweep over the students' seeds brings up again and again."""
    taken = [replace(TEACHER, group="g", fingerprint=name) for name in "abc"]
    (row,) = summarize(taken).rows
    assert row.n == 1
    assert row.test_acc == Spread(0.9, None)
    (row,) = summarize([ALONE, ALONE]).rows
    assert row.n == 1


# Groups, labels, order


def test_runs_of_one_group_are_one_row():
    runs = seeds(replace(DISTILLED, group="g"), 0.8, 0.82)
    assert [row.n for row in summarize(runs).rows] == [2]


def test_groups_with_the_same_knobs_stay_apart():
    runs = [replace(DISTILLED, group="aaaaaaaaaa"), replace(DISTILLED, group="bbbbbbbbbb", seed=1)]
    assert labels(runs) == ["logits #aaaaaaaa", "logits #bbbbbbbb"]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "other"},
        {"T": 2.0},
        {"alpha": 0.2},
        {"beta": 0.2},
        {"student": "mlp"},
        {"teacher": "resnet8"},
        {"dataset": "CIFAR-10 (JPEG)"},
        {"epochs": 50},
        {"variant": "recipe.lr=0.1"},
    ],
)
def test_without_a_group_all_but_the_seed_is_the_group(change):
    rows = summarize([DISTILLED, replace(DISTILLED, seed=1), replace(DISTILLED, seed=1, **change)]).rows
    assert sorted(row.n for row in rows) == [1, 2]
    assert len({row.label for row in rows}) == 2


def test_a_method_with_one_row_is_called_by_its_name():
    assert labels([ALONE, DISTILLED]) == ["standard", "logits"]


def test_a_sweep_over_T_shows_T_only():  # noqa: N802
    sweep = [replace(DISTILLED, T=T, variant="recipe.epochs=30") for T in (16.0, 4.0, 0.5)]
    assert labels([ALONE, *sweep]) == ["standard", "logits T=0.5", "logits T=4", "logits T=16"]


def test_a_sweep_over_overrides_shows_those_that_differ():
    variants = ["student.scale=16 recipe.epochs=50", "student.scale=8 recipe.epochs=50", "recipe.epochs=50"]
    sweep = [replace(ALONE, variant=variant) for variant in variants]
    assert labels(sweep) == ["standard", "standard student.scale=8", "standard student.scale=16"]


def test_what_no_knob_tells_apart_is_told_apart_by_the_networks():
    assert labels([replace(ALONE, student="mlp"), ALONE]) == ["standard student=cnn", "standard student=mlp"]


def test_teachers_then_students_alone_then_distilled_ones():
    runs = [replace(DISTILLED, method="at"), DISTILLED, ALONE, replace(ALONE, method="smooth"), TEACHER]
    assert labels(runs) == ["teacher", "smooth", "standard", "at", "logits"]
    assert [role(run) for run in (TEACHER, ALONE, DISTILLED)] == list(Role)


def test_the_role_is_not_told_by_the_name():
    assert labels([DISTILLED, ALONE, replace(TEACHER, method="oracle")]) == ["oracle", "standard", "logits"]


def test_data_sets_are_not_mixed():
    other = [replace(run, dataset="SVHN") for run in (DISTILLED, TEACHER)]
    summary = summarize([*other, DISTILLED, TEACHER])
    assert [(row.first.dataset, row.first.method) for row in summary.rows] == [
        ("CIFAR-10", "teacher"),
        ("CIFAR-10", "logits"),
        ("SVHN", "teacher"),
        ("SVHN", "logits"),
    ]
    assert summary.datasets == "CIFAR-10, SVHN"
    assert [row.label for row in summary.rows][2:] == ["teacher data=SVHN", "logits data=SVHN"]


# Retention


def retention_of_alone(*others):
    return next(row for row in summarize([ALONE, *others]).rows if row.role is Role.ALONE).retention


def test_a_student_alone_is_measured_against_the_one_teacher_that_the_others_had():
    assert retention_of_alone(*seeds(TEACHER, 0.9, 0.92), DISTILLED) == pytest.approx(0.8 / 0.9)


def test_else_against_the_teachers_own_rows():
    assert retention_of_alone(*seeds(TEACHER, 0.9, 0.92)) == pytest.approx(0.8 / 0.91)


def test_a_teacher_measured_twice_is_one_teacher():
    again = replace(DISTILLED, method="at", teacher_test_acc=0.8999999761581421)
    assert retention_of_alone(DISTILLED, again) == pytest.approx(0.8 / 0.9)


def test_else_against_none():
    assert retention_of_alone() is None
    assert retention_of_alone(DISTILLED, replace(DISTILLED, method="at", teacher_test_acc=0.91)) is None
    assert retention_of_alone(TEACHER, replace(TEACHER, teacher="resnet8", test_acc=0.91)) is None
    assert retention_of_alone(replace(DISTILLED, dataset="SVHN")) is None


def test_a_distilled_student_is_measured_against_its_own_teacher():
    (row,) = (row for row in summarize([TEACHER, replace(DISTILLED, teacher_test_acc=0.88)]).rows if row.agreement)
    assert row.teacher_acc == 0.88
    assert row.retention == pytest.approx(0.8 / 0.88)


def test_the_teacher_retains_nothing():
    (row,) = summarize([TEACHER]).rows
    assert row.retention is None
    assert row.params == 1_070_000
    assert row.network == "resnet20"


# Written


def test_csv():
    runs = [TEACHER, *seeds(replace(DISTILLED, variant="a=1,2"), 0.82, 0.83, 0.87)]
    teacher, logits = records(runs)
    assert ",".join(teacher) == (
        "method,T,alpha,beta,variant,student,teacher,dataset,epochs,n,params,test_acc_mean,test_acc_std,test_acc_low,"
        "test_acc_high,val_acc_mean,val_acc_std,test_nll_mean,test_ece_mean,teacher_test_acc,retention,agreement_mean,"
        "train_seconds_mean,seeds"
    )
    assert logits["variant"] == "a=1,2"
    assert (logits["method"], logits["T"], logits["alpha"], logits["beta"]) == ("logits", "4.0", "0.1", "")
    assert (logits["n"], logits["seeds"], logits["params"]) == ("3", "0 1 2", "21350")
    row = summarize(runs).rows[1]
    assert float(logits["test_acc_mean"]) == row.test_acc.mean
    assert float(logits["test_acc_std"]) == row.test_acc.std
    assert float(logits["retention"]) == row.retention
    assert teacher["params"] == "1070000"
    assert (float(logits["test_acc_low"]), float(logits["test_acc_high"])) == row.test_interval
    assert (
        teacher["test_acc_low"]
        == teacher["test_acc_std"]
        == teacher["retention"]
        == teacher["student"]
        == teacher["val_acc_mean"]
        == ""
    )


def test_markdown():
    lines = to_markdown(summarize([TEACHER, *seeds(DISTILLED, 0.82, 0.83, 0.87)]).rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {len(cells[0])}
    assert "beta" not in cells[0]
    teacher, logits = (dict(zip(cells[0], line, strict=True)) for line in cells[2:])
    assert logits["test accuracy, %"] == "84.00 ± 2.65"
    # mean 84, sample standard deviation 2.6458, t = 4.3027 with two degrees of freedom: 84 -+ 4.3027 * 2.6458 / sqrt(3)
    assert logits["95 % interval"] == "77.43 to 90.57"
    assert teacher["95 % interval"] == ""
    assert logits["n"] == "3"
    assert logits["parameters"] == "21.4 k"
    assert logits["retention"] == "93.3 %"
    assert logits["agreement, %"] == "85.00"
    assert logits["ECE, %"] == "3.00"
    assert logits["NLL"] == "0.600"
    assert logits["T"] == "4"
    assert logits["teacher, %"] == "90.00"
    assert logits["training"] == "100 s"
    assert teacher["test accuracy, %"] == "90.00"
    assert teacher["parameters"] == "1.07 M"
    assert teacher["retention"] == ""


def compared(*others):
    summary = summarize([*seeds(ALONE, 0.80, 0.81, 0.80), *seeds(DISTILLED, 0.82, 0.83, 0.824), *others])
    return summary.rows, compare(summary.rows)


def test_csv_with_a_baseline():
    rows, comparisons = compared(TEACHER)
    records = list(csv.DictReader(io.StringIO(to_csv(rows, comparisons))))
    teacher, standard, logits = records
    (one,) = comparisons
    assert list(logits)[-7:] == [
        "diff_vs_standard", "diff_low", "diff_high", "diff_n", "diff_p", "diff_verdict", "seeds"
    ]  # fmt: skip
    assert (float(logits["diff_low"]), float(logits["diff_high"])) == one.interval
    assert float(logits["diff_vs_standard"]) == one.difference == pytest.approx((0.02 + 0.02 + 0.024) / 3)
    assert (float(logits["diff_p"]), logits["diff_n"], logits["diff_verdict"]) == (one.p, "3", "better")
    assert standard["diff_vs_standard"] == teacher["diff_low"] == standard["diff_verdict"] == ""


def test_differences_for_people():
    lines = differences_to_markdown(compared()[1]).splitlines()
    # mean 2.1333, sample standard deviation 0.23094, t = 4.3027: 2.1333 -+ 0.5737; p of t = 16 with two degrees
    assert lines == [
        "| run | difference, points | 95 % interval | seeds | p (Holm) | in words |",
        "| :--- | ---: | ---: | ---: | ---: | :--- |",
        "| logits | +2.13 | +1.56 to +2.71 | 3 | 0.004 | better |",
    ]
    shown = text(differences_to_rich(compared()[1]), width=100)
    assert "+1.56 to +2.71" in shown
    assert "better" in shown


def test_columns_without_a_figure_are_left_out():
    summary = summarize([ALONE, DISTILLED])
    shown = differences_to_markdown(compare(summary.rows))
    assert shown.splitlines()[0] == "| run | difference, points | seeds | in words |"
    assert "| logits | +0.00 | 1 | one seed: no statement |" in shown


def test_a_bar_in_a_label_does_not_split_the_cell():
    runs = [ALONE, replace(ALONE, variant="a=x|y")]
    assert r"| standard a=x\|y |" in to_markdown(summarize(runs).rows)


def test_no_ranking_from_one_seed():
    note = "one seed: no ranking can be read from this"
    assert any(note in line for line in summarize([ALONE]).notes)
    assert not any(note in line for line in summarize(seeds(ALONE, 0.8, 0.81)).notes)


def test_the_terminal_has_room():
    variants = [f"student.scale={scale} recipe.lr=[0.1]" for scale in (1, 2)]
    runs = [run for variant in variants for run in seeds(DISTILLED, 0.8, 0.81, variant=variant)]
    shown = text(to_rich(summarize(runs).rows))
    assert "80.50 ± 0.71" in shown
    assert "…" not in shown
    assert "[0.1]" in text(to_rich(summarize([*runs, ALONE, replace(ALONE, variant="lr=[0.1]")]).rows))


# One run


def test_single_distilled():
    shown = text(single(replace(DISTILLED, retention=0.8889, images_per_second=8123.4)))
    words = [line.split() for line in shown.splitlines() if line.strip()]
    assert words[0] == ["teacher", "student"]
    assert words[2:] == [
        ["network", "resnet20", "cnn"],
        ["parameters", "1.07", "M", "21.4", "k"],
        ["test", "accuracy", "90.00", "%", "80.00", "%"],
        ["retention", "88.9", "%"],
        ["agreement", "85.00", "%"],
        ["test", "NLL", "0.600"],
        ["test", "ECE", "3.00", "%"],
        ["training", "time", "100", "s"],
        ["training", "images/s", "8,123"],
    ]


def test_single_without_a_teacher():
    shown = text(single(ALONE))
    assert "teacher" not in shown
    assert "retention" not in shown
    assert "agreement" not in shown
    assert "80.00 %" in shown
    assert len(single(ALONE).columns) == 2


def test_single_of_a_teacher():
    shown = text(single(replace(TEACHER, train_seconds=9000.0)))
    assert "student" not in shown
    assert "1.07 M" in shown
    assert "90.00 %" in shown
    assert "2.5 h" in shown


def test_single_of_a_run_that_has_just_begun():
    started = Result(method="x", seed=0, dataset="d", epochs=1, status="running")
    assert single(started).row_count == 0


def test_a_narrow_terminal_has_fewer_columns_rather_than_broken_lines():
    runs = [replace(ALONE, method="logits", T=float(T), seed=seed, group=str(T)) for T in (1, 16) for seed in (0, 1)]
    rows = summarize(runs).rows
    wide, narrow = text(to_rich(rows, 100), width=100), text(to_rich(rows, 50), width=50)
    assert "training" in wide
    assert "training" not in narrow
    for label in ("logits T=1 ", "logits T=16 "):
        assert label in wide
        assert label in narrow


# For people in a hurry


def test_the_brief_table_has_each_row_and_what_it_differs_by():
    rows = summarize([TEACHER, *seeds(ALONE, 0.8, 0.81, 0.805), *seeds(DISTILLED, 0.82, 0.831, 0.824)]).rows
    header, _, *lines = to_brief(rows, compare(rows)).splitlines()
    assert header == (
        "| run | network | parameters | n | test accuracy, % | retention | teacher, % | minus standard, points "
        "| 95 % interval | in words |"
    )
    assert [line.split(" | ")[0] for line in lines] == ["| teacher", "| standard", "| logits"]
    assert lines[0].endswith("|  |  |  |")
    assert lines[1].endswith("|  |  |  |")
    assert " | +2.00 | " in lines[2]
    assert lines[2].endswith(" | better |")


def test_without_a_baseline_the_brief_table_compares_nothing():
    header = to_brief(summarize([TEACHER]).rows, []).splitlines()[0]
    assert header.endswith("| test accuracy, % |" if "retention" not in header else "| retention |")
