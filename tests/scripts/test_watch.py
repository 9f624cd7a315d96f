"""The dashboard as a program."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from kd.report.html.page import unpacked
from kd.runs.results import write
from tests import processes
from tests.common import ROOT
from tests.report.made import ALONE
from tests.sweeps.test_look import put

SCRIPT = ROOT / "scripts" / "watch.py"
RUNNING = replace(ALONE, status="running", command="T=1")


def watch(*arguments, cwd):
    return processes.run(SCRIPT, *arguments, cwd=cwd)


def test_watch_once_prints_one_picture_in_plain_text(tmp_path):
    put(tmp_path / "sweep" / "0")
    put(tmp_path / "sweep" / "1", RUNNING, ["0,1,0.5,1,0.5"])
    done = watch("sweep", "--once", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sweep\n2 runs: 1 done, 1 running\n")
    assert not any(ord(char) < 32 and char != "\n" for char in done.stdout)
    assert {path.name for path in (tmp_path / "sweep").rglob("*")} == {"0", "1", "metrics.csv", "result.json"}


def test_watch_ends_with_the_sweep_and_keeps_the_report_up_to_date(tmp_path):
    put(tmp_path / "sweep" / "0")
    put(tmp_path / "sweep" / "1", RUNNING)
    process = processes.start(SCRIPT, "sweep", "--page", "--refresh", "1", cwd=tmp_path)
    page = tmp_path / "sweep" / "report" / "results.md"
    deadline = time.monotonic() + 60
    while not page.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    write(replace(ALONE, seed=1), tmp_path / "sweep" / "1" / "result.json")
    printed, errors = process.communicate()
    assert (process.wait(), errors) == (0, "")
    lines = printed.splitlines()
    assert "1 done, 1 running" in lines[0]
    assert "2 done | nothing left to do" in lines[1]
    assert lines[-1] == "report of 2 runs: sweep/report"
    assert "standard (n = 2)" in page.read_text("utf-8")
    assert unpacked(page.with_name("index.html").read_text("utf-8"))["rows"][0]["n"] == 2


def test_watch_tells_where_the_report_cannot_be_written(tmp_path):
    put(tmp_path / "sweep" / "0")
    (tmp_path / "taken").touch()
    done = watch("sweep", "--once", "--out", "taken", cwd=tmp_path)
    assert "no report: the report cannot be written to taken" in done.stdout
    put(tmp_path / "begun" / "0", RUNNING)
    assert "no report yet: no run is done" in watch("begun", "--once", "--page", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: no such directory"),
        (["empty"], "empty: no run in it or below it"),
        (["empty", "--refresh", "0"], "must be at least 1"),
        ([], "required: DIR; see --help"),
        (["a\x1b[31m"], r"a\x1b[31m: no such directory"),
    ],
)
def test_watch_answers_a_mistake_in_one_line(tmp_path, arguments, message, one_line):
    (tmp_path / "empty").mkdir()
    assert message in one_line(watch(*arguments, cwd=tmp_path))


def test_watch_in_a_terminal_redraws_and_leaves_the_cursor_at_ctrl_c(tmp_path):
    put(tmp_path / "sweep" / "0", RUNNING, ["0,1,0.5,1,0.5"])
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "sweep", "--refresh", "1"],
        cwd=tmp_path,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as the suite in the background ignores it
    )
    os.close(theirs)
    printed, interrupted = b"", False
    limit = threading.Timer(60, process.kill)
    limit.start()
    try:
        while True:
            part = os.read(ours, 65536)
            printed += part
            if b"1 running" in printed and not (tmp_path / "sweep" / "1").exists():
                put(tmp_path / "sweep" / "1")
            if b"1 done" in printed and not interrupted:
                process.send_signal(signal.SIGINT)
                interrupted = True
    except OSError:  # the terminal's other end is closed
        pass
    limit.cancel()
    assert process.wait() == 130
    assert b"\x1b[?25l" in printed  # no cursor while it draws
    assert printed.rindex(b"\x1b[?25h") > printed.rindex(b"\x1b[?25l")
    assert b"Traceback" not in printed


def test_watch_ends_with_its_reader(tmp_path):
    put(tmp_path / "sweep" / "0")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, SCRIPT, ".", "--once"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""
