"""The picture of runs in a terminal."""

import io
import json
import math
import time
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from kd.runs.results import FILE, write
from kd.sweeps.dashboard import Dashboard, headline
from kd.sweeps.jobs import CURVES
from kd.sweeps.look import Reader
from tests.report.made import ALONE, changed
from tests.sweeps.test_look import HEADING, put


def drawn(directory, width=100, height=None, encoding="utf-8", notes=()):
    """Return the lines of a picture, as a pipe has them."""
    return lines_of(Dashboard(width, height, encoding), Reader(directory).look(), notes)


def lines_of(dashboard, state, notes=()):
    text = io.StringIO()
    Console(file=text, width=dashboard.width).print(dashboard.frame(state, notes))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def sweep_of(directory, count):
    """Make a sweep of many jobs: seven tenths have begun, of which most are done."""
    jobs = []

    def put(place, run, curves=()):
        place.mkdir(parents=True)
        (place / FILE).write_text(json.dumps(asdict(run)))
        if curves:
            (place / CURVES).write_text("\n".join([HEADING, *curves, ""]))

    for i in range(count):
        label = f"T={i // 3} seed={i % 3}"
        jobs.append({"settings": label, "directory": str(i), "status": None, "why": "", "trained": 0, "stale": None})
        if i < 0.6 * count:
            status = "failed" if i % 50 == 7 else "done"
            acc = 0.5 + i / 10 / count
            made = changed(ALONE, T=float(i // 3), seed=i % 3, val_acc=acc, status=status, error="lr=1e9 diverged")
            put(directory / str(i), replace(made, epoch_val_acc=[0.1, acc], error=made.error if i % 50 == 7 else None))
        elif i < 0.7 * count:
            curves = [f"{epoch},2,0.1,{2 / (epoch + 1)},{0.5 - 0.4 / (epoch + 1)}" for epoch in range(1 + i % 20)]
            put(directory / str(i), changed(ALONE, T=float(i // 3), seed=i % 3, status="running"), curves)
    (directory / "jobs.json").write_text(json.dumps({"began": time.time() - 3600, "jobs": jobs}))


def test_frame_has_jobs_curves_the_best_and_the_end(tmp_path):
    curve = [0.2, 0.4, 0.8]
    put(tmp_path / "0", changed(ALONE, command="T=1 x=1", T=1.0, val_acc=0.8, epoch_val_acc=curve, test_acc=0.1))
    put(tmp_path / "1", changed(ALONE, command="T=4 x=1", T=4.0, val_acc=0.7, test_acc=0.9))
    put(tmp_path / "2", replace(ALONE, command="T=8 x=1", status="running", epochs=4), ["0,1,1,2,0.5", "1,1,1,1,0.25"])
    put(tmp_path / "3", replace(ALONE, command="T=9 x=1", status="failed", error="training diverged"))
    lines = drawn(tmp_path, 160)
    assert lines[1] == "4 runs: 2 done, 1 running, 1 failed"
    assert lines[2].split()[1:3] == ["83", "%"]
    (running,) = (line.split() for line in lines if line.startswith("2 "))
    assert running[:8] == ["2", "running", "T=8", "2/4", "25.00", "█▁", "1", "█▁"]
    assert "failed T=9: training diverged" in lines
    (best,) = (line.split() for line in lines if line.startswith("standard"))
    assert best == ["standard", "T=1", "1", "80.00", "▁▃█"]  # the other's test accuracy chooses nothing


def test_frame_chooses_nothing_where_there_is_no_validation_split(tmp_path):
    for T, acc in ((1.0, 0.5), (2.0, 0.9)):
        put(tmp_path / str(T), changed(ALONE, T=T, val_acc=None, test_acc=acc))
    (line,) = (line.split() for line in drawn(tmp_path) if line.startswith("standard"))
    assert line == ["standard", "1", "no", "split"]


def test_frame_ranks_means_over_seeds(tmp_path):
    for T, accuracies in ((1.0, (0.90, 0.60)), (2.0, (0.80, 0.82))):
        for seed, acc in enumerate(accuracies):
            put(tmp_path / f"{T}{seed}", changed(ALONE, T=T, seed=seed, val_acc=acc))
    (line,) = (line.split() for line in drawn(tmp_path) if line.startswith("standard"))
    assert line == ["standard", "T=2", "2", "81.00", "±", "1.41"]


def test_frame_does_not_rank_by_the_seeds_that_did_not_diverge(tmp_path):
    put(tmp_path / "0", changed(ALONE, T=1.0, seed=0, val_acc=0.90))
    put(tmp_path / "1", changed(ALONE, T=1.0, seed=1, status="failed", diverged=True))
    for seed in (0, 1):
        put(tmp_path / f"2{seed}", changed(ALONE, T=2.0, seed=seed, val_acc=0.85))
    (line,) = (line.split() for line in drawn(tmp_path) if line.startswith("standard"))
    assert line[:2] == ["standard", "T=2"]


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (80, 50), (200, 60)])
def test_frame_fits_into_the_terminal(tmp_path, width, height):
    sweep_of(tmp_path, 60)
    (tmp_path / "0" / FILE).write_text("{")
    put(tmp_path / "before")
    lines = drawn(tmp_path, width, height, notes=["the report is written"])
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert lines[-1] == "the report is written"
    assert width < 80 or lines[1].endswith(", 1 unreadable; 1 earlier")


def test_frame_of_a_thousand_jobs_is_quick_and_bounded(tmp_path):
    sweep_of(tmp_path, 1000)
    reader, dashboard = Reader(tmp_path), Dashboard(120, 40)
    began = time.process_time()
    first = lines_of(dashboard, reader.look())
    whole = time.process_time() - began
    assert first[1] == "1,000 runs: 588 done, 100 running, 300 waiting, 12 failed"
    assert len(first) < 40
    assert whole < 1  # 0.3 s of a processor with nothing else on it


def test_frame_shows_what_a_stranger_put_into_names(tmp_path):
    evil = "\x1b[31mred\x07\n[bold]" + "x" * 300
    put(tmp_path / "a\x1b[2Jb", changed(ALONE, method=evil, command=f"'T={evil}'", dataset=evil, **{evil: 1.0}))
    put(tmp_path / "c", replace(ALONE, status="failed", error=evil, command="T=2"))
    put(tmp_path / "d", replace(ALONE, status="running", command="'"))
    (tmp_path / "d" / "train.log").write_text(evil + "\n")
    (tmp_path / "d" / "metrics.csv").write_text(f"{evil},val/acc\n1,x{evil}\n")
    printed = "\n".join(drawn(tmp_path, 80, 40))
    assert not any(ord(char) < 32 and char != "\n" for char in printed)
    assert r"\x1b[2J" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_frame_counts_what_cannot_be_read(tmp_path):
    put(tmp_path / "0")
    for name in "12":
        put(tmp_path / name)
        (tmp_path / name / FILE).write_text("{")
    assert drawn(tmp_path, 300)[-1].startswith(f"2 files cannot be read: {tmp_path / '1' / FILE}: cut short")


def test_frame_in_ascii_has_no_other_characters(tmp_path):
    sweep_of(tmp_path, 30)
    put(tmp_path / "30", replace(ALONE, method="猫"))
    printed = "".join(drawn(tmp_path, encoding="ascii"))
    assert printed.isascii()
    assert "+/-" in printed


def test_frame_of_many_sweeps_lists_those_that_go_on_first(tmp_path):
    for number in range(8):
        put(tmp_path / f"s{number}" / "0", replace(ALONE, status="running" if number == 5 else "done"))
    lines = drawn(tmp_path)
    first = next(i for i, line in enumerate(lines) if line.startswith("sweep")) + 1
    assert lines[first].startswith("s5")
    assert lines[first + 5] == "3 more"
    assert lines[1] == "8 runs: 7 done, 1 running"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([math.nan], ""),
        ([0.3], "▅"),
        ([0, 1], "▁█"),
        ([1, math.nan, 0], "█ ▁"),
        ([0, math.inf, 1], "▁ █"),
        ([-1e308, 1e308], "▁█"),
        (list(range(100)), "▁▂▃▄▅▆▇█"),
    ],
)
def test_sparkline_goes_from_the_lowest_to_the_highest(values, shown):
    assert Dashboard().sparkline(values, 8) == shown


def test_headline_is_one_line_for_a_pipe(tmp_path):
    sweep_of(tmp_path, 10)
    line = headline(Reader(tmp_path).look())
    assert "6 done, 1 running, 3 waiting | 1:00:00 gone, about " in line
    assert "\n" not in line
    for place in tmp_path.glob("*/" + FILE):
        write(ALONE, place)
    assert "nothing left" not in headline(Reader(tmp_path).look())  # three wait


def test_interrupted_jobs_are_left_and_counted_by_what_they_have_trained(tmp_path):
    put(tmp_path / "0", replace(ALONE, command="T=1", status="interrupted", epochs=4), ["0,1,1,2,0.5", "1,1,1,1,0.25"])
    put(tmp_path / "1", replace(ALONE, command="T=2"))
    assert "1 done, 1 interrupted | 1 to be continued by the same command" in headline(Reader(tmp_path).look())
    assert drawn(tmp_path)[2].split()[1:3] == ["75", "%"]
