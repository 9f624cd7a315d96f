"""The command line: help, and one line and exit code 1 for every mistake."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from kd.app.cli import help_text
from kd.runs.results import read
from tests import processes
from tests.common import ROOT

CONF = ROOT / "conf"
TINY = ("data=digits", "epochs=1", "teacher.scale=1", "student.scale=1", "logger=none", "trainer=cpu")
QUIET = "trainer.enable_progress_bar=false"
QUIET_SWEEP = (*TINY, QUIET, "data.source.image_size=16", "method=standard", "seed=0,1")


def run_program(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    return processes.run(ROOT / "train.py", *arguments, cwd=cwd, **options)


def test_help_lists_every_choice_and_describes_each_method(tmp_path):
    shown = run_program("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for path in set(CONF.glob("*/*.yaml")) - {CONF / "recipe" / "default.yaml"}:  # the one recipe there is
        assert re.search(rf"\b{path.stem}\b", shown.stdout), path
    assert "softened logits: alpha * hard + (1 - alpha) * soft" in shown.stdout
    assert "T=5.0 in [0.001, 1e6], alpha=0.1 in [0, 1], assistants=[{scale:24}]" in shown.stdout
    assert not list(tmp_path.iterdir())


def test_help_text_includes_a_new_method_file(tmp_path):
    for group in ("method", "data", "student", "teacher", "trainer", "logger", "experiment"):
        (tmp_path / group).mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package _global_\n# my own way\nmethod: null\n")
    assert re.search(r"^  mine +my own way$", help_text(tmp_path), re.MULTILINE)


WITHOUT_TORCH = (
    ("--help",),
    ("method=typo",),
    ("method=standard", "T=4"),
    ("student.scal=8",),
    ("T=0",),
    ("teacher.conv_dropout=1",),
    ("recipe.optimizer.lr=fast",),
    ("teacher_weights=nowhere",),
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Returns, for each of these commands, its exit code and which of torch and Lightning is loaded after it."""
    code = (
        "import json, os, runpy, sys\n"
        "for arguments in json.loads(sys.argv.pop()):\n"
        "    sys.argv[1:], code = arguments, 0\n"
        "    os.environ.pop('HYDRA_FULL_ERROR', None)\n"  # the program sets it itself
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as stop: code = stop.code\n"
        "    print('\\n', json.dumps([code, sorted({'torch', 'lightning'} & {*sys.modules})]), sep='', flush=True)\n"
    )
    code = f"import sys; sys.argv = [{str(ROOT / 'train.py')!r}, sys.argv[1]]\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(WITHOUT_TORCH)],
        cwd=tmp_path_factory.mktemp("loaded"),
        capture_output=True,
        text=True,
        check=True,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return dict(zip(WITHOUT_TORCH, outcomes, strict=True))


@pytest.mark.parametrize("arguments", WITHOUT_TORCH)
def test_cli_prints_help_and_mistakes_without_loading_torch(loaded, arguments):
    assert loaded[arguments] == [0 if arguments == ("--help",) else 1, []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("method=typo",),
            "error: there is no method=typo. There are ab, abkd, at",
        ),
        (("student=typo",), "error: there is no student=typo. There are cnn16"),
        (("method=standard", "T=4"), "error: there is no setting 'T' with method=standard"),
        (("student.scal=8",), "error: there is no setting 'student.scal' with the default method"),
        (("method=logits", "beta=1"), "error: there is no setting 'beta' with method=logits"),
        (("method=standard", "+T=4"), "error: T=4: this method has no such knob"),
        (("T=hot",), "error: T must be a number in [0.001, 1e6], got hot"),
        (("experiment=seeds", "hydra.run.dir=here"), "error: hydra.run.dir=here is for one run, and these are several"),
        (("T",), "error: 'T' is not a setting; settings are given as T=VALUE"),
        (("resume=nowhere",), "error: resume=nowhere: not the directory of a run"),
        (("resume=~no-such-user/run",), "error: resume=~no-such-user/run: not the directory of a run"),
        (("--config-dir=~no-such-user/mine",), "error: --config-dir=~no-such-user/mine: no such folder"),
        (("data.also_test=['~no-such-user/c']",), "error: data.also_test: no folder ~no-such-user/c"),
        (("method=at,sp", "beta=1000"), "error: method=at,sp: several values are several runs"),
        (("method=teacher", "teacher_weights=x"), "error: teacher_weights is for methods that learn from a teacher"),
        (("method=ban", "teacher_weights=x"), "error: teacher_weights is for methods that learn from a teacher; this"),
        (("ensemble=2", f"teacher_weights={__file__}"), "error: ensemble is for teachers of the store; several"),
        (("T=null",), "error: T must be a number in [0.001, 1e6], got null"),
        (("seed=-1",), "error: seed must be a whole number in [0, 4294967296), got -1"),
        (("seed=4294967296",), "error: seed must be a whole number in [0, 4294967296), got 4.29497e+09"),
        (("recipe.epochs=0",), "error: recipe.epochs must be a whole number in [1, 1000000], got 0"),
    ],
)
def test_cli_refuses_mistakes_in_the_command(run, arguments, message):
    code, printed = run(*arguments, "data=digits")
    assert code == 1
    (line,) = printed.splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize(
    "devices", [("trainer=ddp",), ("trainer.devices=2",), ("hydra/launcher=cohort", "trainer=ddp")]
)
def test_sweep_refuses_data_parallel_runs(run, devices):
    code, printed = run("-m", "data=digits", *devices, "hydra.sweep.dir=sweep")
    assert code == 1
    assert "error: training on several devices starts this command again" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("method=logits", "T=0"), "T must be in [0.001, 1e6], got 0"),
        (("method=logits", "alpha=1.5"), "alpha must be in [0, 1], got 1.5"),
        (("method=feature", "alpha=0.8", "beta=0.5"), "alpha + beta must be in [0, 1], got alpha=0.8 and beta=0.5"),
        (("method=feature", "method.stages=[2]"), "method.stages must be in [-2, 1] for a network of 2 stages, got 2"),
        (("+recipe.optimizer.foreach=true",), "`fused` and `foreach` cannot be `True` together"),
        (("+trainer.limit_test_batches=0.001",), "less than one of the 3 batches; give 1 for one"),
        (("+trainer.limit_val_batches=0.01",), "trainer.limit_val_batches=0.01 is less than one of the 2 batches"),
        (
            ("+trainer.overfit_batches=1",),
            "trainer.overfit_batches is set by the run itself; give debug=overfit instead",
        ),
        (
            ("trainer.overfit_batches=1",),
            "trainer.overfit_batches is set by the run itself; give debug=overfit instead",
        ),
        (("+trainer.num_nodes=2",), "trainer.num_nodes is for runs that a cluster's launcher has started"),
        (("trainer.devices=99999",), "trainer.devices=99999: there are"),
        (
            ("method._target_=torch.nn.ReLU", "~method.T", "~method.alpha", "~method.label_smoothing"),
            "T=2.0: what would",
        ),
        ((f"teacher_weights={__file__}",), "is not a whole safetensors file"),
        (("threads=1000",), "threads=1000 is far more than the"),
        (("student.activation=gelu",), "activation must be one of relu, elu, got gelu"),
        (("teacher.head_dropout=1",), "head_dropout must be in [0, 1), got 1"),
        (("recipe.schedule.warmup=1",), "schedule.warmup must be in [0, 1), got 1"),
        (("recipe.batch_size=5000",), "batch_size=5000 is more than the 1,295 training images; give batch_size=1024"),
        (("data.val_fraction=1",), "data.val_fraction must be in [0, 1), got 1"),
        (("recipe.optimizer.lr=fast",), "recipe.optimizer.lr must be a number in [0, inf), got fast"),
        (("recipe.batch_size=many",), "recipe.batch_size must be a whole number in [1, inf), got many"),
        (("trainer=gpu",), "trainer.accelerator=gpu: torch")
        if not torch.cuda.is_available()
        else (("student.scale=0",), "scale"),
        (("trainer.sync_batchnorm=true",), "trainer.sync_batchnorm=true is for GPUs"),
        (("recipe.optimizer.lr=-1",), "recipe.optimizer.lr must be in [0, inf), got -1"),
        (("teacher_recipe.label_smoothing=1.5",), "label_smoothing must be in [0, 1], got 1.5"),
        (("trainer.precision=12",), "trainer.precision must be one of auto, 16-mixed"),
        (("data=cifar10",), "/data, and it cannot be downloaded"),
        (("data=cifar10", "data.root=empty"), "/empty; create it to have CIFAR-10 downloaded there"),
        (("data=folder", "data.root=nowhere"), "nowhere"),
        (("teacher_weights=nowhere.safetensors",), "no weights at nowhere.safetensors"),
        (("hydra.run.dir=file/run",), "cannot use file/run"),
    ],
)
def test_cli_reports_mistakes_before_training(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # a closed port: no network
    (tmp_path / "file").touch()
    code, printed = run(*TINY, QUIET, *arguments)
    assert code == 1
    assert "Traceback" not in printed
    assert message in next(line for line in printed.splitlines() if line.startswith("error: "))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.glob("teachers/*"))


def test_run_in_a_busy_directory_leaves_it_alone(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with FileLock(tmp_path / "run" / ".lock"):
        code, printed = run(*TINY, QUIET, "method=standard", "hydra.run.dir=run")
    assert (code, printed) == (1, "error: another process is at work in run\n")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("text", ["a: [", "\tT: 4", "T: 1\nT: 2", "- 1", "defaults: logits"])
def test_files_of_ones_own_that_cannot_be_read_are_one_line(run, tmp_path, text):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    code, printed = run("--config-dir=conf", *TINY, QUIET, "method=mine")
    assert code == 1
    (line,) = printed.splitlines()
    assert line.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_program_without_its_packages_is_one_line(tmp_path):
    """Python's -S leaves out all that is installed."""
    done = subprocess.run([sys.executable, "-S", ROOT / "train.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: No module named '\w+'; install what is missing: pip install -e \.\n", done.stderr)


def test_program_with_an_old_python_is_one_line(tmp_path):
    code = "import sys, runpy; sys.version_info = (3, 9, 1); runpy.run_path(sys.argv[1], run_name='__main__')"
    program = [sys.executable, "-c", code, ROOT / "train.py"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: kd needs Python 3.10 or newer, and this is 3.9\n"


def test_program_starts_as_a_module(tmp_path):
    code = [sys.executable, "-m", "kd.app.cli", "T=abc"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (1, ["error: T must be a number in [0.001, 1e6], got abc"])


@pytest.mark.parametrize("mistake", ["T=0", "student.activation=gelu", "student._target_=nope.Nope"])
def test_refused_command_leaves_nothing(run, tmp_path, mistake):
    """The first is found before Hydra makes a directory, the others when everything is built once."""
    code, printed = run(*TINY, QUIET, mistake)
    assert (code, len(printed.splitlines())) == (1, 1)
    assert not list(tmp_path.iterdir())


def test_refused_command_leaves_what_was_there(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    code, printed = run(*TINY, QUIET, "hydra.run.dir=mine")
    assert code == 1
    assert "error: mine holds notes.txt, and no result.json of a run; choose another hydra.run.dir" in printed
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_log_of_another_program_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.log").write_text("keep")
    code, printed = run(*TINY, QUIET, "hydra.run.dir=mine", "student.activation=gelu")
    assert code == 1
    assert "error: mine holds train.log, and no result.json of a run" in printed
    assert (tmp_path / "mine" / "train.log").read_text() == "keep"


def test_refused_command_leaves_a_run_as_it_is(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(*TINY, QUIET, "hydra.run.dir=run", "T=0")[0] == 1
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_chdir_leaves_data_and_teachers_where_they_are(run, tmp_path):
    code, printed = run(*TINY, QUIET, "method=logits", "hydra.job.chdir=true", "hydra.run.dir=run")
    assert code == 0, printed
    assert len(list(tmp_path.glob("teachers/*/teacher.safetensors"))) == 1
    assert not (tmp_path / "run" / "teachers").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torchvision.models.resnet18", "ResNet takes no image_size, which every network is given here"),
        ("torch.nn.Identity", "Identity returned a Tensor, not a kd.Output; wrap it with kd.wrap(net)"),
        ("nope.Nope", "_target_=nope.Nope: there is no such class or function"),
    ],
)
def test_networks_without_the_contract_are_refused_before_training(run, tmp_path, target, message):
    settings = ("scale", "activation", "conv_dropout", "head_dropout")
    others = [part for part in TINY if part != "student.scale=1"]
    code, printed = run(*others, QUIET, f"student._target_={target}", *(f"~student.{name}" for name in settings))
    assert code == 1
    assert message in printed
    assert not list(tmp_path.iterdir())


def test_divergence_error_names_term_step_and_learning_rate(run, tmp_path):
    diverging = ("recipe.optimizer.lr=1e12", "recipe.clip_norm=null", "hydra.run.dir=run")
    code, printed = run(*TINY, QUIET, "epochs=2", *diverging)
    assert code == 1
    assert re.search(r"error: training diverged: the hard loss is \S+, .*at step \d+ .*learning rate \d", printed)
    assert "try a lower lr, recipe.clip_norm=1 (of a teacher: teacher_recipe" in printed
    record = read(tmp_path / "run" / "result.json")
    assert (record.status, record.test_acc) == ("failed", None)
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_cli_prints_the_traceback_with_hydra_full_error(tmp_path):
    failed = run_program(*TINY, "T=0", cwd=tmp_path, env={**os.environ, "HYDRA_FULL_ERROR": "1"})
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr


def test_run_on_a_full_disk_leaves_no_partial_files(run, tmp_path):
    """A limit on the size of files stands in for the disk: the student's checkpoint is over it."""
    sizes = ("teacher.scale=1", "student.scale=16", "hydra.run.dir=run")
    full = run_program(*TINY, QUIET, *sizes, cwd=tmp_path, largest_file=4 << 20)
    assert full.returncode == 1
    assert "error: cannot save the run: File too large; once there is space, continue with" in full.stderr
    assert "Traceback" not in full.stderr
    assert read(tmp_path / "run" / "result.json").status == "failed"
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert run("resume=run")[0] == 0
    assert read(tmp_path / "run" / "result.json").status == "done"


def test_help_shows_methods_of_a_folder_of_ones_own(run, tmp_path):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "my_own.yaml").write_text("# @package _global_\n# my own way\nmethod: null\n")
    code, printed = run("--config-dir=mine", "--help")
    assert code == 0
    assert re.search(r"^  my_own +my own way$", printed, re.MULTILINE)
    assert re.search(r"^  logits ", printed, re.MULTILINE)


def test_help_names_a_file_of_ones_own_that_cannot_be_read(run, tmp_path):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    file = tmp_path / "mine" / "method" / "my_own.yaml"
    file.write_text("# only a comment\n")
    assert run("--config-dir=mine", "--help")[0] == 0
    for content, reason in {
        b"a: b: c": "mapping values are not allowed here",
        b"- a": "its settings are to be given as NAME: VALUE",
        b"# caf\xe9\na: 1": "'utf-8' codec can't decode",
    }.items():
        file.write_bytes(content)
        code, printed = run("--config-dir=mine", "--help")
        assert (code, printed.count("\n")) == (1, 1)
        assert printed.startswith(f"error: {file} cannot be read: {reason}")


@pytest.mark.parametrize("arguments", [("-m", "--help"), ("T", "4", "--help"), ("--config-dir=nowhere", "--help")])
def test_help_is_shown_whatever_else_is_typed(run, arguments):
    code, printed = run(*arguments)
    assert code == 0
    assert re.search(r"^  logits ", printed, re.MULTILINE)


def test_resume_of_a_sweep_names_its_command(run, tmp_path):
    code, _ = run("-m", *QUIET_SWEEP, "hydra.sweep.dir=a sweep")
    assert code == 0
    code, printed = run("resume=a sweep")
    assert code == 1
    command = printed.partition("which its own command continues: python train.py ")[2].strip()
    arguments = shlex.split(command)
    assert arguments[0] == "-m"
    assert set(QUIET_SWEEP) <= {*arguments}
    code, printed = run(*arguments)
    assert code == 0, printed
    assert "all 2 jobs were done before" in printed
    (tmp_path / "a sweep" / "multirun.yaml").write_text("{")
    code, printed = run("resume=a sweep")
    assert (code, printed.strip()) == (1, "error: resume=a sweep: this is a sweep, which its own command continues")


def test_resume_of_a_sweep_names_folder_and_place_of_its_command(run, tmp_path, monkeypatch):
    """Without them, methods of one's own and relative paths would not be found."""
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "my_own.yaml").write_text("# @package _global_\n# my own\nmethod: null\n")
    code, printed = run(
        "-m", "--config-dir=mine", *TINY, QUIET, "data.source.image_size=16", "method=my_own", "hydra.sweep.dir=sweep"
    )
    sweep = tmp_path / "sweep"
    assert (sweep / "multirun.yaml").exists(), printed
    monkeypatch.chdir(tmp_path / "mine")
    code, printed = run(f"resume={sweep}")
    assert code == 1
    assert f"continues: cd {tmp_path} && python train.py -m --config-dir={tmp_path}/mine " in printed
