"""Runs on disk, finished or not, as whoever looks on sees them."""

import json
import math
import os
import time
from dataclasses import replace

import pytest
from filelock import FileLock

from kd.errors import UserError
from kd.runs.results import FILE, read, write
from kd.sweeps.jobs import CURVES, place
from kd.sweeps.look import QUIET_SECONDS, Reader, read_curves
from kd.sweeps.progress import Progress
from tests.report.made import ALONE
from tests.sweeps.test_jobs import job, write_curves, write_record

HEADING = "epoch,train/loss,train/acc,val/nll,val/acc"


def put(directory, run=ALONE, curves=None):
    directory.mkdir(parents=True, exist_ok=True)
    write(run, directory / FILE)
    if curves is not None:
        (directory / CURVES).write_text("\n".join([HEADING, *curves]) + "\n")


def look(directory):
    return Reader(directory).look()


def test_look_at_a_sweep_finds_jobs_by_its_plan(tmp_path):
    write_record(tmp_path / "0", "f0")
    write_record(tmp_path / "1", "f1", status="failed", error="the disk was full")
    write_record(tmp_path / "other", "another command's")
    jobs = [job(number, f"T={number}") for number in range(4)] + [job(4, "T=x", reason="T must be a number")]
    place(jobs, tmp_path)
    Progress(jobs, print)
    (sweep,) = look(tmp_path).sweeps
    assert [(run.settings, run.status) for run in sweep.runs] == [
        ("T=0", "skipped"), ("T=1", "waiting"), ("T=2", "waiting"), ("T=3", "waiting"), ("T=x", "refused")
    ]  # fmt: skip
    assert sweep.earlier == 1
    write_record(tmp_path / "1", "f1", status="failed", error="training diverged")
    write_record(tmp_path / "2", "f2", status="running", epochs=10)
    write_curves(tmp_path / "2", 4)
    (sweep,) = look(tmp_path).sweeps
    assert [(run.status, run.why, run.trained) for run in sweep.runs[1:4]] == [
        ("failed", "training diverged", 0.0), ("running", "", 0.4), ("waiting", "", 0.0)
    ]  # fmt: skip


def test_look_sees_what_failed_in_the_sweep_and_was_continued_by_itself(tmp_path):
    jobs = [job(0, "T=1"), job(1, "T=2")]
    place(jobs, tmp_path)
    for one in jobs:
        one.reason = "cannot save the run: No space left on device"
    Progress(jobs, print)
    write_record(tmp_path / "1", "f1", status="done")
    (sweep,) = look(tmp_path).sweeps
    assert [run.status for run in sweep.runs] == ["failed", "done"]


def test_look_estimates_by_epochs_since_the_command_was_given(tmp_path):
    """Two jobs of ten epochs, one of them resumed after its fourth: 8 epochs in 80 s leave 8, which is 80 s."""
    write_record(tmp_path / "0", "f0", status="interrupted", epochs=10)
    write_curves(tmp_path / "0", 4)
    jobs = [job(0, "T=1"), job(1, "T=2")]
    place(jobs, tmp_path)
    Progress(jobs, print)
    for place_, epochs in (("0", 8), ("1", 4)):
        write_record(tmp_path / place_, f"f{place_}", status="running", epochs=10)
        write_curves(tmp_path / place_, epochs)
    (sweep,) = look(tmp_path).sweeps
    assert sweep.seconds_left(sweep.began + 80) == pytest.approx(80)
    assert sweep.seconds_left(sweep.began - 5) is None  # a clock that was put back


def test_look_without_a_plan_names_runs_by_what_differs_and_estimates_by_what_it_sees(tmp_path, monkeypatch):
    put(tmp_path / "a", replace(ALONE, command="data=digits T=1", status="running", epochs=10), ["0,1,0.5,,"] * 5)
    put(tmp_path / "b", replace(ALONE, command="data=digits T=4", date="2026-01-01T00:00:00"))
    reader = Reader(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    (sweep,) = reader.look().sweeps
    assert {run.settings: run.status for run in sweep.runs} == {"T=1": "running", "T=4": "done"}
    put(tmp_path / "a", replace(ALONE, command="data=digits T=1", status="running", epochs=10), ["0,1,0.5,,"] * 6)
    monkeypatch.setattr(time, "time", lambda: 1030.0)
    state = reader.look()
    assert state.sweeps[0].seconds_left(1030.0) == pytest.approx(120)  # an epoch took 30 s, and four are left


def test_look_at_one_run_and_at_what_it_does_before_its_first_epoch(tmp_path):
    put(tmp_path / "run", replace(ALONE, status="running"))
    (tmp_path / "run" / "train.log").write_text("digits: 1,438 images\ntraining the teacher\n")
    (run,) = look(tmp_path / "run").runs
    assert (run.status, run.why) == ("running", "training the teacher")
    put(tmp_path / "run", replace(ALONE, status="running"), ["0,2.3,0.1,2.2,0.125"])
    (run,) = look(tmp_path / "run").runs
    assert (run.why, run.curves.acc, run.curves.loss, run.curves.validation) == ("", [0.125], [2.2], True)


def test_look_at_many_sweeps(tmp_path):
    for day in ("2026-11-28", "2026-11-29"):
        put(tmp_path / day / "10-00-00" / "0")
        put(tmp_path / day / "report" / "0")
    put(tmp_path / "elsewhere" / "0")
    (tmp_path / "2026-11-29" / "link").symlink_to(tmp_path / "elsewhere")
    places = {sweep.directory for sweep in look(tmp_path).sweeps}
    assert places == {
        tmp_path / "2026-11-28" / "10-00-00",
        tmp_path / "2026-11-29" / "10-00-00",
        tmp_path / "elsewhere",
    }


def test_curves_are_those_of_training_without_a_validation_split(tmp_path):
    (tmp_path / CURVES).write_text("epoch,train/loss,train/acc\n0,2.5,0.25\n1,nan,\n")
    curves = read_curves(tmp_path / CURVES)
    assert (curves.acc[0], curves.loss[0], curves.validation, curves.epochs) == (0.25, 2.5, False, 2)
    assert math.isnan(curves.acc[1])
    assert math.isnan(curves.loss[1])


def test_look_names_and_counts_what_is_broken(tmp_path):
    put(tmp_path / "0")
    for number, text in enumerate(("", "{", '{"method": 3}', "\x1b[31m"), start=1):
        put(tmp_path / str(number))
        (tmp_path / str(number) / FILE).write_text(text)
    put(tmp_path / "5", replace(ALONE, status="running"))
    for name, text in (("6", "epoch,val/acc\n0,high\n"), ("7", "\x00\xff"), ("8", 'epoch\n"0')):
        put(tmp_path / name, replace(ALONE, status="running"))
        (tmp_path / name / CURVES).write_bytes(text.encode("latin-1"))
    (tmp_path / "9").mkdir()
    os.mkfifo(tmp_path / "9" / FILE)
    (tmp_path / "jobs.json").write_text("{")
    state = look(tmp_path)
    assert len(state.unread) == 9
    assert state.counts() == {"done": 1, "unreadable": 5, "running": 4}
    assert all(str(tmp_path) in line for line in state.unread)
    assert all(run.curves.acc == [] for run in state.runs if run.status == "running")


def test_look_reads_again_only_what_has_changed(tmp_path, monkeypatch):
    put(tmp_path / "0", replace(ALONE, status="running"), ["0,1,0.5,1,0.5"])
    put(tmp_path / "1")
    opened = []
    monkeypatch.setattr("kd.sweeps.look.read", lambda path: (opened.append(path.parent.name), read(path))[1])
    reader = Reader(tmp_path)
    reader.look()
    reader.look()
    assert opened == ["0", "1"]
    put(tmp_path / "0")
    reader.look()
    assert opened == ["0", "1", "0"]


def test_sweep_is_over_when_nothing_is_left_or_nobody_is_at_work(tmp_path):
    jobs = [job(0, "T=1"), job(1, "T=2")]
    place(jobs, tmp_path)
    Progress(jobs, print)
    write_record(tmp_path / "0", "f0")
    (sweep,) = look(tmp_path).sweeps
    now = time.time()
    assert not sweep.over(now)
    assert sweep.over(now + QUIET_SECONDS + 60)
    write_record(tmp_path / "1", "f1", status="failed")
    (sweep,) = look(tmp_path).sweeps
    assert sweep.over(now)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="needs the kernel's list of locks")
def test_sweep_whose_lock_is_held_is_not_over_and_its_lock_is_not_taken(tmp_path):
    put(tmp_path / "0")
    with FileLock(tmp_path / ".lock"):
        (sweep,) = look(tmp_path).sweeps
        assert sweep.held
        assert not sweep.over(time.time() + 10 * QUIET_SECONDS)
    reader = Reader(tmp_path)
    assert reader.look().over
    with FileLock(tmp_path / ".lock").acquire(timeout=0):
        pass


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="needs the kernel's list of locks")
def test_single_run_whose_lock_is_held_is_not_over(tmp_path):
    """Its teacher may be trained for longer than nothing of its own changes."""
    put(tmp_path / "day" / "time", replace(ALONE, status="running"))
    assert look(tmp_path / "day").sweeps[0].over(time.time() + 10 * QUIET_SECONDS)
    with FileLock(tmp_path / "day" / "time" / ".lock"):
        assert not look(tmp_path / "day").sweeps[0].over(time.time() + 10 * QUIET_SECONDS)


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_look_at_what_holds_no_runs_is_one_line(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no run in it or below it" if kind == "empty" else "no such directory"):
        look(tmp_path / kind)


def test_look_at_a_sweep_that_has_not_begun_its_first_run(tmp_path):
    planned = {"settings": "T=1", "directory": "0", "status": None, "why": "", "trained": 0, "stale": None}
    (tmp_path / "jobs.json").write_text(json.dumps({"began": time.time(), "jobs": [planned]}))
    assert look(tmp_path).counts() == {"waiting": 1}
    assert not look(tmp_path).over
