import inspect
import json
import math
import os
import sys
import time
from dataclasses import asdict, fields, replace

import pytest

from kd.errors import UserError
from kd.runs.results import Result, collect, read, write
from tests.common import put_no_file

DONE = Result(
    method="logits",
    knobs={"T": 4.0, "alpha": 0.1, "warmup": 20, "mode": "cosine", "shuffled": True, "layers": [1, 2]},
    seed=3,
    student="cnn",
    teacher="resnet20",
    teacher_params=1_070_000,
    dataset="CIFAR-10",
    epochs=2,
    test_acc=0.8344,
    status="done",
    variant="recipe.epochs=2 note=ü",
    trial="tested on 128 of 360 images",
    diverged=True,
    warnings=["the teacher reaches 10.0 %, no better than chance (10 classes)"],
    epoch_val_acc=[0.5, 0.8],
)
CONTRACT = """
    method knobs seed student teacher teacher_id student_params teacher_params multiply_adds taught dataset data_id
    epochs train_images noisy_labels order_seed val_acc test_acc test_balanced_acc test_class_acc test_images
    test_total test_nll test_ece also_test_acc also_test_nll teacher_test_acc retention agreement train_seconds
    images_per_second device precision git versions status command cwd config_dir variant fingerprint group date
    error trial diverged warnings epoch_train_loss epoch_train_acc epoch_val_loss epoch_val_acc
"""


def put(directory, **changes):
    """Put a record into `directory` without `write`, which waits for the disk."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(asdict(DONE) | changes))
    return directory / "result.json"


def test_result_has_the_fields_of_the_contract_in_order():
    assert [field.name for field in fields(Result)] == CONTRACT.split()


def test_result_needs_five_fields():
    started = Result(method="standard", seed=0, dataset="CIFAR-10", epochs=30, status="running")
    assert started.knobs == {}
    assert started.device == ""
    assert started.epoch_val_acc == []
    assert replace(started, status="done", test_acc=0.8).test_acc == 0.8


def test_read_returns_what_write_wrote(tmp_path):
    path = tmp_path / "result.json"
    write(DONE, path)
    assert read(path) == DONE
    assert list(json.loads(path.read_text())) == CONTRACT.split()
    assert path.read_text().startswith('{\n  "method": "logits",\n')
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_read_returns_figures_by_test_set_and_refuses_others(tmp_path):
    path = tmp_path / "result.json"
    figures = replace(DONE, also_test_acc={"C": 0.5, "C/fog/1": 1.0}, also_test_nll={"C": 2.0})
    write(figures, path)
    assert read(path) == figures
    write(replace(DONE, also_test_nll={"C": math.inf}), path)
    assert math.isnan(read(path).also_test_nll["C"])
    for wrong, message in (
        ([0.5], "also_test_acc is not numbers by name"),
        ({"C": "0.5"}, "also_test_acc is not numbers by name"),
        ({"C": 1.5}, r"also_test_acc must be in \[0, 1\], got 1.5"),
        ({"x" * 1001: 0.5}, "a name in also_test_acc has 1,001 characters"),
        ({str(i): 0.5 for i in range(1001)}, "also_test_acc has 1,001 items"),
    ):
        with pytest.raises(UserError, match=message):
            read(put(tmp_path / "wrong", also_test_acc=wrong))


def test_write_leaves_the_usual_permissions(tmp_path):
    write(DONE, tmp_path / "result.json")
    (tmp_path / "other").touch()
    assert (tmp_path / "result.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_write_turns_nan_and_infinity_into_null(tmp_path):
    path = tmp_path / "result.json"
    diverged = replace(DONE, test_nll=math.nan, test_ece=math.inf, epoch_train_loss=[2.5, math.nan, -math.inf])
    write(replace(diverged, knobs={"T": 4.0, "margin": math.inf}), path)
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    back = read(path)
    assert back.test_nll is None
    assert back.test_ece is None
    assert back.knobs == {"T": 4.0}
    assert back.epoch_train_loss[0] == 2.5
    assert all(map(math.isnan, back.epoch_train_loss[1:]))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "result.json"
    write(DONE, path)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(type(error)):
            write(replace(DONE, status="failed"), path)
    assert read(path) == DONE
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_write_of_no_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write(replace(DONE, test_acc=object()), tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_read_accepts_newer_and_older_records(tmp_path):
    assert read(put(tmp_path, invented_later=[1, {}])) == DONE
    record = asdict(DONE)
    for name in ("variant", "epoch_val_acc", "test_total", "trial", "diverged", "warnings"):
        del record[name]
    (tmp_path / "result.json").write_text(json.dumps(record))
    older = replace(DONE, variant="", epoch_val_acc=[], trial=None, diverged=False, warnings=[])
    assert read(tmp_path / "result.json") == older


def test_read_turns_whole_numbers_into_floats(tmp_path):
    back = read(put(tmp_path, test_nll=4, epoch_val_acc=[0, 1]))
    assert back.test_nll == 4.0
    assert type(back.test_nll) is float
    assert [type(value) for value in back.epoch_val_acc] == [float, float]


def test_read_folds_knobs_of_older_records(tmp_path):
    record = asdict(DONE)
    del record["knobs"], record["taught"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"T": 2.0, "alpha": 0.5, "beta": None, **record}))
    assert read(path) == replace(DONE, knobs={"T": 2.0, "alpha": 0.5})
    assert read(put(tmp_path, T=2.0, alpha=None)) == DONE  # where both are, `knobs` counts


def test_read_leaves_out_knobs_that_are_null(tmp_path):
    assert read(put(tmp_path, knobs={"T": 4, "margin": None})).knobs == {"T": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": "four"}, "T is 'four', not a number or null"),
        ({"T": True}, "T is True, not a number or null"),
        ({"knobs": [4.0]}, "knobs is [4.0], not knobs by name"),
        ({"knobs": {"margin": {"low": 1}}}, "knob margin is {'low': 1}, not a number, text, a boolean or a list"),
        ({"knobs": {"layers": [1, [2]]}}, "knob layers is [1, [2]], not a number"),
        ({"knobs": {"layers": [1, None]}}, "knob layers is [1, None], not a number"),
        ({"knobs": {"T": 10**400}}, "too large"),
        ({"taught": 1}, "taught is 1, not true or false or null"),
        ({"seed": 1.5}, "seed is 1.5, not a whole number"),
        ({"seed": True}, "seed is True, not a whole number"),
        ({"seed": None}, "seed is None, not a whole number"),
        ({"test_acc": False}, "test_acc is False, not a number or null"),
        ({"method": 3}, "method is 3, not text"),
        ({"student": ["cnn"]}, "student is ['cnn'], not text or null"),
        ({"epoch_val_acc": 0.5}, "epoch_val_acc is not a list of numbers"),
        ({"epoch_val_acc": [0.5, "x"]}, "epoch_val_acc is not a list of numbers"),
        ({"test_acc": 10**400}, "too large"),
        ({"test_total": 360.0}, "test_total is 360.0, not a whole number or null"),
        ({"trial": 1}, "trial is 1, not text or null"),
        ({"diverged": None}, "diverged is None, not true or false"),
        ({"warnings": "diverged"}, "warnings is not a list of texts"),
        ({"warnings": ["diverged", 3]}, "warnings is not a list of texts"),
    ],
)
def test_read_names_a_field_of_the_wrong_type(tmp_path, changes, message):
    path = put(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut short or not JSON"),
        (json.dumps(asdict(DONE))[:200], "cut short or not JSON"),
        ('{"method": NaN}', "NaN is no JSON"),
        ("[]", "not a result record"),
        ('{"method": "logits", "epochs": 3}', "it lacks seed, dataset, status"),
    ],
)
def test_read_refuses_what_is_no_record(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_acc": 5.0}, "test_acc must be in [0, 1], got 5"),
        ({"val_acc": -0.1}, "val_acc must be in [0, 1], got -0.1"),
        ({"epoch_val_acc": [0.5, 2, None]}, "epoch_val_acc must be in [0, 1], got 2"),
        ({"epoch_val_loss": [1e39]}, "epoch_val_loss must be in"),
        ({"test_images": -7}, "test_images must be a whole number in [0, 1e15], got -7"),
        ({"student_params": 10**300}, "student_params must be a whole number"),
        ({"epochs": 10**400}, "epochs must be a whole number"),
        ({"train_seconds": -5.0}, "train_seconds must be in"),
        ({"status": "\x1b[31m"}, r"status is '\x1b[31m', not one of running, done"),
        ({"git": "a\x1b[2J"}, r"git is 'a\x1b[2J', with control characters"),
        ({"method": "\ud800"}, "method is no text: it holds half of a character"),
        ({"student": "n" * 200_000}, "student has 200,000 characters, more than 1,000"),
        ({"warnings": ["w" * 2_000_000]}, "warnings has 2,000,000 characters"),
        ({"warnings": ["w"] * 1001}, "warnings has 1,001 items"),
        ({"knobs": {f"k{i}": i for i in range(101)}}, "knobs are 101, more than 100"),
        ({"knobs": {"k" * 1001: 1}}, "the name of a knob has 1,001 characters"),
        ({"knobs": {"layers": [1] * 1001}}, "knob 'layers' has 1,001 items"),
        ({"knobs": {"mode": "m" * 1001}}, "knob 'mode' has 1,001 characters"),
        ({"knobs": {"\udbff": 1}}, "no text"),
    ],
)
def test_read_refuses_a_field_out_of_its_range(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        read(put(tmp_path, **changes))
    assert str(error.value).startswith(f"{tmp_path / 'result.json'}: ")
    assert message in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 160


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"seed": ' + "9" * 100_000 + "}", "a number of 100000 digits"),
        ('{"method": "a", "method": "b"}', "'method' is there twice"),
        ('{"knobs": {"T": 1, "T": 2}}', "'T' is there twice"),
        (
            json.dumps(asdict(DONE) | {"test_acc": 0.125}).replace("0.125", "1e999"),
            "test_acc must be in [0, 1], got inf",
        ),
        (json.dumps(asdict(DONE) | {"knobs": {"T": 0.125}}).replace("0.125", "-1e999"), "knob 'T' is -inf"),
    ],
)
def test_read_refuses_hostile_json(tmp_path, text, message):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError) as error:
        read(tmp_path / "result.json")
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "loop", "dangling", "gigabytes"])
def test_read_refuses_what_is_no_file_of_a_record(tmp_path, kind):
    """A FIFO used to block for ever, a device to fill the memory."""
    path = tmp_path / "run" / "result.json"
    put(tmp_path / "good")
    path.parent.mkdir()
    put_no_file(path, kind)
    message = "larger than 16 MB" if kind == "gigabytes" else "cannot be read: "
    with pytest.raises(UserError, match=message):
        read(path)
    results, (skipped,) = collect([tmp_path])
    assert results == [DONE]
    assert skipped.startswith(f"{path}: ")


def test_read_keeps_names_of_bytes_that_are_no_utf8(tmp_path):
    """A run in such a folder must be readable, to be resumed."""
    write(replace(DONE, dataset="caf\udce9", cwd="/home/caf\udce9"), tmp_path / "result.json")
    assert read(tmp_path / "result.json").cwd == "/home/caf\udce9"


def test_write_shortens_an_error_that_read_would_refuse(tmp_path):
    write(replace(DONE, error="e" * 2_000_000), tmp_path / "result.json")
    assert read(tmp_path / "result.json").error.endswith("eee...")


@pytest.mark.parametrize("bad", ["a file that is none", "bytes"])
def test_read_names_a_file_that_cannot_be_read(tmp_path, bad):
    path = tmp_path / "result.json"
    if bad == "bytes":
        path.write_bytes(b'{"method": "\xff"}')
    with pytest.raises(UserError, match=r"result\.json: "):
        read(path)


def test_collect_finds_every_status_at_any_depth_by_path(tmp_path):
    put(tmp_path / "b" / "1", seed=1, status="failed")
    put(tmp_path / "a" / "x" / "y", seed=0)
    put(tmp_path, seed=2, status="running")
    assert [result.seed for result in collect([tmp_path]).results] == [0, 1, 2]


def test_collect_names_what_it_skips(tmp_path):
    put(tmp_path / "good")
    cut = put(tmp_path / "cut")
    cut.write_text(cut.read_text()[:100])
    results, skipped = collect([tmp_path])
    assert results == [DONE]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{cut}: cut short")


def test_collect_counts_a_file_once(tmp_path):
    put(tmp_path / "runs" / "0", seed=0)
    put(tmp_path / "runs" / "1", seed=1)
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "1")
    (tmp_path / "runs" / "1" / "up").symlink_to(tmp_path / "runs")
    (tmp_path / "linked").symlink_to(tmp_path / "runs")
    dirs = [tmp_path / "runs", tmp_path / "runs" / "1", tmp_path / "linked"]
    assert sorted(result.seed for result in collect(dirs).results) == [0, 1]


def test_collect_names_links_that_lead_out(tmp_path):
    """A link to / in an archive would have the whole machine searched."""
    put(tmp_path / "elsewhere", seed=5)
    put(tmp_path / "runs" / "0", seed=0)
    (tmp_path / "runs" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "circle").symlink_to("circle")
    results, skipped = collect([tmp_path / "runs"])
    assert [result.seed for result in results] == [0]
    assert skipped == [f"{tmp_path / 'runs' / 'out'}: a link that leads out; give the directory itself"]
    both = collect([tmp_path / "runs", tmp_path / "elsewhere"])
    assert ([result.seed for result in both.results], both.skipped) == ([5, 0], [])


def test_collect_searches_a_tree_deeper_than_the_stack(tmp_path, monkeypatch):
    put(tmp_path / "a" / "b" / "c" / "d" / "e")
    limit = sys.getrecursionlimit()
    deep = tmp_path.joinpath(*["d"] * 150)
    put(deep)
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 60)
        assert collect([tmp_path]).results == [DONE, DONE]
    finally:
        sys.setrecursionlimit(limit)


def test_collect_distinguishes_data_sets_of_one_name(tmp_path):
    put(tmp_path / "a", dataset="data", data_id="11111111aaaa")
    put(tmp_path / "b", dataset="data", data_id="22222222bbbb")
    put(tmp_path / "c", dataset="digits", data_id="33333333cccc")
    put(tmp_path / "d", dataset="digits", data_id="33333333cccc")
    put(tmp_path / "e", dataset="digits")  # of an older version
    names = [result.dataset for result in collect([tmp_path]).results]
    assert names == ["data 111111", "data 222222", "digits", "digits", "digits"]


def test_collect_does_not_look_into_reports(tmp_path):
    put(tmp_path / "runs" / "0", seed=0)
    put(tmp_path / "runs" / "report", seed=1)
    assert [result.seed for result in collect([tmp_path / "runs"]).results] == [0]
    assert [result.seed for result in collect([tmp_path / "runs" / "report"]).results] == [1]


def test_collect_refuses_directories_without_records(tmp_path):
    put(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"missing: no such directory"):
        collect([tmp_path / "full", tmp_path / "missing"])
    with pytest.raises(UserError, match=r"empty: no result\.json"):
        collect([tmp_path / "full", tmp_path / "empty"])
    put(tmp_path / "full").write_text("{")
    with pytest.raises(UserError, match=r"none of 1 result records can be read, the first: .*result\.json"):
        collect([tmp_path / "full"])


def test_collect_reads_a_thousand_records_quickly(tmp_path):
    for i in range(1000):
        put(tmp_path / str(i // 100) / str(i), seed=i, epoch_val_loss=[0.1] * 50, epoch_train_loss=[0.1] * 50)
    start = time.process_time()
    assert len(collect([tmp_path]).results) == 1000
    assert time.process_time() - start < 2
