"""Tables for LaTeX and pictures as PDF."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from kd.app.identity import variant
from kd.report.comparison import compare
from kd.report.crossed import across
from kd.report.numbers import p_value, percent
from kd.report.page import report
from kd.report.paper import TABLES, for_paper, to_latex
from kd.report.summary import summarize
from tests.report.made import ALONE, DISTILLED, MUTUAL, TEACHER, changed, seeds

HOSTILE = r"a_b & 50 % #1 {$x$} \input{/etc/passwd} ~^ < > × [2em]"


def latex(*runs):
    summary = summarize(runs)
    return to_latex(summary, compare(summary.rows))


def lines(text):
    """Return the cells of a table's lines, by the first of each."""
    cells = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in text.splitlines() if line.endswith(r"\\")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in cells}


def of(student, teacher, run, *accuracies):
    own = {"student": student} | ({} if run is ALONE else {"teacher": teacher})
    assert variant([f"{role}={name}" for role, name in own.items()], list(own), ()) == ""  # of these a run has no more
    return seeds(replace(run, **own), *accuracies)


ONE = [
    *seeds(TEACHER, 0.9, 0.91),
    *seeds(ALONE, 0.80, 0.81, 0.80),
    *seeds(DISTILLED, 0.82, 0.83, 0.824),
    *seeds(changed(DISTILLED, method="a_b"), 0.79, 0.81, 0.80),
]
TWO = [
    *of("resnet20", "resnet56", ALONE, 0.690, 0.692, 0.691),
    *of("resnet20", "resnet56", DISTILLED, 0.7101, 0.712, 0.711),
    *of("resnet20", "resnet56", replace(DISTILLED, method="dkd"), 0.68, 0.70, 0.72),
    *of("vgg8", "vgg13", ALONE, 0.700, 0.702, 0.701),
    *of("vgg8", "vgg13", DISTILLED, 0.7211, 0.723, 0.722),
]


def test_table_of_one_baseline_has_a_line_for_each_row():
    text = latex(*ONE)
    assert lines(text) == {
        "": ["$n$", r"Test accuracy, \%", "Difference, points", r"95\,\% interval", "$p$"],
        "teacher": ["2", r"90.50 $\pm$ 0.71", "", "", ""],
        "standard": ["3", r"80.33 $\pm$ 0.58", "", "", ""],
        r"a\_b": ["3", r"80.00 $\pm$ 1.00", "$-$0.33", "$-$1.77 to $+$1.10", "0.423"],
        "logits": ["3", r"82.47 $\pm$ 0.50", "$+$2.13", "$+$1.56 to $+$2.71", "0.008"],
    }
    assert text.count(r"\midrule") == 3  # between header, teacher, student alone and distilled ones
    assert "Differences are from standard, over common seeds" in text
    assert "Holm's method for 2 comparisons" in text


def test_caption_names_the_knobs_that_were_set_and_that_no_row_shows():
    set_by_hand = replace(changed(DISTILLED, method="dkd", beta=0.3), command="method=dkd beta=0.3 seed=0")
    several = [replace(changed(DISTILLED, T=T), command=f"method=logits T={T}") for T in (1.0, 8.0)]
    runs = [
        *seeds(ALONE, 0.80, 0.81, 0.80),
        *(run for each in (set_by_hand, *several) for run in seeds(each, 0.8, 0.82)),
    ]
    assert "Set on the command line: dkd with beta=0.3." in latex(*runs)
    assert "command line" not in latex(*ONE, *seeds(replace(set_by_hand, command="method=dkd"), 0.8, 0.82))
    assert "command line" not in latex(*ONE, *seeds(replace(set_by_hand, command="a damaged 'command"), 0.8, 0.82))


def test_table_of_several_students_has_a_column_for_each():
    text = latex(*TWO)
    assert lines(text) == {
        "Teacher": ["resnet56", "vgg13"],
        "Student": ["resnet20", "vgg8"],
        "teacher": ["90.00", "90.00"],
        "standard": [r"69.10 $\pm$ 0.10", r"70.10 $\pm$ 0.10"],
        "dkd": [r"70.00 $\pm$ 2.00", ""],
        "logits": [r"71.10 $\pm$ 0.10$^{*}$", r"72.20 $\pm$ 0.10$^{*}$"],
    }
    assert "over seeds, $n = 3$." in text
    assert r"$^{*}$: differs from standard over common seeds ($p < 0.05$;" in text
    assert "corrected by Holm's method for 3 comparisons)" in text
    assert "$n = 1$ to $3$" in latex(*TWO[:4], *TWO[9:])


def test_table_keeps_what_sets_rows_of_one_student_apart():
    tuned = [changed(run, T=8.0) for run in TWO[3:6]]
    shown = lines(latex(*TWO, *tuned))
    assert shown["logits T=4"] == [r"71.10 $\pm$ 0.10$^{*}$", r"72.20 $\pm$ 0.10$^{*}$"]
    assert shown["logits T=8"] == [r"71.10 $\pm$ 0.10$^{*}$", ""]


def test_table_of_several_students_names_what_is_not_in_it():
    own = [replace(run, variant="recipe.warmup=1") for run in TWO[3:6]]
    text = latex(*TWO, *own)
    assert re.search(r"^% Not in this table: logits recipe.warmup=1", text, re.MULTILINE)
    assert lines(text) == lines(latex(*TWO))


def test_table_of_students_with_several_teachers_names_them_by_line():
    more = of("resnet20", "vgg13", DISTILLED, 0.7101, 0.712, 0.711)
    shown = lines(latex(*TWO, *more))
    assert "Teacher" not in shown
    assert "teacher" not in shown
    assert shown["logits teacher=resnet56"] == [r"71.10 $\pm$ 0.10$^{*}$", ""]
    assert shown["logits teacher=vgg13"] == [r"71.10 $\pm$ 0.10$^{*}$", r"72.20 $\pm$ 0.10$^{*}$"]


def test_table_with_a_method_without_a_teacher_keeps_the_teachers():
    shown = lines(latex(*TWO, *of("resnet20", None, MUTUAL, 0.70, 0.71, 0.72)))
    assert shown == lines(latex(*TWO)) | {"dml": [r"71.00 $\pm$ 1.00", ""]}


def test_table_tells_a_teacher_by_its_recipe():
    """A row of another recipe must not be taken for one of the same line."""
    part = [run for run in TWO if run.method != "dkd"]
    long = [replace(run, variant="teacher_recipe.epochs=9") for run in part[3:6]]
    shown = lines(latex(*part, *long))
    assert shown[r"logits teacher\_recipe.epochs=9 teacher=resnet56"] == [r"71.10 $\pm$ 0.10$^{*}$", ""]
    assert "Teacher" not in shown
    shown = lines(latex(*part[:3], *long, *part[6:]))
    assert shown["Teacher"] == ["vgg13", "resnet56 teacher\\_recipe.epochs=9"]
    assert shown["logits"] == [r"72.20 $\pm$ 0.10$^{*}$", r"71.10 $\pm$ 0.10$^{*}$"]


def test_columns_are_named_by_what_sets_them_apart():
    tenth = [replace(run, variant="data.fraction=0.1") for run in TWO[9:]]
    assert lines(latex(*TWO[:6], *tenth))["Student"] == ["resnet20", "vgg8 data.fraction=0.1"]
    one = [replace(run, student="vgg8") for run in TWO[:6]]
    assert lines(latex(*one, *tenth))["Student"] == ["vgg8", "data.fraction=0.1"]


def test_table_names_the_teacher_of_each_line_where_methods_have_others():
    """Else a line that names none would be taken for one of the teacher that the line above it names."""
    both = [*TWO, *of("vgg8", "resnet56", DISTILLED, 0.7211, 0.723, 0.722)]
    shown = lines(latex(*both, *of("vgg8", "resnet56", replace(DISTILLED, method="crd"), 0.71, 0.72, 0.73)))
    assert shown["Student"] == ["vgg8", "resnet20"]
    assert shown["crd teacher=resnet56"] == [r"72.00 $\pm$ 1.00", ""]
    assert shown["dkd teacher=resnet56"] == ["", r"70.00 $\pm$ 2.00"]


def test_trials_of_two_kinds_share_their_lines():
    runs = []
    for trial, low in (("tested on 2000 of 10000 images", 0.8), ("1 batch an epoch", 0.5)):
        runs += seeds(replace(ALONE, trial=trial), low, low + 0.01, low)
        runs += seeds(replace(DISTILLED, trial=trial), low + 0.02, low + 0.03, low + 0.021)
    assert all(lines(latex(*runs))["logits"])


def test_each_table_has_a_label_of_its_own():
    runs = [replace(run, dataset=name) for name in ("a b", "a_b") for run in ONE]
    assert re.findall(r"\\label{(.*)}", latex(*runs)) == ["tab:a_b", "tab:a_b_2"]


def test_caption_calls_nothing_equal():
    text = latex(*TWO)
    assert "Of others no difference is certain, or none is stated" in text
    assert "intervals by Student's $t$, not corrected;" in latex(*ONE)


def test_caption_says_what_seeds_have_in_common():
    shared = [replace(run, order_seed=0) for run in ONE]
    note = "The seeds of all rows have the order, crops and flips of the images in common"
    assert note in latex(*shared)
    assert note not in latex(*(replace(run, order_seed=run.seed) for run in ONE))
    apart = [replace(run, order_seed=0 if run.method == "logits" else run.seed) for run in ONE]
    assert "The seeds of logits have the order" in latex(*apart)


def test_methods_of_several_teachers_have_a_table_with_intervals_for_new_ones():
    accuracies = [[0.82, 0.83, 0.824], [0.825, 0.832, 0.828], [0.818, 0.831, 0.822]]
    crossed = [
        replace(DISTILLED, seed=seed, test_acc=acc, teacher_id=f"t{t}", variant=f"teacher_seed={t}")
        for t, row in enumerate(accuracies)
        for seed, acc in enumerate(row)
    ]
    summary = summarize([*seeds(ALONE, 0.80, 0.81, 0.80), *crossed])
    compared = compare(summary.rows)
    (line,) = across(summary.rows, compared)
    text = to_latex(summary, compared)
    second = text[text.rindex(r"\begin{table}") :]
    assert r"\label{tab:CIFAR-10_new_teachers}" in second
    assert lines(second)["logits"][:3] == ["3", "3", percent(line.accuracy.mean)]
    assert lines(second)["logits"][-1] == p_value(line.p).replace("<", "$<$")
    assert "speak of new teachers and new seeds. Differences are from standard with the same seeds" in second
    assert "Holm's method for 1 comparison." in second
    typed = [replace(changed(run, T=8.0), command=f"method=logits T=8 {run.variant}") for run in crossed]
    summary = summarize([*seeds(ALONE, 0.80, 0.81, 0.80), *typed])
    text = to_latex(summary, compare(summary.rows))
    assert "Set on the command line: logits with T=8." in text[text.rindex(r"\begin{table}") :]
    lost = [replace(crossed[0], seed=seed, diverged=True) for seed in (7, 8)]
    summary = summarize([*seeds(ALONE, 0.80, 0.81, 0.80), *(replace(run, order_seed=0) for run in crossed), *lost])
    text = to_latex(summary, compare(summary.rows))
    second = text[text.rindex(r"\begin{table}") :]
    (name,) = (name for name in lines(second) if name.startswith("logits"))
    assert name == "logits (2 of 14 runs diverged: no statement)"
    assert "with the same seeds. The seeds of all rows have the order" in second


def test_table_says_what_else_a_row_differs_in_from_its_baseline():
    text = latex(*seeds(ALONE, 0.80, 0.81, 0.80), *seeds(replace(DISTILLED, epochs=60), 0.82, 0.83, 0.824))
    assert "logits (epochs 60 against 30)" in text


def test_table_without_seeds_states_no_test():
    text = latex(*seeds(ALONE, 0.8), *seeds(DISTILLED, 0.82))
    assert lines(text)["logits"] == ["1", "82.00", "$+$2.00", "too few seeds", ""]
    assert "Holm" not in text
    assert lines(latex(*seeds(DISTILLED, 0.82)))["logits"] == ["1", "82.00"]


def test_diverged_runs_are_named():
    lost = replace(DISTILLED, seed=9, diverged=True)
    assert "logits (1 diverged)" in lines(latex(*seeds(ALONE, 0.8), *seeds(DISTILLED, 0.82), lost))
    lost = replace(TWO[3], seed=9, diverged=True)
    assert lines(latex(*TWO, lost))["logits"][0] == r"71.10 $\pm$ 0.10 (1 diverged)"


def test_names_are_text():
    """A record may be a stranger's: what is in it is shown, and not run."""
    text = latex(*seeds(replace(ALONE, method=HOSTILE, dataset=HOSTILE), 0.8))
    shown = text[text.index(r"\begin{table}") :]
    assert "/etc/passwd" in shown
    assert not re.search(r"\\input|(?<!\\)[%#]|(?<![\\{])\[", shown)
    (name,) = set(lines(text)) - {""}
    assert name.startswith(r"a\_b \& 50 \% \#1 \{\$x\$\} \textbackslash{}input")


@pytest.mark.parametrize(
    "made", [ONE, TWO, [replace(run, dataset=HOSTILE) for run in ONE]], ids=["one", "two", "hostile"]
)
def test_latex_accepts_the_tables(made, tmp_path):
    """Every line has as many cells as there are columns; and LaTeX says so, where it is installed."""
    text = latex(*made)
    (columns,) = re.findall(r"\\begin{tabular}{([lrc]+)}", text)
    assert {1 + len(rest) for rest in lines(text).values()} == {len(columns)}
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    program = shutil.which("pdflatex")
    if program:
        document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
        (tmp_path / "a.tex").write_text(document.replace(r"\begin{document}", "\\begin{document}\n"), encoding="utf-8")
        done = subprocess.run([program, "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_pictures_are_written_as_pdf_with_fonts_that_publishers_take(tmp_path):
    summary = summarize(ONE)
    comparisons = compare(summary.rows)
    made = report(summary, comparisons)
    with_paper = for_paper(made, summary, comparisons)
    assert with_paper.texts == {**made.texts, TABLES: to_latex(summary, comparisons)}
    with_paper.write(tmp_path)
    pictures = sorted(path.stem for path in tmp_path.glob("*.png"))
    assert pictures == sorted(path.stem for path in tmp_path.glob("*.pdf"))
    assert len(pictures) == 3
    for path in tmp_path.glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF")
        assert b"/Type3" not in path.read_bytes()
    assert (tmp_path / "accuracy_comparison.png").read_bytes().startswith(b"\x89PNG")
