"""A run's directory, and what of it a run may go on from."""

import pytest

from kd.errors import UserError
from kd.runs.results import Result, read
from kd.runs.status import tracked, versions

RUN = Result(method="logits", seed=0, dataset="d", epochs=1, status="running", fingerprint="one")


@pytest.fixture
def interrupted(tmp_path):
    """A run that left a checkpoint."""

    def stop(record):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        tracked(RUN, tmp_path, stop)
    assert read(tmp_path / "result.json").status == "interrupted"
    return tmp_path


def found(directory, record=RUN):
    """Whether a checkpoint is there when the run begins."""
    there = []
    tracked(record, directory, lambda record: there.append((directory / "checkpoints").exists()) or record)
    return there == [True]


def test_a_run_goes_on_from_its_own_checkpoint(interrupted):
    assert found(interrupted)


def test_a_checkpoint_of_another_run_is_left_alone(interrupted):
    other = Result(method="logits", seed=1, dataset="d", epochs=1, status="running", fingerprint="other")
    with pytest.raises(UserError, match="holds a run of another configuration"):
        found(interrupted, other)
    assert (interrupted / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("single", [True, False])
def test_who_started_it_tells_how_to_go_on(tmp_path, capsys, single):
    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        tracked(RUN, tmp_path, stop, single)
    assert capsys.readouterr().err == (f"interrupted; continue with: python train.py resume={tmp_path}\n" * single)


@pytest.mark.parametrize("damage", ["cut short", "removed"])
def test_a_checkpoint_without_a_record_is_nobodys(interrupted, damage):
    """Of another run, say, in a directory whose record somebody removed to have it made anew."""
    record = interrupted / "result.json"
    record.unlink() if damage == "removed" else record.write_text(record.read_text()[:20])
    assert not found(interrupted)


def test_a_package_that_is_not_installed_is_no_reason_to_stop(monkeypatch):
    monkeypatch.setattr("kd.runs.status.version", missing)
    assert versions().endswith("kd unknown")


def missing(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)
