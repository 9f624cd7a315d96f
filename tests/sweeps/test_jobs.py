"""Placement, status and progress of a sweep's jobs, without running one."""

import threading

import pytest

from kd.errors import UserError
from kd.runs.results import FILE, Result, write
from kd.sweeps.jobs import Job, alone_in, place
from kd.sweeps.progress import LONG, Progress, count, duration, table


def job(number, *overrides, fingerprint=None, reason=None):
    return Job(("data=digits", *overrides), fingerprint or f"f{number}", str(number), reason)


def write_record(directory, fingerprint, status="done", val_acc=0.5, error=None, student="cnn16"):
    directory.mkdir(exist_ok=True, parents=True)
    record = Result(
        method="logits", seed=0, dataset="d", epochs=1, status=status, fingerprint=fingerprint, val_acc=val_acc,
        error=error, student=student,
    )  # fmt: skip
    write(record, directory / FILE)


def test_place_numbers_the_directories_of_new_jobs(tmp_path):
    jobs = [job(0, "T=1"), job(1, "T=2")]
    assert place(jobs, tmp_path) == jobs
    assert [j.directory for j in jobs] == [tmp_path / "0", tmp_path / "1"]
    assert [j.label for j in jobs] == ["T=1", "T=2"]


def test_place_finds_a_job_by_its_settings_whatever_its_number(tmp_path):
    write_record(tmp_path / "0", "f1")
    write_record(tmp_path / "1", "f2", status="failed")
    jobs = [job(0), job(1), job(2)]
    assert place(jobs, tmp_path) == [jobs[0], jobs[2]]
    assert [j.directory.name for j in jobs] == ["2", "0", "1"]
    assert [j.status for j in jobs] == ["waiting", "skipped", "waiting"]


def test_place_skips_a_job_that_repeats_another(tmp_path):
    jobs = [job(0, "T=4", fingerprint="same"), job(1, "T=4.0", fingerprint="same")]
    assert place(jobs, tmp_path) == jobs[:1]
    assert (jobs[1].status, jobs[1].why) == ("skipped", "the same as T=4")


def test_place_gives_no_directory_to_a_refused_job(tmp_path):
    jobs = [job(0, reason="T must be positive"), job(1)]
    assert place(jobs, tmp_path) == jobs[1:]
    assert (jobs[0].status, jobs[0].why) == ("refused", "T must be positive")


def test_place_ignores_a_truncated_record(tmp_path):
    write_record(tmp_path / "0", "f0")
    text = (tmp_path / "0" / FILE).read_text()
    (tmp_path / "0" / FILE).write_text(text[: len(text) // 2])
    (only,) = place([job(0)], tmp_path)
    assert (only.directory.name, only.status) == ("0", "waiting")


def test_job_status_ignores_an_earlier_failure_until_there_is_a_new_record(tmp_path):
    write_record(tmp_path / "0", "f0", status="failed", error="first time")
    (only,) = place([job(0)], tmp_path)
    assert only.status == "waiting"
    write_record(tmp_path / "0", "f0", status="failed", error="second time")
    assert (only.status, only.why) == ("failed", "second time")


def test_progress_prints_a_line_for_each_ended_job(tmp_path):
    write_record(
        tmp_path / "1", "f1", val_acc=0.99, student=None
    )  # a teacher's accuracy is not the best of the students
    jobs = [job(0, "T=1"), job(1, "T=2"), job(2, "T=3", reason="impossible"), job(3, "T=4"), job(4, "T=5")]
    place(jobs, tmp_path)
    time, lines = [0.0], []
    progress = Progress(jobs, lines.append, lambda: time[0])
    progress.update()
    assert lines == ["[1/5] skipped T=2: done before, val 99.00 %", "[2/5] refused T=3: impossible"]
    progress.update()
    assert len(lines) == 2

    time[0] = 60
    write_record(jobs[0].directory, "f0", status="running")
    write_record(jobs[3].directory, "f3", val_acc=0.8123)
    progress.update()
    assert lines[2:] == [
        "[3/5] done    T=4: val 81.23 % | 1:00 gone, 2 left, 1 of them running, in about 2:00 | best val 81.23 %: T=4"
    ]
    time[0] = 90
    write_record(jobs[0].directory, "f0", status="failed", val_acc=None, error="diverged")
    progress.update()
    assert lines[3:] == ["[4/5] failed  T=1: diverged | 1:30 gone, 1 left in about 0:45 | best val 81.23 %: T=4"]
    assert count(jobs) == "1 done, 1 skipped, 1 failed, 1 refused, 1 waiting"


def test_progress_polling_prints_every_job(tmp_path, monkeypatch):
    """The first one while the second runs, the second one when polling ends."""
    monkeypatch.setattr("kd.sweeps.progress.POLL_SECONDS", 0.01)
    jobs = [job(0, "T=1"), job(1, "T=2")]
    place(jobs, tmp_path)
    lines, printed = [], threading.Event()
    progress = Progress(jobs, lambda line: (lines.append(line), printed.set()))
    with progress.polling():
        write_record(jobs[0].directory, "f0")
        assert printed.wait(timeout=60)
        monkeypatch.setattr("kd.sweeps.progress.POLL_SECONDS", 1000)
        write_record(jobs[1].directory, "f1")
    assert [line.split(":")[0] for line in lines] == ["[1/2] done    T=1", "[2/2] done    T=2"]


def test_table_of_a_long_sweep_lists_the_best_and_the_failed(tmp_path):
    jobs = [job(i, f"T={i}") for i in range(LONG + 1)]
    place(jobs, tmp_path)
    for i, placed in enumerate(jobs):
        write_record(
            placed.directory, f"f{i}", status="failed" if i == 3 else "done", val_acc=None if i == 3 else i / 100
        )
    shown = list(table(jobs).columns[0].cells)
    assert shown == ["3", *(str(i) for i in range(LONG - 9, LONG + 1))]


def test_alone_in_refuses_a_second_sweep_in_the_directory(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="another multirun is at work"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3661, "1:01:01")])
def test_duration_is_formatted_as_on_a_clock(seconds, text):
    assert duration(seconds) == text
