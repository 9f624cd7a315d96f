"""Placement, status and progress of a sweep's jobs, without running one."""

import threading

import pytest
from filelock import FileLock
from rich.console import Console

from kd.errors import UserError
from kd.runs.results import FILE, Result, read, write
from kd.sweeps.jobs import CURVES, Job, alone_in, place, settle, together
from kd.sweeps.progress import LONG, WIDE, Progress, count, duration, reasons, shown, table, wrapped


def job(number, *overrides, fingerprint=None, reason=None):
    return Job(("data=digits", *overrides), fingerprint or f"f{number}", str(number), reason)


def write_record(directory, fingerprint, status="done", val_acc=0.5, error=None, student="cnn16", epochs=1):
    directory.mkdir(exist_ok=True, parents=True)
    record = Result(
        method="logits", seed=0, dataset="d", epochs=epochs, status=status, fingerprint=fingerprint, val_acc=val_acc,
        error=error, student=student,
    )  # fmt: skip
    write(record, directory / FILE)


def write_curves(directory, epochs):
    directory.mkdir(exist_ok=True, parents=True)
    (directory / CURVES).write_text("".join(f"{line}\n" for line in ("epoch,loss", *range(epochs))))


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


@pytest.mark.parametrize("done", ["0", "1"])
def test_place_repeats_nothing_that_is_done_in_one_of_two_directories(tmp_path, done):
    """As where two sweeps were copied together."""
    for name in ("0", "1"):
        write_record(tmp_path / name, "f0", status="done" if name == done else "interrupted")
    only = job(0)
    assert place([only], tmp_path) == []
    assert (only.directory.name, only.status) == (done, "skipped")


def test_place_skips_a_job_that_repeats_another(tmp_path):
    jobs = [job(0, "T=4", fingerprint="same"), job(1, "T=4.0", fingerprint="same")]
    assert place(jobs, tmp_path) == jobs[:1]
    assert (jobs[1].status, jobs[1].why) == ("skipped", "the same as T=4")


def test_place_gives_no_directory_to_a_refused_job(tmp_path):
    jobs = [job(0, reason="T must be positive"), job(1)]
    assert place(jobs, tmp_path) == jobs[1:]
    assert (jobs[0].status, jobs[0].why) == ("refused", "T must be positive")


def test_place_leaves_a_truncated_record_alone(tmp_path):
    write_record(tmp_path / "0", "f0")
    text = (tmp_path / "0" / FILE).read_text()
    (tmp_path / "0" / FILE).write_text(text[: len(text) // 2])
    (only,) = place([job(0)], tmp_path)
    assert (only.directory.name, only.status) == ("1", "waiting")


def test_place_leaves_what_is_not_of_a_job_alone(tmp_path):
    """A folder of other files, one with a link in it and a link to one; what a killed job left is taken again."""
    (tmp_path / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "0" / "checkpoints" / "last.ckpt").write_text("mine")
    write_record(tmp_path / "1", "f0")
    (tmp_path / "1" / "train.log").symlink_to(tmp_path / "0" / "checkpoints" / "last.ckpt")
    (tmp_path / "2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    (tmp_path / "3" / ".hydra" / "hydra.yaml").write_text("")
    (only,) = place([job(0)], tmp_path)
    assert only.directory.name == "3"


def test_job_status_ignores_an_earlier_failure_until_there_is_a_new_record(tmp_path):
    write_record(tmp_path / "0", "f0", status="failed", error="first time")
    (only,) = place([job(0)], tmp_path)
    assert only.status == "waiting"
    write_record(tmp_path / "0", "f0", status="failed", error="second time")
    assert (only.status, only.why) == ("failed", "second time")


def test_settle_marks_what_a_killed_process_left_running(tmp_path):
    """As joblib's workers, killed before they can write; a process that is still at work has the lock."""
    jobs = [job(0), job(1), job(2)]
    place(jobs, tmp_path)
    for number, status in enumerate(("running", "running", "done")):
        write_record(jobs[number].directory, f"f{number}", status=status)
    with FileLock(jobs[1].directory / ".lock"):
        settle(jobs, seconds=0.05)
    assert [j.status for j in jobs] == ["interrupted", "running", "done"]
    assert read(jobs[0].directory / FILE).status == "interrupted"


def test_together_names_jobs_by_what_no_other_has():
    jobs = [job(number, f"method={method}", f"T={T}") for number, (method, T) in enumerate(
        (method, T) for method in ("standard", "logits") for T in (1, 4, 8)
    )]  # fmt: skip
    for each in jobs:
        each.label = " ".join(each.overrides[1:])
    assert together(jobs[:1], jobs) == "method=standard T=1"
    assert together(jobs[:3], jobs) == "method=standard (3 jobs)"
    assert together(jobs[:2], jobs) == "method=standard T=1, method=standard T=4"
    assert together(jobs[1:5], jobs) == "method=standard T=4, method=standard T=8, method=logits T=1 and 1 more"
    assert together(jobs, jobs) == "all 6 jobs"


def test_progress_prints_a_line_for_each_ended_job(tmp_path):
    write_record(
        tmp_path / "1", "f1", val_acc=0.99, student=None
    )  # a teacher's accuracy is not the best of the students
    jobs = [job(0, "T=1"), job(1, "T=2"), job(2, "T=3", reason="impossible"), job(3, "T=4"), job(4, "T=5")]
    place(jobs, tmp_path)
    time, lines = [0.0], []
    progress = Progress(jobs, lines.append, lambda: time[0])
    progress.update()
    assert lines == ["[1/5] skipped T=2: done before", "[2/5] refused T=3: impossible"]
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
    assert lines[3:] == ["[4/5] failed  T=1: diverged | 1:30 gone, 1 left in about 1:30 | best val 81.23 %: T=4"]
    assert count(jobs) == "1 done, 1 skipped, 1 failed, 1 refused, 1 waiting"
    assert reasons(jobs) == ["failed T=1: diverged", "refused T=3: impossible"]


def test_progress_prints_one_line_for_jobs_of_one_reason(tmp_path):
    jobs = [job(number, f"T={number}", reason="no such knob" if number else None) for number in range(6)]
    place(jobs, tmp_path)
    lines = []
    Progress(jobs, lines.append).update()
    assert lines == ["[5/6] refused T=1, T=2, T=3 and 2 more: no such knob"]
    write_record(tmp_path / "0", "f0")
    place(jobs, tmp_path)
    Progress(jobs, lines.append).update()
    assert lines[1:] == ["[1/6] skipped T=0: done before", "[6/6] refused T=1, T=2, T=3 and 2 more: no such knob"]


def test_progress_estimate_counts_the_epochs_of_all_jobs(tmp_path):
    """Four jobs side by side, one of them resumed after 4 of its 10 epochs: nearly all is done when the first ends."""
    write_record(tmp_path / "0", "f0", status="interrupted", epochs=10)
    write_curves(tmp_path / "0", 4)
    jobs = [job(number, f"T={number}") for number in range(4)]
    place(jobs, tmp_path)
    time, lines = [0.0], []
    progress = Progress(jobs, lines.append, lambda: time[0])
    for placed, epochs in zip(jobs, (10, 9, 9, 8), strict=True):
        write_record(placed.directory, placed.fingerprint, status="running", epochs=10)
        write_curves(placed.directory, epochs)
    write_record(jobs[0].directory, "f0", epochs=10)
    time[0] = 160
    progress.update()  # 32 epochs in 160 s, and 4 are left
    assert "| 2:40 gone, 3 left, 3 of them running, in about 0:20 |" in lines[0]


def test_progress_of_silent_jobs_prints_a_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("kd.sweeps.progress.POLL_SECONDS", 0.01)
    jobs = [job(0, "T=1"), job(1, "T=2")]
    place(jobs, tmp_path)
    time, lines, printed = [0.0], [], threading.Event()
    progress = Progress(jobs, lambda line: (lines.append(line), printed.set()), lambda: time[0])
    with progress.polling():
        time[0] = 61.0
        assert printed.wait(timeout=60)
    assert lines == ["[0/2] 1:01 gone, 2 left"]


def test_shown_keeps_both_ends_and_no_control_characters():
    assert shown("T=4 seed=1") == "T=4 seed=1"
    assert shown("one\n  two\x1b[31m\x07") == r"one two\x1b[31m\x07"
    long = shown(f"root={'x' * 20_000} seed=1")
    assert len(long) == WIDE
    assert long.startswith("root=xx")
    assert long.endswith("xx seed=1")
    told = shown("training diverged: " + "the loss is nan, " * 20 + "try a lower lr")
    assert told == f"training diverged: {'the loss is nan, ' * 3}the ... is nan, the loss is nan, try a lower lr"


def test_wrapped_breaks_between_words_at_a_terminal_only(monkeypatch):
    line = "[ 5/12] done    method=logits T=4 seed=1: val 81.23 % | 12:40 gone, 7 left in about 17:44"
    assert wrapped(line) == line
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert wrapped(line).splitlines() == [
        "[ 5/12] done    method=logits T=4 seed=1: val 81.23 % |",
        "        12:40 gone, 7 left in about 17:44",
    ]
    assert wrapped(f"root=/{'long-' * 30} seed=1").splitlines()[0] == f"root=/{'long-' * 30}"  # a path stays whole


def test_table_takes_settings_for_text(tmp_path, capsys):
    jobs = [job(0, "data.root=[v2]"), job(1, "data.root=[/b]")]
    place(jobs, tmp_path)
    Console(width=80).print(table(jobs))
    assert "data.root=[v2]" in (printed := capsys.readouterr().out)
    assert "data.root=[/b]" in printed


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
    listed = [str(cell) for cell in table(jobs).columns[0].cells]
    assert listed == ["3", *(str(i) for i in range(LONG - 9, LONG + 1))]


def test_alone_in_refuses_a_second_sweep_in_the_directory(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="another multirun is at work"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3661, "1:01:01")])
def test_duration_is_formatted_as_on_a_clock(seconds, text):
    assert duration(seconds) == text
