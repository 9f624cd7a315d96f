"""`resume=RUN_DIR`, in whatever directory, with whatever beside it."""

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from kd.app.arguments import read_arguments
from kd.app.compose import compose, plain
from kd.app.identity import fingerprint
from kd.app.resume import expand_resume, to_be_typed
from kd.errors import UserError
from kd.runs.results import Result, read, write
from tests.common import QUICK, SMALL

RECORD = Result(method="logits", seed=0, dataset="d", epochs=1, status="interrupted", command="method=logits 'T= 4'")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Undo what going to another directory does to this process."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def resumed(*typed):
    arguments, _ = expand_resume(read_arguments(typed))
    return list(arguments.overrides)


def test_run_of_a_folder_that_was_typed_another_way_continues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("elsewhere", "mine", "run"):
        (tmp_path / name).mkdir()
    write(replace(RECORD, config_dir=f"{tmp_path}/elsewhere/../mine"), tmp_path / "run" / "result.json")
    assert "method=logits" in resumed(f"--config-dir={tmp_path}/mine", "resume=run")
    with pytest.raises(UserError, match="uses files of another folder"):
        resumed(f"--config-dir={tmp_path}/elsewhere", "resume=run")


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
    code, printed = run(flag, *QUICK, "method=mine", "hydra.run.dir=run")
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
    write(replace(record, status="interrupted"), tmp_path / "run" / "result.json")
    (folder / "mine.yaml").write_text(f"# @package _global_\n{own.replace('alpha: 0.2', 'alpha: 0.3')}\n")
    code, printed = run("--config-dir", "my conf", "resume=run")
    assert (code, "a file of conf/" in printed) == (1, True), printed


@pytest.fixture
def stranger(tmp_path, finished):
    """A function that puts an interrupted run into run/ as a stranger may make it up: its fingerprint is right."""

    def stranger(*overrides, **changes):
        if not (tmp_path / "run").exists():
            shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        fields = {"status": "interrupted", "cwd": str(tmp_path), "command": shlex.join(overrides)}
        with suppress(HydraException, OmegaConfBaseException, UserError):
            fields["fingerprint"] = fingerprint(plain(compose(overrides).cfg))
        write(
            replace(read(finished / "run" / "result.json"), **{**fields, **changes}), tmp_path / "run" / "result.json"
        )

    return stranger


@pytest.fixture
def payload(tmp_path):
    """A folder of modules and files that create a file named executed when they are run, in each of many ways."""
    folder = tmp_path / "payload"
    (folder / "method").mkdir(parents=True)
    create = f"open({str(tmp_path / 'executed')!r}, 'w')"
    for name in ("hubconf.py", "bait.py", "train.py", "sitecustomize.py"):
        (folder / name).write_text(f"dependencies = []\nmodel = lambda **_: {create}\n{create}\n")
    (folder / "method" / "mine.yaml").write_text("# @package _global_\nmethod: {_target_: bait.model}\n")

    class Pickled:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save(Pickled(), folder / "pickle.pt")
    return folder


ATTACKS = [
    ("method._target_=torch.load", "+method.f={folder}/pickle.pt", "+method.weights_only=false"),
    (
        "student._target_=torch.hub.load",
        "+student.repo_or_dir={folder}",
        "+student.source=local",
        "+student.model=model",
    ),
    ("student={{_target_:torch.load,f:{folder}/pickle.pt,weights_only:false}}",),
    ("+student.more={{'_target_':torch.load,f:{folder}/pickle.pt,weights_only:false}}",),
    ("+student.more=[[{{_target_:os.mkdir,path:{folder}/../executed}}]]",),
    ("student=custom", "student.target=torch.hub.load", "student.settings={{repo_or_dir:{folder},model:model}}"),
    ("student=custom", "student={{'target':bait.model}}"),
    ("student=custom", "chain=[{{target:bait.model}}]"),
    ("chain=[{{_target_:torch.load,f:{folder}/pickle.pt,weights_only:false}}]",),
    ("student._target_=kd.runs.status._remove", "+student.directory={folder}"),
    ("+student._args_=[{folder}/pickle.pt]",),
    ("hydra.searchpath=[file://{folder}]", "method=mine"),
    ("+method/../../payload/method=mine",),
    ("hydra.job.env_set={{PYTHONPATH:{folder}}}",),
    ("hydra/launcher=joblib",),
    ("+trainer@hydra.callbacks.x=cpu",),
    ("+debug@_global_.hydra.job=limit",),
    ("teacher_store=${{oc.env:HOME}}",),
    ("teacher_store=$\\{{oc.env:HOME\\}}",),
    ("teacher_store='a${{oc.decode:x}}'",),
    ("logger=mlflow", "logger.tracking_uri=http://127.0.0.1:9"),
    ("logger={{name:elsewhere}}",),
    ("--config-dir={folder}", "method=mine"),
    ("--multirun",),
    ("resume=other",),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack[0])
def test_resume_executes_nothing_of_a_record(run, tmp_path, stranger, payload, attack):
    stranger(*SMALL, *(part.format(folder=payload) for part in attack))
    code, printed = run("resume=run")
    assert not (tmp_path / "executed").exists()
    assert (code, len(printed.splitlines())) == (1, 1), printed
    assert "if that is yours, type it as well" in printed or "the command in result.json is damaged" in printed


def test_resume_executes_no_function_that_a_knob_leads_to(run, tmp_path, stranger, payload):
    """The file of that experiment names its class by a knob."""
    more = ("method.source=local", f"+method.repo_or_dir={payload}", "+method.model=model", "+method.trust_repo=true")
    stranger("data=digits", "trainer=cpu", "experiment=seed_anomaly", "mistake=torch.hub.load", *more)
    code, printed = run("resume=run")
    assert not (tmp_path / "executed").exists()
    assert (code, len(printed.splitlines())) == (1, 1), printed
    assert "scripts.mistakes.torch.hub.load" in printed


def test_resume_takes_what_is_typed_as_well(tmp_path):
    """And the line that refuses it is a command that does so."""
    write(replace(RECORD, command="T=3 student._target_=mine.Net"), tmp_path / "result.json")
    with pytest.raises(UserError, match=r"student\._target_=mine\.Net, which may run code") as refused:
        resumed(f"resume={tmp_path}", "threads=1")
    command = shlex.split(str(refused.value).partition("type it as well: python train.py ")[2])
    assert resumed(*command)[:3] == ["T=3", "threads=1", "student._target_=mine.Net"]


def test_to_be_typed_takes_plain_overrides():
    """Such as stand in the records of every run in this repository's tests and examples."""
    plain = [
        *SMALL,
        *("method=logits", "T=4", "recipe/optimizer@teacher_recipe.optimizer=adamw", "recipe@teacher_recipe=adamw"),
        *("+trainer.limit_train_batches=1", "~trainer.precision", "chain=[{scale:24}]", "method.stages=[0,1]"),
        *("data.root='/a folder/x=y'", "teacher_weights=/a/b.safetensors", "logger=none", "debug=limit", "lr=${T}"),
        *("experiment=seed_table", "mistake=Right", "student={scale:4}", "teacher_store=_mine_"),
    ]
    assert to_be_typed(plain) == []


def test_resume_imports_nothing_from_where_a_record_leads(tmp_path, stranger, payload, monkeypatch):
    """In the processes that a data-parallel run or a loader of images starts."""
    stranger(*SMALL, cwd=str(payload))
    monkeypatch.chdir(tmp_path)
    resumed("resume=run")
    assert Path.cwd() == payload
    assert Path(sys.argv[0]) == tmp_path / "train.py"
    if sys.version_info >= (3, 11):
        for start in ("-cimport bait", "-mbait"):
            assert subprocess.run([sys.executable, start], stderr=subprocess.DEVNULL, check=False).returncode == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["train.log", "result.json", ".lock", "metrics.csv", "checkpoints", "checkpoints/last.ckpt"]
)
def test_resume_follows_no_link(run, tmp_path, stranger, name):
    stranger(*SMALL, "method=logits", "T=2")
    mine, there = tmp_path / "mine", tmp_path / "run" / name
    if there.exists():
        there.rename(mine)
    else:
        mine.write_text("mine")
    there.symlink_to(mine)
    before = {path: path.read_bytes() for path in [mine, *mine.rglob("*")] if path.is_file()}
    code, printed = run("resume=run")
    assert (code, printed) == (
        1,
        f"error: {there} is a symbolic link, which a run does not write through; move it away\n",
    )
    assert {path: path.read_bytes() for path in before} == before


def test_resume_always_compares_the_fingerprint(run, stranger):
    for other in ("", "0123456789abcdef"):
        stranger(*SMALL, "method=logits", "T=2", fingerprint=other)
        code, printed = run("resume=run")
        assert code == 1
        assert "error: the settings of this run are no longer what they were" in printed
