import os
from dataclasses import replace

import matplotlib
import pytest
from matplotlib.figure import Figure

from kd.errors import UserError
from kd.report.comparison import compare
from kd.report.page import distinct, report, to_page, write
from kd.report.summary import summarize
from kd.report.sweeps import Picture
from tests.report.made import ALONE, changed, few, runs


def picture(name="a.png"):
    return Picture(name, Figure(figsize=(1, 1)), "a")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def former(tmp_path):
    write({"a.md": "former", "a.csv": "former"}, [picture()], tmp_path)
    return contents(tmp_path)


def test_write_replaces_a_former_report(tmp_path, former):
    written = write({"a.md": "new", "a.csv": "new"}, [picture(), picture("b.png")], tmp_path)
    assert [path.name for path in written] == ["a.md", "a.csv", "a.png", "b.png"]
    assert sorted(contents(tmp_path)) == sorted(path.name for path in written)
    assert (tmp_path / "a.md").read_text() == "new"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_write_that_fails_leaves_the_former_report_whole(tmp_path, former, monkeypatch, error):
    def fail(self, *_, **__):
        raise error

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        write({"a.md": "new", "a.csv": "new"}, [picture()], tmp_path)
    assert contents(tmp_path) == former


def test_write_that_is_killed_leaves_the_former_report_whole(tmp_path, former, monkeypatch):
    """While the last picture is drawn, all former files are still there: nothing has to restore them later."""
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: seen.append(contents(tmp_path)))
    write({"a.md": "new", "a.csv": "new"}, [picture()], tmp_path)
    assert {name: content for name, content in seen[0].items() if not name.startswith(".")} == former
    assert (tmp_path / "a.md").read_text() == "new"


def test_write_puts_the_page_last(tmp_path, former, monkeypatch):
    """So that no page links to pictures that are not there."""
    order, really = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(os.path.basename(b)), really(a, b)))
    write({"a.md": "new"}, [picture()], tmp_path)
    assert order == ["a.png", "a.md"]


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
@pytest.mark.parametrize("name", ["a.md", "a.png"])
def test_write_refuses_what_is_no_file_in_its_place(tmp_path, kind, name):
    path, target = tmp_path / "out" / name, tmp_path / "target"
    target.write_text("mine")
    path.parent.mkdir()
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match=rf"{name} is no file .*; move it away, or choose another --out"):
        write({"a.md": "new"}, [picture()], tmp_path / "out")
    assert target.read_text() == "mine"
    assert os.listdir(tmp_path / "out") == [name]


def test_distinct_renames_what_would_be_overwritten():
    names = [drawn.name for drawn in distinct([picture(), picture("a_2.png"), picture(), picture()])]
    assert names == ["a.png", "a_2.png", "a_3.png", "a_4.png"]


def test_to_page_tells_that_not_all_data_sets_are_drawn():
    many = [changed(ALONE, dataset=f"d{i}") for i in range(21)]
    assert "Pictures show the first 20 of the 21 data sets." in to_page(summarize(many), [], [])
    assert "Pictures show" not in to_page(summarize(many[1:]), [], [])


def test_pictures_of_trials_name_them_in_their_titles():
    trial = "tested on 4,000 of 10,000 images"
    standard = runs("standard", 0.8, teacher_acc=None, trial=trial)
    swept = [run for T in (1.0, 2.0) for run in runs("logits", 0.83, T=T, trial=trial)]
    summary = summarize([*standard, *swept])
    pictures = report(summary, compare(summary.rows)).pictures
    titles = [p.figure.get_suptitle() or p.figure.axes[0].get_title("left") for p in pictures]
    assert len(titles) == 4
    assert all("CIFAR-10 (trial: tested on 4,000 of 10,000 images)" in title for title in titles)


def test_report_draws_each_data_set_by_itself(tmp_path):
    """A chart of several data sets would compare accuracies that have nothing in common."""
    sets = ["CIFAR-10", "a b", "a_b"]
    results = [
        run
        for dataset in sets
        for run in (*runs("standard", 0.8, teacher_acc=None, dataset=dataset), *runs("at", 0.83, dataset=dataset))
    ]
    summary = summarize(results)
    made = report(summary, compare(summary.rows))
    assert [picture.name for picture in made.pictures if picture.name.startswith("accuracy")] == [
        "accuracy_comparison_CIFAR-10.png",
        "accuracy_comparison_a_b.png",
        "accuracy_comparison_a_b_2.png",
    ]
    for picture, dataset in zip(made.pictures[::2], sets, strict=True):
        assert picture.figure.axes[0].get_title("left") == f"Test accuracy on {dataset}"
        assert len(picture.figure.axes[0].patches) == 2
    page = made.texts["results.md"]
    assert page.index("## CIFAR-10") < page.index("## a b") < page.index(r"## a_b") < page.index("## Notes")
    assert page.count("| standard |") == 3
    assert "## Compared with standard on a b" in page
    assert "data=" not in page


EVIL = "$5_$10 [bold] a|b\n\x1b[31m"
"""A formula to matplotlib, markup to rich, a table's end to Markdown and a colour to a terminal."""


def test_report_draws_names_as_text(tmp_path):
    standard = runs("standard", 0.8, teacher_acc=None, dataset=EVIL)
    swept = [
        run
        for T in (1.0, 2.0)
        for run in runs("logits", 0.83, T=T, student=EVIL, variant=EVIL, dataset=EVIL, warnings=[EVIL])
    ]
    summary = summarize([*standard, *swept])
    made = report(summary, compare(summary.rows))
    made.write(tmp_path)
    shown = r"$5_$10 [bold] a|b\n\x1b[31m"
    titles = [p.figure.get_suptitle() or p.figure.axes[0].get_title("left") for p in made.pictures]
    assert len(titles) == 4
    assert all(shown.replace("$", r"\$") in title for title in titles)
    page = (tmp_path / "results.md").read_text("utf-8")
    assert "\x1b" not in page
    assert r"# Results on \$5\_\$10 [bold] a\|b\\n\\x1b[31m" in page.splitlines()[0]
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert {len(line.replace(r"\|", "").split("|")) for line in table[:5]} == {len(table[0].split("|"))}


def test_report_draws_names_of_any_length_and_script(tmp_path):
    """Names of 1,000 characters once filled the memory, Arabic ones ended in a warning."""
    names = {"method": "_m" * 500, "dataset": "بيانات $x^{", "student": "s " * 500, "variant": "a.b=1 " * 200}
    hostile = [replace(run, **names, knobs={"k" * 1000: T}) for T in (1e308, -1e308) for run in runs("x", 0.8)]
    written = report(summarize(hostile)).write(tmp_path)
    assert sum(path.stat().st_size for path in written) < 3_000_000


def test_report_writes_page_table_and_pictures(tmp_path):
    before = dict(matplotlib.rcParams)
    summary = few()
    written = report(summary).write(tmp_path / "new" / "report")
    assert [path.name for path in written] == [
        "results.csv",
        "results.md",
        "accuracy_comparison.png",
        "distillation_comparison.png",
    ]
    page = written[1].read_text(encoding="utf-8")
    assert page.startswith("# Results on CIFAR-10\n")
    assert all(note in page for note in summary.notes)
    assert "(accuracy_comparison.png)" in page
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[2:])
    assert dict(matplotlib.rcParams) == before


def test_report_draws_several_comparisons(tmp_path):
    summary = few()
    written = report(summary, compare(summary.rows)).write(tmp_path)
    assert "difference_standard.png" in [path.name for path in written]
    assert "(difference_standard.png)" in (tmp_path / "results.md").read_text(encoding="utf-8")
