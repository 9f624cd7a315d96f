import os

import pytest
from matplotlib.figure import Figure

from kd.errors import UserError
from kd.report.page import distinct, to_page, write
from kd.report.summary import summarize
from kd.report.sweeps import Picture
from tests.report.made import ALONE, changed


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
