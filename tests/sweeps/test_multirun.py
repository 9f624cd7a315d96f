"""Sweeps from the command line, `train.py -m`."""

import gc
import os
import re
import shlex
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins
from lightning import LightningModule, Trainer
from matplotlib.figure import Figure
from omegaconf import DictConfig

from hydra_plugins.kd.sweeper import ResumableSweeper
from kd.app import cli
from kd.app.arguments import quoted
from kd.app.cli import prepared
from kd.data.images import Images
from kd.runs.results import Result, read, write
from kd.sweeps.jobs import Job
from kd.sweeps.look import Reader
from kd.training.loggers import TensorBoard
from tests import processes
from tests.common import QUICK, ROOT, SMALL
from tests.sweeps import kill_sweep


def records(sweep):
    return {path.parent.name: read(path) for path in sorted(sweep.glob("*/result.json"))}


@pytest.fixture
def sweep(run, tmp_path):
    return lambda *arguments: (*run("-m", *QUICK, "hydra.sweep.dir=sweep", *arguments), tmp_path / "sweep")


@pytest.fixture
def launcher():
    """Hydra's sequential launcher; it loads its plugins itself: what an import here finds is another class."""
    return Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]


def test_multirun_holds_nothing_of_the_jobs_before(run, tmp_path, monkeypatch):
    """Neither of one that failed, whose traceback held its images, nor of one that is done, whose Trainer did."""
    found, job = [], cli.job

    def counting(*arguments):
        alive = Counter(map(type, gc.get_objects()))
        kinds = Counter()
        for kind in (Trainer, LightningModule, Images, TensorBoard, DictConfig, Figure):
            kinds[kind.__name__] = sum(count for of, count in alive.items() if issubclass(of, kind))
        links = [Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
        opened = {os.readlink(link) for link in links if link.exists()}
        found.append((kinds, {Path(file).name for file in opened if str(tmp_path) in file}, threading.active_count()))
        return job(*arguments)

    monkeypatch.setattr(cli, "job", counting)
    gc.collect()
    gc.disable()
    try:
        code, printed = run("-m", *SMALL, "epochs=1", "method=standard", "lr=1e30,0.1,0.05")
    finally:
        gc.enable()
    assert (code, "1 failed" in printed) == (1, True)
    before, _, after = found  # what a failed job leaves is collected at the end of the next one
    assert not any(after[0][name] for name in ("Trainer", "LightningModule", "Images", "TensorBoard", "Figure"))
    assert after[0]["DictConfig"] - before[0]["DictConfig"] < 50  # a job has hundreds
    assert before[1] == after[1] == {".lock", "train.log"}
    assert before[2] == after[2]  # threads


def test_multirun_continues_past_refused_jobs(sweep):
    """Those that their settings rule out, before anything runs, and one that its network does, when it is built."""
    code, printed, directory = sweep("method=feature", "alpha=0.5,0.8", "beta=0.3", "method.stages=[7],[-1]")
    sums = "refused alpha=0.8 (2 jobs): alpha + beta must be in [0, 1], got alpha=0.8 and beta=0.3\n"
    stages = "refused alpha=0.5 method.stages=[7]: method.stages must be in [-2, 1]"
    assert code == 1
    assert printed.index(f"[2/4] {sums}") < printed.index(f"[3/4] {stages}") < printed.index("[4/4] done")
    assert printed.count(sums) == printed.count(stages) == 2  # again at the end
    assert printed.endswith("error: 1 done, 3 refused, for the reasons above\n")
    assert {name: record.status for name, record in records(directory).items()} == {"1": "done"}
    assert not (directory / "0").exists()
    assert Reader(directory).look().counts() == {"done": 1, "refused": 3}  # what scripts/watch.py shows


def test_multirun_refuses_a_job_alone_whose_setting_refers_to_none(sweep):
    code, printed, directory = sweep("method=standard", "epochs=1", "student.conv_dropout=0.0,${nowhere}")
    assert (code, len(records(directory))) == (1, 1)
    assert "there is no setting 'nowhere'" in printed


def test_multirun_resumes_with_the_missing_jobs(sweep):
    code, printed, directory = sweep("method=logits", "T=1,4")
    assert (code, printed.count("done    T=")) == (0, 2)
    before = {name: (directory / name / "result.json").stat().st_mtime_ns for name in "01"}
    # Cut short, a record is no result, and stays as it is; the grid has grown, and has the same run twice.
    (directory / "1" / "result.json").write_text("{")
    code, printed, _ = sweep("method=logits", "T=4,2,1,1.0")
    assert code == 0
    assert "skipped T=1: done before" in printed
    assert "skipped T=1.0: the same as T=1" in printed
    assert (directory / "0" / "result.json").stat().st_mtime_ns == before["0"]
    assert (directory / "1" / "result.json").read_text() == "{"
    (directory / "1" / "result.json").unlink()
    assert {name: (record.knobs["T"], record.status) for name, record in records(directory).items()} == {
        "0": (1, "done"), "2": (4, "done"), "3": (2, "done")
    }  # fmt: skip


def test_fingerprint_depends_on_the_content_of_teacher_weights(sweep, run, tmp_path):
    for seed in (0, 1):
        assert run(*QUICK, "method=teacher", f"seed={seed}", f"hydra.run.dir=teacher{seed}")[0] == 0
    weights = tmp_path / "weights.safetensors"
    for seed, done in ((0, 1), (0, 0), (1, 1)):
        weights.write_bytes((tmp_path / f"teacher{seed}" / "teacher.safetensors").read_bytes())
        code, printed, directory = sweep("method=logits", f"teacher_weights={weights}")
        assert (code, printed.count("done    the run")) == (0, done)
    assert len(records(directory)) == 2


def test_sweep_subdir_names_the_directories(sweep):
    _, _, directory = sweep("method=standard", "seed=0,1", "hydra.sweep.subdir=seed${seed}")
    assert {name: record.seed for name, record in records(directory).items()} == {"seed0": 0, "seed1": 1}


def test_sweep_dir_that_names_a_swept_setting_is_one_folder(run, tmp_path):
    arguments = ("-m", *QUICK, "method=standard", "seed=0,1", "hydra.sweep.dir=seed${seed}")
    code, printed = run(*arguments)
    assert code == 0, printed
    assert {name: record.seed for name, record in records(tmp_path / "seed0").items()} == {"0": 0, "1": 1}
    assert "all 2 jobs were done before" in run(*arguments)[1]


def test_setting_that_the_default_choice_lacks_may_have_one_value(sweep):
    """Of methods that have it, and of one that does not, which alone is refused."""
    code, printed, directory = sweep("method=feature,dkd,standard", "beta=0.3", "+trainer.fast_dev_run=true")
    assert code == 1
    assert "refused method=standard: there is no setting 'beta' with method=standard" in printed
    assert [record.knobs["beta"] for record in records(directory).values()] == [0.3, 0.3]


def test_setting_of_a_group_with_a_package_may_have_one_value():
    typed = ["recipe/schedule@teacher_recipe.schedule=multistep,published", "teacher_recipe.schedule.gamma=0.2"]
    arguments, _ = prepared(["-m", "data=digits", *typed])
    assert "teacher_recipe.schedule.gamma=choice(0.2)" in arguments.overrides


def test_setting_that_the_default_choice_lacks_may_have_one_value_in_an_experiment():
    """Which is a multirun without -m."""
    arguments, _ = prepared(["experiment=seeds", "data=digits", "method=feature,dkd", "beta=0.3"])
    assert "beta=choice(0.3)" in arguments.overrides


def test_sweep_subdir_refuses_nesting(sweep):
    code, printed, directory = sweep("method=standard", "seed=0,1", "hydra.sweep.subdir=a/${seed}")
    assert (code, records(directory)) == (1, {})
    assert "error: hydra.sweep.subdir=a/0: jobs lie side by side in hydra.sweep.dir; give a single name" in printed


def test_multirun_trains_a_method_without_a_teacher_once(sweep):
    code, printed, directory = sweep("method=standard", "teacher.scale=2,3", "ensemble=1,2")
    assert (code, len(records(directory))) == (0, 1)
    assert "teacher.scale=3 ensemble=2: the same as teacher.scale=2 ensemble=1" in printed
    assert records(directory)["0"].variant == "batch_size=256 data.source.image_size=16 epochs=2 student.scale=2"


def test_multirun_of_refused_jobs_only_is_one_error(sweep):
    code, printed, directory = sweep("T=0,-1")
    assert code == 1
    assert printed.strip().splitlines()[-1] == "error: T must be in [0.001, 1e6], got 0"
    assert not records(directory)


def test_multirun_on_a_full_disk_fails_jobs_and_resumes(sweep, run, tmp_path):
    assert run(*QUICK, "method=teacher", "hydra.run.dir=teacher")[0] == 0
    grid = (*QUICK, "hydra.sweep.dir=sweep", "method=logits", "T=1,2", "speed.stored_logits=false")
    done = processes.run(ROOT / "train.py", "-m", *grid, cwd=tmp_path, largest_file=40_000)
    assert done.returncode == 1
    assert done.stdout.count("cannot save the run: File too large; once there is space") >= 2
    assert "error: 2 failed; what is missing is tried again by" in done.stderr
    code, printed, directory = sweep("method=logits", "T=1,2,4", "speed.stored_logits=false")
    assert (code, printed.count("done    T=")) == (0, 3)
    assert [record.knobs["T"] for record in records(directory).values()] == [1, 2, 4]


@pytest.mark.parametrize("deaths", [1, 9])
def test_sweeper_retries_jobs_of_a_failed_launcher(sweep, launcher, monkeypatch, deaths):
    launch, left = launcher.launch, [None] * deaths

    def die(self, job_overrides, initial_job_idx):
        if left:
            left.pop()
            raise RuntimeError("a worker was killed")
        return launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(launcher, "launch", die)
    code, printed, _ = sweep("method=standard")
    assert ("done    the run" in printed, code) == ((True, 0) if deaths == 1 else (False, 1))
    if deaths == 1:
        assert "the launcher failed: a worker was killed; what was not finished was launched again" in printed
    else:
        assert printed == "error: hydra/launcher=basic could not start a job: a worker was killed\n"


def test_sweeper_begins_again_with_the_jobs_that_had_not_begun(tmp_path):
    """One that brings the launcher down each time, as by its memory, keeps no other from being run."""
    jobs = [Job((f"seed={seed}",), f"f{seed}", str(seed), directory=tmp_path / str(seed)) for seed in range(3)]
    asked = []

    def put(seed, status):
        jobs[seed].directory.mkdir(exist_ok=True)
        write(
            Result(method="standard", seed=seed, dataset="digits", epochs=2, status=status),
            jobs[seed].directory / "result.json",
        )

    def launch(commands, initial_job_idx):
        asked.append([int(command[0].removeprefix("seed=")) for command in commands])
        for seed in asked[-1]:
            put(seed, "running" if seed == 0 else "done")
            if seed == 0:
                raise RuntimeError("a worker was killed")

    sweeper = ResumableSweeper(max_batch_size=None)
    sweeper.launcher = SimpleNamespace(launch=launch)
    assert sweeper._launch_with_retries(jobs, ()) == []
    assert asked == [[0, 1, 2], [1, 2, 0], [0]]
    assert [job.status for job in jobs] == ["failed", "done", "done"]


def test_sweeper_refuses_a_name_that_is_too_long_and_runs_the_others(sweep):
    name = "hydra.sweep.subdir='${student.activation}${seed}" + "x" * 246 + "'"
    code, printed, directory = sweep("method=standard", "student.activation=elu,relu", "epochs=1", name)
    assert code == 1
    assert "the name of its directory is longer than 250 bytes; choose another hydra.sweep.subdir" in printed
    (record,) = records(directory).values()
    assert record.status == "done"


def test_sweep_goes_on_though_nobody_reads_its_lines(tmp_path):
    """As in `python train.py -m ... | head -1`: the pipe is closed after the first job."""
    grid = (*QUICK, "hydra.sweep.dir=sweep", "method=standard", "seed=0,1", "epochs=1")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, runpy, sys\n"
        "reading, writing = os.pipe()\n"
        "os.dup2(writing, 1)\n"
        "os.close(reading)\n"
        "sys.stdout = open(1, 'w', closefd=False)\n"
        f"sys.argv[0] = {str(ROOT / 'train.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = processes.run(program, "-m", *grid, cwd=tmp_path)
    assert done.stdout == ""
    assert [record.status for record in records(tmp_path / "sweep").values()] == ["done", "done"], done.stderr


def test_sweeper_reports_a_launcher_that_fails_once_a_job_has_begun(sweep, launcher, monkeypatch, tmp_path):
    def die(self, job_overrides, initial_job_idx):
        (tmp_path / "sweep" / "0").mkdir(exist_ok=True)
        begun = Result(method="standard", seed=0, dataset="digits", epochs=2, status="running")
        write(begun, tmp_path / "sweep" / "0" / "result.json")
        raise RuntimeError("a worker was killed")

    monkeypatch.setattr(launcher, "launch", die)
    code, printed, directory = sweep("method=standard")
    assert code == 1
    assert "failed the run: its launcher failed: a worker was killed\n1 failed in sweep\n" in printed
    assert records(directory)["0"].status == "interrupted"


def test_multirun_names_jobs_whose_settings_cannot_be_composed(sweep):
    """What a method lacks is refused, by the choice that all of these jobs have; the others run."""
    code, printed, directory = sweep("method=standard,logits", "T=1,4", "epochs=1")
    reason = "method=standard (2 jobs): there is no setting 'T' with method=standard"
    lines = printed.splitlines()
    assert code == 1
    assert lines[0].startswith(f"[2/4] refused {reason}")
    assert any(line.startswith(f"refused {reason}") for line in lines[1:])
    assert lines[-1] == "error: 2 done, 2 refused, for the reasons above"
    assert [record.knobs["T"] for record in records(directory).values()] == [1, 4]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("seed=range(0)",), "seed=range(0) stands for no value, so that there is nothing to run"),
        (("T=glob(*)",), "T=glob(*) stands for no value, so that there is nothing to run"),
        (("seed=interval(0,1)",), "seed=interval(0,1): a sweep needs single values, such as seed=0,1,2; "),
        (("seed=range(1000000000)",), "this sweep has more than 10,000 jobs; run fewer at a time"),
        (("seed=range(200)", "T=range(1,200)"), "this sweep has more than 10,000 jobs"),
        (("tempreature=1,4",), "there is no setting 'tempreature' with"),
        (("hydra.sweeper.max_batch_size=0",), "hydra.sweeper.max_batch_size must be at least 1, got 0"),
        (("hydra.sweep.subdir=..",), "hydra.sweep.subdir=..: jobs lie side by side in hydra.sweep.dir"),
        (("hydra.sweep.subdir=''",), "hydra.sweep.subdir=: jobs lie side by side"),
        (("hydra.sweep.dir=''",), "hydra.sweep.dir= names no folder"),
        (("seed=0,1", "hydra.run.dir=here"), "hydra.run.dir=here is for one run, and these are several; give hydra.sw"),
        (("experiment=seeds,beta_curve",), "experiment=seeds is a sweep of its own; run it by itself"),
        (("seed=0,1", "student.activation=${hydra:runtime.cwd}"), "${hydra:...} has no value before a run begins"),
        (("experiment=sed_table",), "there is no experiment=sed_table; did you mean experiment=seed_table?"),
        (("experiment=seeds,sed_table",), "there is no experiment=sed_table; did you mean experiment=seed_table?"),
    ],
)
def test_sweeper_refuses_a_mistake_in_one_line(run, tmp_path, arguments, printed):
    code, lines = run("-m", *QUICK, "method=logits", *arguments)
    assert (code, lines.count("\n")) == (1, 1)
    assert lines.startswith(f"error: {printed}")
    assert not list(tmp_path.iterdir())


def test_multirun_leaves_nothing_if_no_network_can_be_built(sweep, tmp_path):
    code, printed, _ = sweep("method=feature", "method.stages=[7],[8]")
    assert code == 1
    assert printed.startswith("[1/2] refused method.stages=[7]: method.stages must be in [-2, 1]")
    assert printed.splitlines()[-1].startswith("error: method.stages must be in [-2, 1]")
    assert not list(tmp_path.iterdir())


def test_multirun_prints_commands_that_continue_it(run, launcher, tmp_path, monkeypatch):
    """Of a folder that the shell, Hydra and rich each have characters for."""
    folder = "it's [v2], a=$5 ü"
    grid = (*QUICK, "method=standard", "epochs=1", "seed=0,1", "hydra.sweep.subdir='[v2] it\\'s, ${seed}'")
    launch, launched = launcher.launch, []

    def interrupt(self, job_overrides, initial_job_idx):
        if launched:
            raise KeyboardInterrupt
        launched.append(job_overrides)
        return launch(self, job_overrides, initial_job_idx)

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "launch", interrupt)
        code, printed = run("-m", *grid, quoted("hydra.sweep.dir", folder))
    assert code == 130
    assert "[v2] it's, 0  seed=0    done" in printed
    python, program, *arguments = shlex.split(printed.split("continue with: ")[1])
    assert (python, program) == ("python", "train.py")
    code, printed = run(*arguments)
    assert code == 0
    assert printed.startswith("[1/2] skipped seed=0: done before\n")
    assert {path.name for path in tmp_path.iterdir()} == {folder}
    assert {record.status for record in records(tmp_path / folder).values()} == {"done"}
    assert f"1 done, 1 skipped in {shlex.quote(folder)}\n" in printed
    assert printed.endswith(f"tables and figures: python scripts/report.py {shlex.quote(folder)}\n")
    code, printed = run(*arguments)
    assert code == 0
    assert printed.startswith("all 2 jobs were done before; nothing to do\n")


def test_multirun_killed_repeatedly_ends_with_the_right_results(capsys):
    """Three kills of four jobs here; `python tests/sweeps/kill_sweep.py` for twenty of twelve."""
    kill_sweep.main(["--kills=3", "seed=0"])
    assert re.fullmatch(r"exactly the 4 right results after [1-3] kills", capsys.readouterr().out.splitlines()[-1])
    assert processes.run(ROOT / "tests" / "sweeps" / "kill_sweep.py", "--help", cwd=ROOT).returncode == 0
