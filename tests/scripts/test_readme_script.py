"""`scripts/readme.py` writes what the records say, and notices when something else stands there."""

import shutil

import pytest

from scripts import readme


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A README and records that may be written to; calls the script there."""
    shutil.copy(readme.ROOT / "README.md", tmp_path)
    shutil.copytree(readme.ROOT / "docs", tmp_path / "docs")
    monkeypatch.setattr(readme, "ROOT", tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["readme.py", *arguments])
        return readme.main()

    return call


def test_what_stands_there_is_what_the_records_say(copied, capsys):
    assert copied("--check") == 0
    assert capsys.readouterr().out == ""


def test_an_edited_figure_is_noticed_and_put_right(copied, tmp_path, capsys):
    page, table = tmp_path / "README.md", tmp_path / "docs" / "results" / "seed_table.csv"
    right = page.read_text(encoding="utf-8"), table.read_text(encoding="utf-8")
    assert "| 1.07 M |" in right[0]
    page.write_text(right[0].replace("| 1.07 M |", "| 1.05 M |"), encoding="utf-8")
    table.write_text(right[1].replace("1071066", "1051066"), encoding="utf-8")
    assert copied("--check") == 1
    said = capsys.readouterr().out
    assert "README.md differs from the records" in said
    assert "seed_table.csv differs from the records" in said
    assert copied() == 0
    assert (page.read_text(encoding="utf-8"), table.read_text(encoding="utf-8")) == right


def test_a_readme_without_the_place_is_refused(copied, tmp_path, capsys):
    (tmp_path / "README.md").write_text("# kd\n", encoding="utf-8")
    assert copied() == 1
    assert "README.md has no place for a table: <!-- results -->" in capsys.readouterr().err
