import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kd.runs.results import write
from tests import processes
from tests.common import ROOT
from tests.report.fidelity import made as fidelity
from tests.report.made import ALONE, changed

SCRIPT = ROOT / "scripts" / "report.py"


def report(*arguments, cwd):
    return processes.run(SCRIPT, *arguments, cwd=cwd)


def put(directory, result=ALONE):
    directory.mkdir(parents=True)
    write(result, directory / "result.json")
    return directory / "result.json"


def test_report_is_written_below_the_first_directory(tmp_path):
    put(tmp_path / "a" / "0")
    put(tmp_path / "a" / "1", replace(ALONE, seed=1, test_acc=0.81))
    put(tmp_path / "a" / "2", replace(ALONE, seed=2, status="failed"))
    put(tmp_path / "b" / "0", replace(ALONE, method="smooth"))
    cut = tmp_path / "b" / "1" / "result.json"
    cut.parent.mkdir()
    cut.write_text("{")
    first = report("a", "b", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "80.50 ± 0.71" in first.stdout
    assert "1 run not counted: 1 failed." in first.stdout
    assert f"Skipped {cut.relative_to(tmp_path)}: cut short" in first.stdout
    names = ["results.csv", "results.md", "index.html", "accuracy_comparison.png", "distillation_comparison.png"]
    written = [Path("a", "report", name) for name in names]
    assert first.stdout.splitlines()[-5:] == [str(path) for path in written]
    assert all((tmp_path / path).stat().st_size for path in written)
    assert f"Skipped {cut.relative_to(tmp_path)}" in (tmp_path / "a" / "report" / "results.md").read_text("utf-8")


def test_report_replaces_an_earlier_one_without_reading_it(tmp_path):
    put(tmp_path / "out" / "0")
    put(tmp_path / "out" / "report" / "copied", replace(ALONE, seed=7))
    (tmp_path / "out" / "report" / "results.csv").write_text("old")
    assert report("out", "--out", "out/report", cwd=tmp_path).returncode == 0
    header, row = (tmp_path / "out" / "report" / "results.csv").read_text("utf-8").splitlines()
    assert header.endswith(",seeds")
    assert row.endswith(",0")


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "missing: no such directory"), ("empty", "empty: no result.json"), ("running", "no finished run")],
)
def test_report_answers_a_mistake_in_one_line(tmp_path, name, message, one_line):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "running", replace(ALONE, status="running"))
    assert message in one_line(report(name, cwd=tmp_path))


def test_report_answers_an_unwritable_out_in_one_line(tmp_path, one_line):
    put(tmp_path / "runs" / "0")
    (tmp_path / "taken").touch()
    assert "cannot be written to taken" in one_line(report("runs", "--out", "taken", cwd=tmp_path))


TAUGHT = changed(
    ALONE, method="logits", T=4.0, teacher="big", teacher_params=50_000, teacher_test_acc=0.9, val_acc=0.82
)


def test_report_compares_rows_and_names_the_best(tmp_path):
    for seed, acc in enumerate((0.80, 0.81, 0.805)):
        put(tmp_path / f"s{seed}", replace(ALONE, seed=seed, test_acc=acc, val_acc=acc))
        put(tmp_path / f"a{seed}", changed(TAUGHT, seed=seed, T=1.0, test_acc=acc + 0.02 + seed / 1000))
        put(tmp_path / f"b{seed}", changed(TAUGHT, seed=seed, T=8.0, test_acc=acc + 0.01 + seed / 1000, val_acc=0.83))
    done = report(".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "results.md").read_text("utf-8")
    assert "Compared with standard:" in done.stdout
    assert "## Compared with standard" in page
    assert "| logits T=1 | +2.10 | +1.85 to +2.35 | 3 | 0.002 | 100 (100 to 100) | 0.46 | better |" in page
    assert "+1.85 to +2.35" in done.stdout
    chosen = "best by validation accuracy, of 3: logits T=8 (n = 3), 83.00 ± 0.00 %; test accuracy 81.60 ± 0.56 %."
    assert chosen in page
    assert chosen in done.stdout
    assert "sweep_T.png" in done.stdout
    assert "diff_vs_standard" in (tmp_path / "report" / "results.csv").read_text("utf-8")
    assert not (tmp_path / "report" / "tables.tex").exists()
    done = report(".", "--paper", cwd=tmp_path)
    assert "sweep_T.pdf" in done.stdout
    assert "logits T=1 & 3 & 82.60" in (tmp_path / "report" / "tables.tex").read_text("utf-8")
    done = report(".", "--baseline", "logits T=8", "--margin", "1.5", cwd=tmp_path)
    assert "Compared with logits T=8:" in done.stdout
    assert "Differences of less than 1.5 points count as none" in (tmp_path / "report" / "results.md").read_text(
        "utf-8"
    )


def test_report_has_no_empty_table_where_the_terminal_shows_some_rows(tmp_path, monkeypatch, capsys):
    for student, acc in (("a", 0.7), ("b", 0.8)):
        put(tmp_path / student, replace(ALONE, student=student, variant=f"student={student}", val_acc=0.5))
        for T in range(22):
            own = {"student": student, "variant": f"student={student}", "val_acc": acc + T / 1000}
            put(tmp_path / f"{student}{T}", changed(TAUGHT, T=float(T + 1), **own))
    assert in_process(monkeypatch, ".", cwd=tmp_path).main() == 0
    printed = capsys.readouterr().out
    assert "Compared with standard student=b:" in printed
    assert "Compared with standard student=a:" not in printed


def test_report_answers_a_missing_baseline_in_one_line(tmp_path, one_line):
    put(tmp_path / "a", TAUGHT)
    put(tmp_path / "b", changed(TAUGHT, T=8.0))
    assert "give one of: 'logits T=4', 'logits T=8'" in one_line(report(".", "--baseline", "logits", cwd=tmp_path))
    assert not (tmp_path / "report").exists()


def test_report_of_a_thousand_runs_is_quick_and_short(tmp_path, monkeypatch, capsys):
    curve = [epoch / 50 for epoch in range(30)]
    put(tmp_path / "standard", replace(ALONE, val_acc=0.5))
    for i in range(1000):
        T, alpha, seed = float(1 + i // 3 // 20), i // 3 % 20 / 20, i % 3
        acc = 0.8 + i % 7 / 100
        curves = {f"epoch_{split}_{kind}": curve for split in ("train", "val") for kind in ("acc", "loss")}
        put(tmp_path / str(i), changed(TAUGHT, T=T, alpha=alpha, seed=seed, test_acc=acc, val_acc=acc, **curves))
    program = in_process(monkeypatch, ".", cwd=tmp_path)
    began = time.process_time()
    code, took = program.main(), time.process_time() - began
    printed, errors = capsys.readouterr()
    assert code == 0, errors
    assert "20 of 335 rows, the best of each method" in printed
    assert len((tmp_path / "report" / "results.csv").read_text("utf-8").splitlines()) == 336
    assert len(printed.splitlines()) < 100
    assert took < 10  # 3 s of a processor with nothing else on it; the clock would depend on who else is there


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_report_prints_in_any_encoding(tmp_path, encoding):
    """An encoding without "±" used to end in a traceback; a name must not colour the terminal either."""
    for seed, acc in enumerate((0.80, 0.81, 0.805)):
        put(tmp_path / f"s{seed}", replace(ALONE, dataset="\x1b[31m猫", seed=seed, test_acc=acc))
        put(tmp_path / f"a{seed}", changed(TAUGHT, dataset="\x1b[31m猫", seed=seed, test_acc=acc + 0.02))
    if encoding == "ascii":  # which Python reads when it starts
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C"}
        command = [sys.executable, SCRIPT, "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, encoding=encoding)
    else:
        done = report(".", cwd=tmp_path)
    printed = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert ("80.50 +/- 0.50" if encoding == "ascii" else "80.50 ± 0.50") in printed
    assert (r"\x1b[31m\u732b" if encoding == "ascii" else r"\x1b[31m猫") in printed
    assert "\x1b" not in printed


def test_report_ends_with_its_reader(tmp_path):
    """`report.py DIR | head -1` used to end in a traceback."""
    put(tmp_path / "runs")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, SCRIPT, "."], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""


def test_report_help_has_an_example(tmp_path):
    done = report("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "python scripts/report.py multirun/first" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "report.py: the following arguments are required: DIR; see --help"),
        ([".", "--margin", "0"], "report.py: argument --margin: '0' is no number of points between 0 and 100"),
        ([".", "--margin", "x"], "report.py: argument --margin: 'x' is no number of points between 0 and 100"),
    ],
)
def test_report_refuses_a_wrong_command_in_one_line(tmp_path, arguments, line):
    done = report(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(line)


@pytest.mark.parametrize("arguments", [[], ["--open"], ["--images", "data"]])
def test_report_tells_how_to_get_the_page_without_the_extra(tmp_path, arguments, monkeypatch, capsys):
    put(tmp_path / "runs" / "0")
    program = in_process(monkeypatch, "runs", *arguments, cwd=tmp_path)
    monkeypatch.setattr("kd.report.html.bundle.installed", lambda: False)
    assert program.main() == (1 if arguments else 0)
    out, err = capsys.readouterr()
    assert "pip install 'vl-convert-python" in (err if arguments else out).splitlines()[-1]
    assert (tmp_path / "runs" / "report" / "results.md").exists() == (not arguments)


@pytest.mark.parametrize("browser", [True, False])
def test_report_opens_its_page(tmp_path, browser, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or browser)
    put(tmp_path / "runs" / "0")
    assert in_process(monkeypatch, "runs", "--open", "--out", "a b", cwd=tmp_path).main() == 0
    assert opened == [(tmp_path / "a b" / "index.html").as_uri()]
    assert ("no browser was found" in capsys.readouterr().out) == (not browser)


def test_report_answers_missing_images_in_one_line(tmp_path, one_line):
    for seed in range(2):
        fidelity.put(tmp_path / "runs" / f"s{seed}", "standard", seed, fidelity.noisy(seed))
        taught = fidelity.noisy(seed, 0.3)
        fidelity.put(tmp_path / "runs" / f"a{seed}", "logits", seed, taught, fidelity.TEACHER)
    assert "nowhere: no such directory" in one_line(report("runs", "--images", "nowhere", cwd=tmp_path))
    assert not (tmp_path / "runs" / "report").exists()


def test_report_of_a_read_only_directory_goes_to_out(tmp_path, one_line):
    put(tmp_path / "runs" / "0")
    if os.geteuid() == 0:  # whom no permission stops: a file is where the folder would be made
        (tmp_path / "runs" / "report").touch()
    else:
        (tmp_path / "runs").chmod(0o500)
    assert "choose another --out" in one_line(report("runs", cwd=tmp_path))
    assert report("runs", "--out", "elsewhere", cwd=tmp_path).returncode == 0
    assert (tmp_path / "elsewhere" / "index.html").exists()


def in_process(monkeypatch, *arguments, cwd):
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    spec = importlib.util.spec_from_file_location("report_program", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
