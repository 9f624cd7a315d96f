"""`resume=RUN_DIR`, in whatever directory, with whatever beside it."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kd.app.arguments import read_arguments
from kd.app.resume import expand_resume
from kd.errors import UserError
from kd.runs.results import Result, read, write
from tests.common import SMALL

RECORD = Result(method="logits", seed=0, dataset="d", epochs=1, status="interrupted", command="method=logits 'T= 4'")


def resumed(*typed):
    arguments, _ = expand_resume(read_arguments(typed))
    return list(arguments.overrides)


@pytest.mark.parametrize("name", ["a run", "it's", "[v2] 50%", "a=b,c", "$x ${T}"])
def test_expand_resume_restores_the_overrides_and_puts_new_ones_last(tmp_path, monkeypatch, name):
    directory = tmp_path / name
    write(replace(RECORD, cwd=str(tmp_path)), directory.mkdir() or directory / "result.json")
    monkeypatch.chdir(directory)
    overrides = resumed("trainer=cpu", f"resume={directory}")
    assert overrides[:3] == ["method=logits", "T= 4", "trainer=cpu"]
    assert Path.cwd() == tmp_path
    assert expand_resume(read_arguments(["T=4"])) == (read_arguments(["T=4"]), None)


def test_expand_resume_replaces_what_is_given_anew(tmp_path):
    write(replace(RECORD, command="method=logits trainer=gpu threads=2"), tmp_path / "result.json")
    assert resumed(f"resume={tmp_path}", "trainer=cpu", "threads=1")[:3] == [
        "method=logits",
        "trainer=cpu",
        "threads=1",
    ]


def test_expand_resume_finds_the_origin_of_older_records(tmp_path, monkeypatch):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "hydra.yaml").write_text(f"hydra: {{runtime: {{cwd: {tmp_path}}}}}")
    write(RECORD, tmp_path / "run" / "result.json")
    monkeypatch.chdir(tmp_path / "run")
    resumed(f"resume={tmp_path / 'run'}")
    assert Path.cwd() == tmp_path


def test_expand_resume_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"not the directory of a run, which holds a result\.json"):
        resumed(f"resume={tmp_path}")
    (tmp_path / "result.json").write_text('{"method": "log')
    with pytest.raises(UserError, match=r"not JSON: .*; type the run's own settings again, with hydra\.run"):
        resumed(f"resume={tmp_path}")
    write(replace(RECORD, cwd=str(tmp_path / "gone")), tmp_path / "result.json")
    with pytest.raises(UserError, match="gone, which cannot be entered: No such file or directory"):
        resumed(f"resume={tmp_path}")
    with pytest.raises(UserError, match="a multirun is continued by its own command"):
        resumed("-m", f"resume={tmp_path}")


@pytest.mark.parametrize(
    "more", ["hydra.run.dir=foo", "hydra.output_subdir=foo", "hydra.mode=MULTIRUN", "resume=other"]
)
def test_expand_resume_refuses_what_it_would_pass_over(tmp_path, more):
    write(RECORD, tmp_path / "result.json")
    with pytest.raises(UserError, match=r"leave this out|continue them one by one"):
        resumed(f"resume={tmp_path}", more)


def test_expand_resume_names_a_damaged_command(tmp_path):
    write(replace(RECORD, command="a='b"), tmp_path / "result.json")
    with pytest.raises(UserError, match=r"the command in result\.json is damaged"):
        resumed(f"resume={tmp_path}")


def test_resume_refuses_settings_of_another_run(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    record = read(tmp_path / "run" / "result.json")
    write(replace(record, status="interrupted", cwd=str(tmp_path)), tmp_path / "run" / "result.json")
    code, printed = run("resume=run", "T=8")
    assert (code, len(printed.splitlines())) == (1, 1)
    assert "error: with T=8 this would be another run than the one to be continued; leave that out, or start" in printed
    own = [part for part in shlex.split(record.command) if not part.startswith("T=")]
    assert shlex.split(printed.partition("its own: python train.py ")[2]) == [*own, "T=8"]
    assert read(tmp_path / "run" / "result.json").status == "interrupted"


def test_resume_refuses_other_images(run, finished, tmp_path):
    """The checkpoint would go on with what it was not trained on, and the result be of neither data set."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    record = replace(read(tmp_path / "run" / "result.json"), status="interrupted", cwd=str(tmp_path))
    write(replace(record, data_id="0123456789abcdef"), tmp_path / "run" / "result.json")
    code, printed = run("resume=run")
    assert code == 1
    assert "error: the images are not those that this run was started with (digits, data_id 0123456789abcdef" in printed
    assert read(tmp_path / "run" / "result.json").data_id == "0123456789abcdef"


def test_resume_of_a_finished_run_says_so(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    record = read(tmp_path / "run" / "result.json")
    write(replace(record, cwd=str(tmp_path)), tmp_path / "run" / "result.json")
    code, printed = run("resume=run")
    assert code == 0
    assert f"this run was done before, on {record.date}; nothing is left to do" in printed


def test_run_with_files_of_another_folder_is_resumed_with_that_folder_only(run, tmp_path):
    """The folder's files name classes that are run: a record alone must not bring them in."""
    folder = tmp_path / "my conf" / "method"
    folder.mkdir(parents=True)
    own = "T: 3.0\nspec: {ranges: {T: '(0, inf)'}}\nmethod: {_target_: kd.methods.logits.Logits, T: '${T}', alpha: 0.2}"
    (folder / "mine.yaml").write_text(f"# @package _global_\n{own}\n")
    flag = f"--config-dir={tmp_path / 'my conf'}"
    code, printed = run(flag, *SMALL, "method=mine", "hydra.run.dir=run")
    assert code == 0, printed
    record = read(tmp_path / "run" / "result.json")
    write(replace(record, status="interrupted"), tmp_path / "run" / "result.json")
    code, printed = run("resume=run")
    assert code == 1
    hint = printed.strip().partition("write python train.py ")[2]
    assert shlex.split(hint) == [flag, "resume=run"]
    code, printed = run(*shlex.split(hint))
    assert code == 0, printed
    assert read(tmp_path / "run" / "result.json").test_acc == record.test_acc
