"""`scripts/readme.py` makes tables from records, and detects tables that differ from them."""

import re
import shutil

import pytest

from scripts import readme
from tests.common import ROOT


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Copies README and records to a folder that may be written to; returns a function that runs the script there."""
    shutil.copy(readme.ROOT / "README.md", tmp_path)
    shutil.copytree(readme.ROOT / "docs", tmp_path / "docs")
    monkeypatch.setattr(readme, "ROOT", tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["readme.py", *arguments])
        return readme.main()

    return call


def test_edited_figure_is_detected_and_corrected(copied, tmp_path, capsys, monkeypatch):
    """And nothing else differs from what is committed, neither before nor after."""
    edits = {
        "README.md": ("| 1.07 M |", "| 1.05 M |"),
        "docs/results/how_sure.md": ("| 5 | 6 | 4 |", "| 3 | 3 | 3 |"),
        "docs/results/seed_table.csv": ("1071066", "1051066"),
        "docs/results/what_matters/results.md": ("| 1.07 M |", "| 1.05 M |"),
    }
    right = {name: (tmp_path / name).read_text(encoding="utf-8") for name in edits}
    for name, (before, after) in edits.items():
        assert before in right[name]
        (tmp_path / name).write_text(right[name].replace(before, after), encoding="utf-8")
    assert copied("--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{name} differs from the records: python scripts/readme.py" for name in edits
    ]
    monkeypatch.setattr("kd.report.page.DPI", 20)
    assert copied() == 0
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in edits} == right


@pytest.mark.parametrize("page", [page for page in readme.PAGES if page.startswith("docs/results/")])
def test_answer_has_the_figures_of_its_tables(page):
    """An answer, which is typed, and what the overview says of it, cannot differ from the tables, which are made."""
    title, answer, rest = (ROOT / page).read_text(encoding="utf-8").split("\n\n", 2)
    assert title.startswith("# ")
    assert title.endswith("?")
    assert answer.startswith("**")
    assert "CIFAR-10 (JPEG)" in " ".join(answer.split())
    overview = (ROOT / "docs/results/README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^.*\({page.rpartition('/')[2]}\).*$", overview, re.MULTILINE)
    figures = re.findall(r"[+-]?\d+\.\d+", answer + line)
    known = {float(figure) for figure in re.findall(r"[+-]?\d+\.\d+", rest)}
    shown = {abs(round(value, digits)) for value in known for digits in (1, 2)}
    assert [figure for figure in figures if abs(float(figure)) not in shown] == []


def test_page_without_marks_is_refused(copied, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(readme, "_table", lambda name: "")  # none of which is to be written
    (tmp_path / "README.md").write_text("# kd\n", encoding="utf-8")
    assert copied() == 1
    assert "README.md has no place for a table: <!-- results -->" in capsys.readouterr().err
