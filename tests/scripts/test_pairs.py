"""`scripts/pairs.py` makes the experiments on CIFAR-100 and their page from one table of published figures."""

import shutil

import pytest

from scripts import pairs


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Copies table, page and experiments; returns a function that runs the script there."""
    for folder in ("docs/results", "conf/experiment", "conf/method"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(pairs.ROOT / pairs.TABLE, tmp_path / pairs.TABLE)
    shutil.copy(pairs.ROOT / pairs.PAGE, tmp_path / pairs.PAGE)
    shutil.copytree(pairs.ROOT / pairs.FOLDER, tmp_path / pairs.FOLDER)
    shutil.copytree(pairs.ROOT / "conf" / "method", tmp_path / "conf" / "method", dirs_exist_ok=True)
    monkeypatch.setattr(pairs, "ROOT", tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["pairs.py", *arguments])
        return pairs.main()

    return call


def test_experiments_and_page_are_those_of_the_table(copied, tmp_path, capsys):
    assert copied("--check") == 0
    files = [tmp_path / pairs.PAGE, tmp_path / pairs.FOLDER / "vgg13_vgg8.yaml"]
    right = [file.read_text(encoding="utf-8") for file in files]
    files[0].write_text(right[0].replace("| 70.36 |", "| 71.36 |"), encoding="utf-8")
    files[1].write_text(right[1].replace("vgg8", "vgg11"), encoding="utf-8")
    (tmp_path / pairs.FOLDER / "fast" / "vgg13_vgg8.yaml").unlink()
    assert copied("--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{name} differs from {pairs.TABLE}: python scripts/pairs.py"
        for name in (f"{pairs.FOLDER}/vgg13_vgg8.yaml", f"{pairs.FOLDER}/fast/vgg13_vgg8.yaml", pairs.PAGE)
    ]
    assert copied() == 0
    assert [file.read_text(encoding="utf-8") for file in files] == right
    assert copied("--check") == 0


def test_what_belongs_to_no_pair_is_named(copied, tmp_path, capsys):
    (tmp_path / pairs.FOLDER / "vgg13_vgg9.yaml").touch()
    assert copied("--check") == 1
    assert capsys.readouterr().err == (
        f"pairs.py: {pairs.FOLDER}/vgg13_vgg9.yaml is of no pair in {pairs.TABLE}; remove it\n"
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "answer"),
    [
        (pairs.TABLE, "vgg13 > vgg8", "vgg13_vgg8", "a pair is written TEACHER > STUDENT, got 'vgg13_vgg8'"),
        (pairs.TABLE, "simkd,SimKD,", "simkd,SimKD,,", "line 25 has 16 columns, the first 15"),
        (pairs.PAGE, "<!-- same -->", "", "has no place for a table: <!-- same --> to <!-- /same -->"),
    ],
)
def test_a_mistake_is_one_line(copied, tmp_path, capsys, name, old, new, answer):
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    assert copied() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pairs.py: {name}")
    assert answer in line


def test_figures_are_the_published_ones():
    """A column and a row in full: of the papers of CRD and DKD."""
    found = {pair.name: pair.published for pair in pairs.read()[0]}
    column = "79.42 72.50 73.33 73.50 73.44 72.94 72.97 73.09 71.90 73.64 73.17 72.86 72.62 73.30 75.51"
    assert list(found["resnet32x4_resnet8x4"].values())[:15] == column.split()
    row = "76.24 74.81 71.97 71.06 74.11 76.32 74.68 69.71 70.35 - 76.45 77.07 76.70"
    assert [published.get("dkd", "-") for published in found.values()] == row.split()
    teachers = {(pair.teacher, pair.published["teacher"]) for pair in pairs.read()[0]}
    students = {(pair.student, pair.published["student"]) for pair in pairs.read()[0]}
    assert (len(teachers), len(students)) == (6, 9)  # a network has one figure, whatever it is paired with


def test_settings_of_a_pair_are_those_that_differ_from_the_methods_defaults():
    found = {pair.name: pairs.own_settings(pair) for pair in pairs.read()[0]}
    assert found["resnet56_resnet20"] == ["`method=dkd beta=2`", "`method=reviewkd beta=0.6`"]
    assert found["vgg13_vgg8"] == ["`method=dkd beta=6`", "`method=lskd T=3`"]
    assert found["resnet32x4_resnet8x4"] == []
