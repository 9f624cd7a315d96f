import csv
import io
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from kd.report.comparison import compare
from kd.report.summary import summarize
from kd.report.tables import (
    differences_to_markdown,
    differences_to_rich,
    single,
    to_brief,
    to_csv,
    to_markdown,
    to_rich,
)
from kd.runs.results import Result
from tests.report.made import ALONE, DISTILLED, MUTUAL, TEACHER, changed, seeds


def records(results):
    return list(csv.DictReader(io.StringIO(to_csv(summarize(results).rows))))


def text(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_report_loads_neither_torch_nor_pyplot():
    modules = "kd.runs.results, kd.report.page, kd.report.speed, kd.report.fidelity.page, sys"
    code = f"import {modules}; assert 'torch' not in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Written


def test_to_csv_has_full_precision_in_its_contract_columns():
    runs = [TEACHER, *seeds(replace(DISTILLED, variant="a=1,2"), 0.82, 0.83, 0.87)]
    teacher, logits = records(runs)
    assert ",".join(teacher) == (
        "method,T,alpha,beta,variant,student,teacher,dataset,epochs,n,params,multiply_adds,test_acc_mean,test_acc_std,"
        "test_acc_low,"
        "test_acc_high,val_acc_mean,val_acc_std,test_nll_mean,test_ece_mean,teacher_test_acc,retention,agreement_mean,"
        "train_seconds_median,seeds"
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


def test_to_markdown_has_percentages():
    lines = to_markdown(summarize([TEACHER, *seeds(DISTILLED, 0.82, 0.83, 0.87)]).rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {len(cells[0])}
    assert "beta" not in cells[0]
    teacher, logits = (dict(zip(cells[0], line, strict=True)) for line in cells[2:])
    assert logits["test accuracy, %"] == "84.00 ± 2.65"
    # mean 84, sample standard deviation 2.6458, t = 4.3027 with two degrees of freedom: 84 -+ 4.3027 * 2.6458 / sqrt(3)
    assert logits["95 % interval"] == "77.43 to 90.57"
    assert teacher["95 % interval"] == "too few seeds"
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


def test_to_csv_has_a_column_for_each_knob_after_the_common_ones():
    runs = [ALONE, changed(DISTILLED, warmup=20, layers=[1, 2], n=5), changed(DISTILLED, method="x", margin="auto")]
    standard, logits, x = records(runs)
    assert list(standard)[:9] == ["method", "T", "alpha", "beta", "warmup", "layers", "knob_n", "margin", "variant"]
    assert [logits[name] for name in ("T", "beta", "warmup", "layers", "knob_n", "n")] == [
        "4.0", "", "20", "[1,2]", "5", "1",
    ]  # fmt: skip
    assert (standard["warmup"], x["margin"]) == ("", "auto")


def test_to_markdown_has_a_column_for_each_knob_and_aligns_text_left():
    rows = summarize([ALONE, changed(DISTILLED, margin="auto", warmup=20, swapped=True)]).rows
    header, rule, standard, logits = (
        [c.strip() for c in line.split("|")[1:8]] for line in to_markdown(rows).splitlines()
    )
    assert header == ["run", "T", "alpha", "margin", "warmup", "swapped", "data"]
    assert rule == [":---", "---:", "---:", ":---", "---:", ":---", ":---"]
    assert standard[1:6] == [""] * 5
    assert logits[1:6] == ["4", "0.1", "auto", "20", "true"]


def test_tables_have_columns_for_further_test_sets_but_not_for_their_parts():
    also = {"also_test_acc": {"C": 0.5, "C/fog/1": 0.4}, "also_test_nll": {"C": 1.5, "C/fog/1": 2.0}}
    runs = [ALONE, *(replace(run, **also) for run in seeds(DISTILLED, 0.8, 0.9))]
    standard, logits = records(runs)
    assert list(standard)[-3:] == ["C_acc_mean", "C_acc_std", "C_nll_mean"]
    assert (logits["C_acc_mean"], logits["C_acc_std"], logits["C_nll_mean"]) == ("0.5", "0.0", "1.5")
    assert standard["C_acc_mean"] == ""
    header, _, *lines = to_markdown(summarize(runs).rows).splitlines()
    assert [line.split("|")[-2].strip() for line in (header, *lines)] == ["C, %", "", "50.00 ± 0.00"]
    assert "C accuracy" in text(single(runs[1]))
    partly = [replace(runs[1], also_test_acc={}), runs[2]]
    assert "C_acc_mean" not in records(partly)[0]  # never a mean over some of the seeds


@pytest.mark.parametrize("name", ["test", "val", "balanced", "teacher"])
def test_further_test_set_does_not_take_the_place_of_a_column(name):
    (run,) = made = seeds(DISTILLED, 0.9, val_acc=0.91, also_test_acc={name: 0.3}, also_test_nll={name: 3.0})
    (without,), (record,) = records([replace(run, also_test_acc={}, also_test_nll={})]), records(made)
    own = {"acc_mean": "0.3", "acc_std": "", "nll_mean": "3.0"}
    assert record == without | {f"also {name}_{figure}": value for figure, value in own.items()}
    assert f"| also {name}, % |" in to_markdown(summarize(made).rows)
    shown = text(single(run))
    assert "90.00 %" in shown
    assert re.search(rf"also {name} accuracy +30.00 %", shown)


def test_tables_show_the_balanced_accuracy_where_it_tells_something():
    near, far = (replace(ALONE, test_balanced_acc=ALONE.test_acc - less) for less in (0.004, 0.2))
    assert "balanced" not in to_markdown(summarize([near]).rows) + ",".join(records([near])[0]) + text(single(near))
    assert float(records([far])[0]["balanced_acc_mean"]) == pytest.approx(ALONE.test_acc - 0.2)
    assert "balanced accuracy, %" in to_markdown(summarize([far]).rows)
    assert "balanced accuracy" in text(single(far))


def compared(*results):
    summary = summarize([*seeds(ALONE, 0.80, 0.81, 0.80), *seeds(DISTILLED, 0.82, 0.83, 0.824), *results])
    return summary.rows, compare(summary.rows)


def test_to_csv_with_comparisons_has_differences():
    rows, comparisons = compared(TEACHER)
    records = list(csv.DictReader(io.StringIO(to_csv(rows, comparisons))))
    teacher, standard, logits = records
    (comparison,) = comparisons
    assert [name for name in logits if name.startswith("diff")] == [
        "diff_vs_standard", "diff_low", "diff_high", "diff_n", "diff_p", "diff_p_sign_flip", "diff_p_equivalence",
        "diff_prob_better", "diff_prob_better_low", "diff_prob_better_high", "diff_detectable", "diff_seeds_needed",
        "diff_verdict",
    ]  # fmt: skip
    assert float(logits["diff_prob_better_low"]) == pytest.approx(0.9127218, abs=1e-6)
    assert (float(logits["diff_p_sign_flip"]), logits["diff_p_equivalence"]) == (0.25, "")
    assert (float(logits["diff_low"]), float(logits["diff_high"])) == comparison.difference.interval
    assert float(logits["diff_vs_standard"]) == comparison.difference.mean == pytest.approx((0.02 + 0.02 + 0.024) / 3)
    assert (float(logits["diff_p"]), logits["diff_n"], logits["diff_verdict"]) == (
        comparison.difference.p,
        "3",
        "better",
    )
    assert standard["diff_vs_standard"] == teacher["diff_low"] == standard["diff_verdict"] == ""


def test_differences_to_markdown_has_interval_p_and_verdict():
    lines = differences_to_markdown(compared()[1]).splitlines()
    # mean 2.1333, sample standard deviation 0.23094, t = 4.3027: 2.1333 -+ 0.5737; p of t = 16 with two degrees.
    # Of the noncentral t with two degrees, 16 is the 97.5 % quantile at 2.350: Phi(2.350 / sqrt(3)) = 91.3 %; and
    # 20 % are below 4.3027 at 5.6535: 5.6535 / sqrt(3) * 0.23094 = 0.754.
    assert lines == [
        "| run | difference, points | 95 % interval | seeds | p (Holm) | P(better), % | detectable, points "
        "| in words |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | :--- |",
        "| logits | +2.13 | +1.56 to +2.71 | 3 | 0.004 | 100 (91 to 100) | 0.75 | better |",
    ]
    printed = text(differences_to_rich(compared()[1]), width=100)
    assert "+1.56 to +2.71" in printed
    assert "better" in printed


def test_differences_to_markdown_leaves_out_empty_columns():
    summary = summarize([ALONE, DISTILLED])
    printed = differences_to_markdown(compare(summary.rows))
    assert printed.splitlines()[0] == "| run | difference, points | seeds | in words |"
    assert "| logits | +0.00 | 1 | one seed: no statement |" in printed


def test_to_markdown_escapes_bars():
    runs = [ALONE, replace(ALONE, variant="a=x|y")]
    assert r"| standard a=x\|y |" in to_markdown(summarize(runs).rows)


def test_summarize_notes_that_one_seed_ranks_nothing():
    note = "one seed: no ranking can be read from this"
    assert any(note in line for line in summarize([ALONE]).notes)
    assert not any(note in line for line in summarize(seeds(ALONE, 0.8, 0.81)).notes)


def test_to_rich_fits_the_terminal():
    variants = [f"student.scale={scale} recipe.lr=[0.1]" for scale in (1, 2)]
    runs = [run for variant in variants for run in seeds(DISTILLED, 0.8, 0.81, variant=variant)]
    printed = text(to_rich(summarize(runs).rows))
    assert "80.50 ± 0.71" in printed
    assert "…" not in printed
    assert "[0.1]" in text(to_rich(summarize([*runs, ALONE, replace(ALONE, variant="lr=[0.1]")]).rows))


# One run


def test_single_of_a_distilled_student():
    printed = text(single(replace(DISTILLED, retention=0.8889, images_per_second=8123.4)))
    words = [line.split() for line in printed.splitlines() if line.strip()]
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


def test_single_of_a_student_alone():
    printed = text(single(ALONE))
    assert "teacher" not in printed
    assert "retention" not in printed
    assert "agreement" not in printed
    assert "80.00 %" in printed
    assert "student" in printed


def test_single_of_a_student_taught_without_a_teacher():
    assert text(single(MUTUAL)) == text(single(replace(ALONE, test_acc=MUTUAL.test_acc)))


def test_single_of_a_teacher():
    printed = text(single(replace(TEACHER, train_seconds=9000.0)))
    assert "student" not in printed
    assert "1.07 M" in printed
    assert "90.00 %" in printed
    assert "2.5 h" in printed


def test_single_of_a_run_that_has_just_begun():
    started = Result(method="x", seed=0, dataset="d", epochs=1, status="running")
    assert not any(character.isalnum() for line in text(single(started)).splitlines()[2:] for character in line)


def test_single_shows_what_is_wrong_with_its_figures():
    trial = replace(ALONE, trial="tested on 2,000 of 10,000 images", warnings=["[bold]The teacher[/bold] is odd."])
    lines = text(single(trial)).splitlines()
    assert lines[0] == "trial run: tested on 2,000 of 10,000 images"
    assert lines[-1] == "warning: [bold]The teacher[/bold] is odd."
    assert text(single(replace(ALONE, diverged=True))).startswith("diverged: ")


def test_to_rich_drops_columns_on_a_narrow_terminal():
    runs = [changed(ALONE, method="logits", T=float(T), seed=seed, group=str(T)) for T in (1, 16) for seed in (0, 1)]
    rows = summarize(runs).rows
    wide, narrow = text(to_rich(rows, 100), width=100), text(to_rich(rows, 50), width=50)
    assert "training" in wide
    assert "training" not in narrow
    for label in ("logits T=1 ", "logits T=16 "):
        assert label in wide
        assert label in narrow


LONG = "student.scale=16 recipe.optimizer.weight_decay=0.0005 recipe.schedule.warmup=0.05"


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_tables_break_no_word_at_any_width(width, encoding):
    """A table used to write "student.s", "cale=16" on two lines."""
    runs = [
        run
        for acc in (0.82, 0.83)
        for run in seeds(DISTILLED, acc, acc + 0.011, acc + 0.004, variant=f"{LONG} lr={acc}", train_seconds=5e5)
    ]
    rows = summarize([*seeds(ALONE, 0.8, 0.81), *seeds(ALONE, 0.8, 0.81, method="x" * 70), *runs]).rows
    comparisons = compare(rows, "logits lr=0.82")
    whole = text(to_rich(rows, 400, encoding), 400) + text(differences_to_rich(comparisons, 400, encoding), 400)
    for printed in (
        text(to_rich(rows, width, encoding), width),
        text(differences_to_rich(comparisons, width, encoding), width),
    ):
        assert max(map(len, printed.splitlines())) <= width
        words = {word for line in printed.splitlines() for word in line.split() if word.strip("─-")}
        assert {word for word in words if not word.startswith("...")} <= set(whole.split())
        assert not {"n", "seeds"}.isdisjoint(words)
        assert printed.isascii() == (encoding == "ascii") or "─" in printed


def test_to_rich_has_room_for_characters_of_double_width():
    printed = text(to_rich(summarize([*seeds(ALONE, 0.8, 0.81), *seeds(ALONE, 0.8, 0.81, method="猫猫猫猫")]).rows))
    assert " 猫猫猫猫  2 " in printed


def test_to_rich_marks_trials():
    printed = text(to_rich(summarize(seeds(ALONE, 0.8, 0.81, trial="tested on 20 of 100 images")).rows))
    assert "standard (trial)" in printed


def test_to_markdown_names_the_images_of_trials():
    rows = summarize([*seeds(ALONE, 0.8, 0.81, trial="tested on 20 of 100 images")]).rows
    assert to_markdown(rows).splitlines()[2].startswith("| standard | tested on 20 of 100 images | ")
    assert "| standard | tested on 20 of 100 images |" in to_brief(rows, [])
    (record,) = csv.DictReader(io.StringIO(to_csv(rows)))
    assert record["trial"] == "tested on 20 of 100 images"


def test_to_markdown_names_an_ensemble():
    rows = summarize([ALONE, replace(DISTILLED, teacher="3 x resnet20")]).rows
    assert "| ensemble of 3 teachers, % |" in to_markdown(rows)
    assert "| ensemble of 3 teachers, % |" in to_brief(rows, [])


# For people in a hurry


def test_to_brief_has_each_row_and_its_difference():
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


def test_to_brief_without_comparisons_has_no_differences():
    header = to_brief(summarize([TEACHER]).rows, []).splitlines()[0]
    assert header.endswith("| test accuracy, % |" if "retention" not in header else "| retention |")
