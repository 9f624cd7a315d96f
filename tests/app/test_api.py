"""Runs from Python: `kd.train` and `kd.results`."""

import logging
import os

import hydra
import pytest
from hydra.errors import HydraException

import kd
from kd.errors import UserError
from kd.runs.results import read
from tests.common import QUICK


def test_results_of_no_folder_are_refused():
    with pytest.raises(UserError, match="give a folder with runs"):
        kd.results()


def test_train_is_the_run_of_the_command_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    record = kd.train(*QUICK, "method=standard", "hydra.run.dir=mine")
    assert record == read(tmp_path / "mine" / "result.json")
    assert record.status == "done"
    assert dict(os.environ) == environment
    assert run(*QUICK, "method=standard", "hydra.run.dir=typed")[0] == 0
    assert read(tmp_path / "typed" / "result.json").test_acc == record.test_acc
    (first, second) = kd.results(tmp_path)
    assert {first.fingerprint, second.fingerprint} == {record.fingerprint}
    assert kd.train(*QUICK, "method=standard", "hydra.run.dir=mine") == record  # done before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method=standard", "T=4"), "Could not override 'T'"),
        (("T=1,2",), "several values are several runs"),
        (("-m", "T=1,2"), "kd.train is one run"),
        (("method=standard", "lr=-1"), r"lr must be in \[0, inf\), got -1"),
    ],
)
def test_train_raises_what_is_wrong_with_settings(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, HydraException), match=message):
        kd.train(*QUICK, *settings)
    assert not list(tmp_path.iterdir())


def test_train_leaves_the_working_directory_where_it_was(tmp_path, monkeypatch):
    """Also where a run is continued that was started elsewhere, whose paths are relative to that place."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    kd.train(*QUICK, "method=standard", "hydra.run.dir=mine")
    monkeypatch.chdir(tmp_path)
    assert kd.train("resume=there/mine").status == "done"
    assert os.getcwd() == str(tmp_path)


def test_train_leaves_logging_and_hydra_to_the_program_that_calls_it(tmp_path, monkeypatch):
    """As in a notebook that has Hydra compose settings of its own, and logs into a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("T: mine\n")
    root = logging.getLogger()
    handler = logging.FileHandler(tmp_path / "mine.log")
    root.addHandler(handler)
    try:
        with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base=None):
            assert kd.train(*QUICK, "method=standard", "hydra.run.dir=run").status == "done"
            assert hydra.compose("mine").T == "mine"
        logging.getLogger("kd").warning("after it")
        assert handler in root.handlers
    finally:
        root.removeHandler(handler)
        handler.close()
    assert "after it" in (tmp_path / "mine.log").read_text()
    assert "after it" not in (tmp_path / "run" / "train.log").read_text()
    assert "training the student" in (tmp_path / "run" / "train.log").read_text()
