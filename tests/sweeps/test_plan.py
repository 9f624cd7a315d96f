"""The plan of a sweep on disk."""

import json

import pytest

from kd.errors import UserError
from kd.sweeps import plan
from kd.sweeps.jobs import place
from kd.sweeps.plan import FILE, Planned, read
from kd.sweeps.progress import Progress
from tests.sweeps.test_jobs import job, write_curves, write_record


def test_plan_of_a_sweep_says_where_each_job_runs_and_what_was_there(tmp_path):
    write_record(tmp_path / "0", "f0")
    write_record(tmp_path / "1", "f1", status="interrupted", epochs=10)
    write_curves(tmp_path / "1", 4)
    jobs = [job(0, "T=1"), job(1, "T=2"), job(2, "T=4"), job(3, "T=0", reason="T must be positive")]
    place(jobs, tmp_path)
    Progress(jobs, print)
    written = (tmp_path / "1" / "result.json").stat().st_mtime_ns
    found = read(tmp_path).jobs
    assert found[1:] == [
        Planned("T=2", "1", None, "", 0.4, written),
        Planned("T=4", "2", None, "", 0.0, None),
        Planned("T=0", None, "refused", "T must be positive", 0.0, None),
    ]
    assert (found[0].status, found[0].why) == ("skipped", "done before")


def test_plan_learns_of_a_job_that_is_refused_when_it_is_built(tmp_path):
    jobs = [job(0, "T=1"), job(1, "T=2")]
    place(jobs, tmp_path)
    progress = Progress(jobs, lambda line: None)
    began = read(tmp_path).began
    jobs[1].reason, jobs[1].directory = "its network has no such stage", None
    progress.update()
    assert read(tmp_path).jobs[1] == Planned("T=2", None, "refused", "its network has no such stage", 0.0, None)
    assert read(tmp_path).began == began


def test_plan_of_a_process_that_died_after_some_of_its_jobs_can_be_read(tmp_path):
    """All of its jobs have the reason by then, also those that were done before."""
    jobs, lines = [job(0, "T=1"), job(1, "T=2")], []
    place(jobs, tmp_path)
    progress = Progress(jobs, lines.append)
    for one, status in zip(jobs, ("done", "failed"), strict=True):
        write_record(one.directory, one.fingerprint, status=status)
        one.reason = "its process was ended by SIGKILL"
    progress.update()
    assert [(one.status, one.why) for one in read(tmp_path).jobs] == [(None, ""), ("failed", jobs[1].reason)]
    assert [("done" in line, "SIGKILL" in line) for line in lines] == [(True, False), (False, True)]


def test_plan_that_cannot_be_written_stops_no_sweep(tmp_path):
    jobs = [job(0, "T=1")]
    place(jobs, tmp_path)
    (tmp_path / FILE).mkdir()
    plan.write(jobs, [0.0], began=0.0)
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


def test_plan_of_an_older_version_is_none(tmp_path):
    assert read(tmp_path) is None


GOOD = {"settings": "T=1", "directory": "0", "status": None, "why": "", "trained": 0, "stale": None}


@pytest.mark.parametrize(
    "change",
    [
        *({"directory": name} for name in ("../other", "a/b", "..", "", 3)),
        *({"trained": share} for share in (2, -1, float("nan"), "0")),
        *({"status": "gone"}, {"why": None}, {"settings": 3}, {"stale": "x"}, {"more": 1}),
    ],
    ids=str,
)
def test_plan_of_a_stranger_is_checked(tmp_path, change):
    (tmp_path / FILE).write_text(json.dumps({"began": 0, "jobs": [GOOD]}))
    assert read(tmp_path).jobs == [Planned("T=1", "0", None, "", 0, None)]
    (tmp_path / FILE).write_text(json.dumps({"began": 0, "jobs": [GOOD | change]}))
    with pytest.raises(UserError, match=r"jobs\.json: not a sweep's list of jobs"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"jobs": []}', '{"jobs": 3, "began": 0}', '{"jobs": [], "began": 1e300}', "[" * 9999],
)
def test_plan_that_is_none_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=r"jobs\.json: not a sweep's list of jobs"):
        read(tmp_path)
