"""What programs print while one waits."""

import io
import logging
import threading
import time

import pytest

from kd.errors import UserError
from kd.terminal import Parser, file, outcome, save, shows_progress, waiting, with_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes stderr a terminal, with log lines on it, and waits of any length ones that are shown.

    To be called by the test: pytest puts its own stderr in place when a test begins.
    """

    def terminal():
        made = Terminal()
        monkeypatch.setattr("sys.stderr", made)
        monkeypatch.setattr("kd.terminal.PATIENCE", 0.0)
        monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        return made

    return terminal


def test_with_progress_shows_a_bar_that_goes_at_the_end(terminal):
    shown = terminal()
    assert list(with_progress("abcd", "decoding images")) == list("abcd")
    assert "decoding images" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K")  # its line is empty again


def test_with_progress_of_a_short_wait_shows_nothing(terminal, monkeypatch):
    shown = terminal()
    monkeypatch.setattr("kd.terminal.PATIENCE", 60.0)
    assert list(with_progress(range(3), "testing")) == [0, 1, 2]
    with waiting("loading"):
        pass
    assert shown.getvalue() == ""


def test_with_progress_ends_its_bar_where_the_work_fails(terminal):
    shown = terminal()

    def work():
        for item in with_progress(range(3), "decoding images"):
            if item:
                raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - ours
        work()
    assert shown.getvalue().endswith("\x1b[2K")
    assert shown.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_waiting_shows_what_is_done(terminal):
    shown = terminal()
    with waiting("loading PyTorch"):
        deadline = time.monotonic() + 60
        while "loading PyTorch" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "loading PyTorch" in shown.getvalue()
    assert "\x1b[?25h" in shown.getvalue()


def test_progress_is_silent_in_a_pipe_beside_other_jobs_and_in_threads(terminal, monkeypatch, tmp_path):
    terminal()
    assert shows_progress()
    found = []
    thread = threading.Thread(target=lambda: found.append(shows_progress()))
    thread.start()
    thread.join()
    assert found == [False]
    handler = logging.FileHandler(tmp_path / "train.log")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])  # as jobs side by side have it
    assert not shows_progress()
    handler.close()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as the scripts have it
    assert shows_progress()
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert not shows_progress()
    assert list(with_progress(iter("ab"), "decoding images")) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 300 + ".json", "File name too long"),
        ("nowhere/speed.json", "no folder nowhere"),
        (".", "is a folder"),
    ],
)
def test_file_names_what_cannot_be_written(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    parser = Parser()
    parser.add_argument("--json", type=file)
    with pytest.raises(UserError) as mistake:
        parser.parse_args(["--json", name])
    assert str(mistake.value) == f"argument --json: {name}: {reason}; see --help"


def test_save_writes_a_text_or_names_the_reason(tmp_path):
    save(tmp_path / "cost.md", "| × logits |\n")
    assert (tmp_path / "cost.md").read_bytes() == "| × logits |\n".encode()
    gone = tmp_path / "gone" / "cost.md"
    with pytest.raises(UserError) as mistake:
        save(gone, "")
    assert str(mistake.value) == f"{gone}: cannot be written: No such file or directory"


def test_save_leaves_a_link_what_it_is(tmp_path):
    (tmp_path / "results").mkdir()
    (link := tmp_path / "latest.md").symlink_to(tmp_path / "results" / "3.md")
    for text in ("a\n", "b\n"):
        save(link, text)
        assert link.is_symlink()
        assert (tmp_path / "results" / "3.md").read_text() == text


def fails():
    raise UserError("a file\nis missing")


def test_outcome_tells_a_mistake_and_raises_it_on_request(capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert outcome("report.py", fails) == 1
    assert outcome("report.py", fails, explained=str) == 1  # its lines are left as they are
    assert capsys.readouterr().err == "report.py: a file\\nis missing\nreport.py: a file\nis missing\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError):
        outcome("report.py", fails)
