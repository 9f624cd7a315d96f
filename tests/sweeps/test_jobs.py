"""What a sweep does with its jobs, without running one."""

import threading

import pytest

from kd.errors import UserError
from kd.runs.results import FILE, Result, write
from kd.sweeps.jobs import Job, alone_in, place
from kd.sweeps.progress import LONG, Progress, clock, count, table


def job(number, *overrides, fingerprint=None, reason=None):
    return Job(("data=digits", *overrides), fingerprint or f"f{number}", str(number), reason)


def leave(directory, fingerprint, status="done", val_acc=0.5, error=None, student="cnn16"):
    directory.mkdir(exist_ok=True, parents=True)
    record = Result(
        method="logits", seed=0, dataset="d", epochs=1, status=status, fingerprint=fingerprint, val_acc=val_acc,
        error=error, student=student,
    )  # fmt: skip
    write(record, directory / FILE)


def test_new_jobs_get_directories_by_number(tmp_path):
    jobs = [job(0, "T=1"), job(1, "T=2")]
    assert place(jobs, tmp_path) == jobs
    assert [j.directory for j in jobs] == [tmp_path / "0", tmp_path / "1"]
    assert [j.label for j in jobs] == ["T=1", "T=2"]


def test_a_job_is_known_by_its_settings_whatever_its_number(tmp_path):
    leave(tmp_path / "0", "f1")
    leave(tmp_path / "1", "f2", status="failed")
    jobs = [job(0), job(1), job(2)]
    assert place(jobs, tmp_path) == [jobs[0], jobs[2]]
    assert [j.directory.name for j in jobs] == ["2", "0", "1"]
    assert [j.status for j in jobs] == ["waiting", "skipped", "waiting"]


def test_jobs_that_ask_for_the_same_run_once(tmp_path):
    jobs = [job(0, "T=4", fingerprint="same"), job(1, "T=4.0", fingerprint="same")]
    assert place(jobs, tmp_path) == jobs[:1]
    assert (jobs[1].status, jobs[1].why) == ("skipped", "the same as T=4")


def test_a_refused_job_has_no_place(tmp_path):
    jobs = [job(0, reason="T must be positive"), job(1)]
    assert place(jobs, tmp_path) == jobs[1:]
    assert (jobs[0].status, jobs[0].why) == ("refused", "T must be positive")


def test_a_record_that_was_cut_short_is_nothing(tmp_path):
    leave(tmp_path / "0", "f0")
    text = (tmp_path / "0" / FILE).read_text()
    (tmp_path / "0" / FILE).write_text(text[: len(text) // 2])
    (only,) = place([job(0)], tmp_path)
    assert (only.directory.name, only.status) == ("0", "waiting")


def test_an_earlier_failure_is_forgotten_until_there_is_a_new_record(tmp_path):
    leave(tmp_path / "0", "f0", status="failed", error="first time")
    (only,) = place([job(0)], tmp_path)
    assert only.status == "waiting"
    leave(tmp_path / "0", "f0", status="failed", error="second time")
    assert (only.status, only.why) == ("failed", "second time")


def test_the_lines_of_a_sweep(tmp_path):
    leave(tmp_path / "1", "f1", val_acc=0.99, student=None)  # a teacher is not what a sweep looks for
    jobs = [job(0, "T=1"), job(1, "T=2"), job(2, "T=3", reason="impossible"), job(3, "T=4"), job(4, "T=5")]
    place(jobs, tmp_path)
    time, said = [0.0], []
    progress = Progress(jobs, said.append, lambda: time[0])
    progress.look()
    assert said == ["[1/5] skipped T=2: done before, val 99.00 %", "[2/5] refused T=3: impossible"]
    progress.look()
    assert len(said) == 2

    time[0] = 60
    leave(jobs[0].directory, "f0", status="running")
    leave(jobs[3].directory, "f3", val_acc=0.8123)
    progress.look()
    assert said[2:] == [
        "[3/5] done    T=4: val 81.23 % | 1:00 gone, 2 left, 1 of them running, in about 2:00 | best val 81.23 %: T=4"
    ]
    time[0] = 90
    leave(jobs[0].directory, "f0", status="failed", val_acc=None, error="diverged")
    progress.look()
    assert said[3:] == ["[4/5] failed  T=1: diverged | 1:30 gone, 1 left in about 0:45 | best val 81.23 %: T=4"]
    assert count(jobs) == "1 done, 1 skipped, 1 failed, 1 refused, 1 waiting"


def test_a_watched_sweep_tells_of_every_job(tmp_path, monkeypatch):
    """Of the first while the second runs, and of the second although nobody looks again."""
    monkeypatch.setattr("kd.sweeps.progress.POLL_SECONDS", 0.01)
    jobs = [job(0, "T=1"), job(1, "T=2")]
    place(jobs, tmp_path)
    said, told = [], threading.Event()
    progress = Progress(jobs, lambda line: (said.append(line), told.set()))
    with progress.watching():
        leave(jobs[0].directory, "f0")
        assert told.wait(timeout=60)
        monkeypatch.setattr("kd.sweeps.progress.POLL_SECONDS", 1000)
        leave(jobs[1].directory, "f1")
    assert [line.split(":")[0] for line in said] == ["[1/2] done    T=1", "[2/2] done    T=2"]


def test_the_table_of_a_long_sweep_names_the_best_and_the_failed(tmp_path):
    jobs = [job(i, f"T={i}") for i in range(LONG + 1)]
    place(jobs, tmp_path)
    for i, one in enumerate(jobs):
        leave(one.directory, f"f{i}", status="failed" if i == 3 else "done", val_acc=None if i == 3 else i / 100)
    shown = list(table(jobs).columns[0].cells)
    assert shown == ["3", *(str(i) for i in range(LONG - 9, LONG + 1))]


def test_two_sweeps_cannot_share_a_directory(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="another multirun is at work"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (59.6, "1:00"), (3661, "1:01:01")])
def test_clock(seconds, said):
    assert clock(seconds) == said
