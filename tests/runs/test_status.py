"""A run's directory, and which checkpoints in it a run continues from."""

import errno
import os
import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from kd.errors import RefusedError, UserError
from kd.files import temporary_path
from kd.runs.results import FILE, Result, read, write
from kd.runs.status import recorded, refuse_links, tracked

RUN = Result(method="logits", seed=0, dataset="d", epochs=1, status="running", fingerprint="one")


@pytest.fixture
def interrupted(tmp_path):
    """A run that left a checkpoint."""

    def interrupt(record):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        tracked(RUN, tmp_path, interrupt)
    assert read(tmp_path / "result.json").status == "interrupted"
    return tmp_path


def keeps_checkpoint(directory, record=RUN):
    """Return whether the checkpoint is still present when the run begins."""
    present = []
    tracked(record, directory, lambda record: present.append((directory / "checkpoints").exists()) or record)
    return present == [True]


def test_tracked_keeps_the_runs_own_checkpoint(interrupted):
    assert keeps_checkpoint(interrupted)


def test_tracked_leaves_an_interrupted_run_as_it_was_where_it_is_refused(interrupted):
    """As by `resume=... trainer=gpu` on a machine without a GPU: what is typed next goes on from the first command."""
    before = read(interrupted / FILE)

    def refuse(record):
        raise RefusedError("no GPU here")

    with pytest.raises(RefusedError):
        tracked(replace(RUN, command="trainer=gpu"), interrupted, refuse)
    assert read(interrupted / FILE) == before
    assert keeps_checkpoint(interrupted)


def test_tracked_refuses_the_directory_of_another_run(interrupted):
    other = Result(method="logits", seed=1, dataset="d", epochs=1, status="running", fingerprint="other")
    with pytest.raises(UserError, match="holds a run of another configuration"):
        keeps_checkpoint(interrupted, other)
    assert (interrupted / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("file", "refused"), [("notes.txt", True), ("student.safetensors", True), ("tensorboard/events", False)]
)
def test_tracked_refuses_to_overwrite_what_another_run_did_not_write(tmp_path, file, refused):
    """Another run failed there before its first checkpoint."""
    write(replace(RUN, fingerprint="other", status="failed"), tmp_path / "result.json")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    with pytest.raises(UserError, match="holds a run of another") if refused else nullcontext():
        tracked(RUN, tmp_path, lambda record: record)
    assert (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize("single", [True, False])
def test_tracked_prints_how_to_continue_a_single_run(tmp_path, capsys, single):
    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        tracked(RUN, tmp_path, interrupt, single)
    assert capsys.readouterr().err == (f"interrupted; continue with: python train.py resume={tmp_path}\n" * single)


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_tracked_leaves_a_run_done_that_ends_otherwise_after_that(tmp_path, end):
    """As by Ctrl-C while its pictures are drawn."""

    def draw(record):
        write(replace(record, status="done", test_acc=0.5), tmp_path / FILE)
        raise end

    with pytest.raises((SystemExit, RuntimeError)):
        tracked(RUN, tmp_path, draw)
    assert (read(tmp_path / FILE).status, read(tmp_path / FILE).test_acc) == ("done", 0.5)


def test_tracked_that_is_interrupted_on_a_full_disk_is_interrupted(tmp_path, monkeypatch):
    """A sweep would go on after any other error."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupt(record):
        monkeypatch.setattr("kd.runs.status.write_once", full)
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        tracked(RUN, tmp_path, interrupt)
    assert ended.value.code == 130


@pytest.mark.parametrize("damage", ["cut short", "removed"])
def test_tracked_refuses_a_checkpoint_without_a_record(interrupted, damage):
    """It may be the only one of another run."""
    record = interrupted / "result.json"
    record.unlink() if damage == "removed" else record.write_text(record.read_text()[:20])
    with pytest.raises(UserError, match=r"move it away|holds checkpoints/last.ckpt, and no result.json of a run"):
        tracked(RUN, interrupted, lambda record: record)
    assert (interrupted / "checkpoints" / "last.ckpt").read_text() == "half way"


def test_tracked_refuses_a_directory_with_other_files(tmp_path):
    for name in ("a.txt", "b.txt", "train.log"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"holds a.txt and 1 other files, and no result.json of a run; choose another"):
        tracked(RUN, tmp_path, lambda record: record)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.txt", "b.txt", "train.log"]


@pytest.mark.parametrize("last", ["train.log", ".hydra", ".hydra/config.yaml", ".hydra/hydra.yaml", ".lock"])
def test_recorded_finds_nothing_in_a_directory_of_a_command_that_was_killed_as_it_began(tmp_path, last):
    """In the order in which Hydra writes; the last file may still be empty."""
    (tmp_path / ".hydra").mkdir()
    begun = {
        "train.log": "",
        ".hydra": None,
        ".hydra/config.yaml": "epochs: 2",
        ".hydra/hydra.yaml": "x: 1",
        ".lock": "",
    }
    for name, content in begun.items():
        if content is not None:
            (tmp_path / name).write_text("" if name == last else content)
        if name == last:
            break
    assert recorded(tmp_path, before_hydra=True) is None


@pytest.mark.parametrize("name", ["notes.txt", "conf/config.yaml", ".hydra/notes.txt"])
def test_recorded_refuses_an_empty_file_that_hydra_does_not_write(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"holds {name}, and no"):
        recorded(tmp_path, before_hydra=True)


def test_tracked_refuses_links_before_it_writes(tmp_path):
    """A lock file that is a link would be emptied."""
    (tmp_path / "mine").write_text("mine")
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"\.lock is a symbolic link"):
        tracked(RUN, directory, lambda record: record)
    assert (tmp_path / "mine").read_text() == "mine"


def test_refuse_links_refuses_pipes_and_leaves_folders_of_other_programs_alone(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    refuse_links(tmp_path)
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(UserError, match=r"result\.json is neither a file nor a folder"):
        refuse_links(tmp_path)


def test_refuse_links_passes_over_files_that_vanish(tmp_path, monkeypatch):
    """As temporary files do while another process writes its record."""
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: [*listed(self), self / ".result.json.1"])
    refuse_links(tmp_path)
    (tmp_path / "result.json").symlink_to("elsewhere")
    with pytest.raises(UserError, match="is a symbolic link"):
        refuse_links(tmp_path)


def test_tracked_says_that_the_code_has_changed(interrupted, caplog):
    tracked(replace(RUN, git="abc"), interrupted, lambda record: record)
    assert "was started with the code of an unknown version and goes on with that of abc" in caplog.text


def test_tracked_prints_a_hint_that_a_shell_reads(tmp_path, capsys):
    def interrupt(record):
        raise KeyboardInterrupt

    directory = tmp_path / "it's [v2] $x"
    directory.mkdir()
    with pytest.raises(SystemExit):
        tracked(replace(RUN, config_dir="my conf"), directory, interrupt, True, typed=["data.root='a b'"])
    words = shlex.split(capsys.readouterr().err)
    assert words[-5:] == ["python", "train.py", "--config-dir=my conf", f"resume={directory}", "data.root='a b'"]


def test_recorded_takes_what_a_kill_left_of_the_first_record_for_nothing(tmp_path):
    temporary_path(tmp_path / FILE).write_text("{")
    assert recorded(tmp_path) is None
