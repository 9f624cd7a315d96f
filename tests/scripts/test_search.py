"""scripts/search.py from its command line, killed and resumed."""

import errno
import logging
import re
import shlex
import signal
import sys
import time

import pytest
import torch
from filelock import FileLock

from kd.report.summary import summarize
from kd.runs.results import collect, read
from kd.training.callbacks import EpochSeed
from scripts import search
from tests import processes
from tests.common import CONF, ROOT, SMALL

QUICK = (*SMALL, "logger=none")
ALONE = (*QUICK, "method=standard", "data.val_fraction=0.7")  # short epochs


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


@pytest.fixture
def run_search(tmp_path, monkeypatch, capsys):
    """Calls the script in an empty folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_search(*arguments):
        monkeypatch.setattr(sys, "argv", ["search.py", "found", *arguments])
        return search.main(), "".join(capsys.readouterr())

    yield run_search
    for name in ("kd.teachers", "kd.app.teacher"):  # whose levels the script sets for its process
        logging.getLogger(name).setLevel(logging.NOTSET)


def load_study(directory):
    """Return a copy of the study in memory, of which no connection to its file is left open."""
    import optuna
    from sqlalchemy.pool import NullPool

    file = optuna.storages.RDBStorage(f"sqlite:///{directory / search.STUDY}", engine_kwargs={"poolclass": NullPool})
    optuna.copy_study(
        from_study_name="search", from_storage=file, to_storage=(memory := optuna.storages.InMemoryStorage())
    )
    file.remove_session()
    return optuna.load_study(study_name="search", storage=memory)


def states(study):
    """Return the states of the trials that count: not of one that was repeated when the search was resumed."""
    return [trial.state.name for trial in search.counted(study)]


def error_line(outcome):
    code, printed = outcome
    assert code == 1
    assert printed.count("\n") == 1
    assert printed.startswith("search.py: ")
    return printed


@pytest.mark.usefixtures("optuna")
def test_search_records_trials_and_prints_the_best_command(run_search, run, tmp_path):
    arguments = (*QUICK, "method=logits", "data.val_fraction=0.7", "--seed", "3")
    code, printed = run_search("--trials", "2", *arguments)
    assert code == 0, printed
    first = {name: (tmp_path / "found" / name / "result.json").stat().st_mtime_ns for name in "01"}
    code, printed = run_search("--trials", "3", *arguments)
    assert "2 of 3 trials are finished" in printed
    again_code, again = run_search("--trials", "3", *arguments)
    assert (again_code, again.splitlines()[0]) == (0, "3 trials were finished before; give a larger --trials for more")
    results = {path.parent.name: read(path) for path in (tmp_path / "found").glob("*/result.json")}
    assert {name: result.status for name, result in results.items()} == dict.fromkeys("012", "done")
    assert all((tmp_path / "found" / name / "result.json").stat().st_mtime_ns == then for name, then in first.items())

    study = load_study(tmp_path / "found")
    for trial in study.trials:
        result = results[str(trial.number)]
        assert trial.value == result.val_acc
        assert [trial.intermediate_values[epoch] for epoch in range(2)] == result.epoch_val_acc
        assert (result.knobs["T"], result.knobs["alpha"]) == pytest.approx(
            (trial.params["T"], trial.params["alpha"]), rel=1e-3
        )
    assert set(study.trials[0].params) == {"T", "alpha", "recipe.optimizer.lr"}

    best = max(results, key=lambda name: results[name].val_acc)
    table = printed.split("test acc\n")[1].splitlines()
    assert table[0].split()[0] == best
    assert f"{100 * results[best].test_acc:.2f} %" in table[0]
    assert "\ntables and figures: python scripts/report.py found\n" in printed
    command = shlex.split(printed.split("the best again: ")[1].splitlines()[0])
    assert command[:2] == ["python", "train.py"]
    assert run(*command[2:], "trainer.enable_progress_bar=false", "hydra.run.dir=again")[0] == 0
    again = read(tmp_path / "again" / "result.json")
    assert (again.test_acc, again.fingerprint) == (results[best].test_acc, results[best].fingerprint)
    assert (again.variant, again.group) == (results[best].variant, results[best].group)

    # The seed alone decides the trials, whether or not the search pauses after two.
    (tmp_path / "found").rename(tmp_path / "paused")
    assert run_search("--trials", "3", *arguments)[0] == 0
    assert [trial.params for trial in load_study(tmp_path / "found").trials] == [trial.params for trial in study.trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Arguments of a search, and the settings and values of its trials if nothing stops it."""
    pytest.importorskip("optuna")
    arguments, folder = (*ALONE, "--trials", "2", "recipe.epochs=6"), tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["search.py", "found", *arguments])
        assert search.main() == 0
    return arguments, [(trial.params, trial.value) for trial in load_study(folder / "found").trials]


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_search_resumes_the_interrupted_trial(run_search, undisturbed, tmp_path, monkeypatch, stop):
    arguments, expected = undisturbed
    process = processes.start(ROOT / "scripts" / "search.py", "found", *arguments, cwd=tmp_path)
    checkpoint = tmp_path / "found" / "1" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGTERM else -signal.SIGKILL), errors
    assert ("the search goes on with: python" in errors) is (stop == signal.SIGTERM)
    before = load_study(tmp_path / "found").trials
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    reached = torch.load(checkpoint, weights_only=True)["epoch"] + 1
    assert 0 < reached < 6

    epochs = []
    plain = EpochSeed.on_train_epoch_start
    monkeypatch.setattr(
        EpochSeed,
        "on_train_epoch_start",
        lambda self, trainer, module: (epochs.append(trainer.current_epoch), plain(self, trainer, module))[1],
    )
    code, printed = run_search(*arguments)
    assert code == 0, printed
    assert epochs == [*range(reached, 6)]
    after = search.counted(load_study(tmp_path / "found"))
    assert [trial.state.name for trial in after] == ["COMPLETE", "COMPLETE"]
    assert [search.number_of(trial) for trial in after] == [0, 1]
    assert after[0] == before[0]
    assert after[1].params == before[1].params
    assert sorted(after[1].intermediate_values) == list(range(6))
    assert [(trial.params, trial.value) for trial in after] == expected


def test_search_prunes_trials(run_search, optuna, tmp_path, monkeypatch):
    class Strict(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number > 0

    monkeypatch.setattr(search, "pruner", lambda epochs: Strict())
    code, printed = run_search(*ALONE, "--trials", "3")
    assert code == 0, printed
    study = load_study(tmp_path / "found")
    assert states(study) == ["COMPLETE", "PRUNED", "PRUNED"]
    assert [len(trial.intermediate_values) for trial in study.trials] == [2, 1, 1]
    assert re.search(r"\[2/3\] trial 1 \S+: pruned after epoch 1 at val \S+ % \| best \S+ % \(trial 0\)", printed)
    assert read(tmp_path / "found" / "1" / "result.json").status == "pruned"
    assert [path.parent.name for path in (tmp_path / "found").glob("*/README.md")] == ["0"]
    assert "2 runs not counted: 2 pruned." in summarize(collect([tmp_path / "found"]).results).notes
    assert run_search(*ALONE, "--trials", "3")[0] == 0  # they count as finished
    assert states(load_study(tmp_path / "found")) == states(study)


def test_pruner_waits_for_half_of_the_epochs_and_five_trials(optuna):
    study = optuna.create_study(direction="maximize", pruner=search.pruner(4))

    def pruned_at(accuracy):
        trial = study.ask()
        for epoch in range(4):
            trial.report(accuracy, epoch)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return epoch
        study.tell(trial, accuracy)
        return None

    assert [pruned_at(accuracy) for accuracy in (0.1, 0.9, 0.9, 0.9, 0.9)] == [None] * 5
    assert pruned_at(0.2) == 2
    assert pruned_at(0.95) is None


@pytest.mark.usefixtures("optuna")
def test_search_continues_past_failed_trials_unless_all_fail(run_search, tmp_path):
    diverging = ("recipe.clip_norm=null", "--range", "recipe.optimizer.lr=1e-6:1e40:log", "--seed", "1")
    code, printed = run_search(*ALONE, "--trials", "4", *diverging)
    assert code == 0, printed
    study = load_study(tmp_path / "found")
    assert {"COMPLETE", "FAIL"} == set(states(study))
    for trial in study.trials:
        if trial.state.name == "FAIL":
            assert "training diverged" in trial.user_attrs["error"]
            assert read(tmp_path / "found" / str(trial.number) / "result.json").status == "failed"
    assert printed.count(": failed, training diverged") == states(study).count("FAIL")
    (tmp_path / "found").rename(tmp_path / "some")

    diverging = ("recipe.clip_norm=null", "--range", "recipe.optimizer.lr=1e30:1e40:log")
    code, printed = run_search(*ALONE, "--trials", "2", *diverging)
    assert code == 1
    assert "search.py: of 2 trials none came to its end; the first: training diverged" in printed
    assert states(load_study(tmp_path / "found")) == ["FAIL", "FAIL"]


@pytest.mark.usefixtures("optuna")
def test_search_repeats_a_trial_after_a_full_disk(run_search, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(search, "run", full)
        assert "cannot save the run: No space left" in error_line(run_search(*ALONE, "--trials", "1"))
    assert states(load_study(tmp_path / "found")) == ["RUNNING"]
    assert run_search(*ALONE, "--trials", "1")[0] == 0
    assert states(load_study(tmp_path / "found")) == ["COMPLETE"]


@pytest.mark.usefixtures("optuna")
def test_search_ends_at_a_bug_and_goes_on_once_that_is_mended(run_search, tmp_path, monkeypatch):
    """It would fail in every trial, and leave none for later."""
    with monkeypatch.context() as patch:
        patch.setattr("kd.methods.logits.soft_loss", lambda *_: {}["missing"])
        with pytest.raises(KeyError, match="missing"):
            run_search(*QUICK, "method=logits", "T=2", "data.val_fraction=0.7", "--trials", "2")
    assert states(load_study(tmp_path / "found")) == ["RUNNING"]
    assert run_search(*QUICK, "method=logits", "T=2", "data.val_fraction=0.7", "--trials", "2")[0] == 0
    assert states(load_study(tmp_path / "found")) == ["COMPLETE", "COMPLETE"]


@pytest.mark.usefixtures("optuna")
def test_search_takes_a_method_of_ones_own(run_search, tmp_path):
    """Its file lies in a folder beside our own; its knobs are searched between its own ranges."""
    text = (CONF / "method" / "logits.yaml").read_text()
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "embedding.yaml").write_text(text)
    arguments = ("--trials", "1", *QUICK, "method=embedding", "T=4", "data.val_fraction=0.7")
    assert "method=embedding" in error_line(run_search(*arguments))
    assert "--config-dir=none: no such folder" in error_line(run_search("--config-dir", "none", *arguments))
    code, printed = run_search("--config-dir", "mine", *arguments)
    assert code == 0, printed
    record = read(tmp_path / "found" / "0" / "result.json")
    assert (record.method, record.config_dir) == ("embedding", str(tmp_path / "mine"))
    assert "--config-dir" in printed.split("the best again: ")[1].splitlines()[0]


@pytest.mark.usefixtures("optuna")
def test_search_covers_whole_numbers_and_other_settings(run_search, tmp_path):
    settings = ("recipe.optimizer.lr=0.05", "--range", "student.scale=1:3", "student.conv_dropout=0:0.5")
    assert run_search(*(part for part in ALONE if "student" not in part), "--trials", "2", *settings)[0] == 0
    for trial in load_study(tmp_path / "found").trials:
        assert set(trial.params) == {"student.scale", "student.conv_dropout"}
        assert trial.params["student.scale"] in (1, 2, 3)
        variant = read(tmp_path / "found" / str(trial.number) / "result.json").variant
        assert f"student.scale={trial.params['student.scale']}" in variant.split()


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("--range", "tau=1:4"), "there is no number 'tau' with method=logits"),
        (("--range", "trainer.accelerator=1:4"), "there is no number 'trainer.accelerator'"),
        (("--range", "trainer.deterministic=0:1"), "there is no number 'trainer.deterministic'"),
        (("--range", "T"), "--range T: write NAME=LOW:HIGH"),
        (("--range", "T=1:4:linear"), "--range T=1:4:linear: write NAME=LOW:HIGH"),
        (("--range", "T=4:1"), "4 is not below 1"),
        (("--range", "alpha=0:1:log"), "begins above 0"),
        (("--range", "alpha=0:2"), "alpha must be in [0, 1], got 2"),
        (("--range", "recipe.epochs=1.5:2"), "recipe.epochs must be a whole number"),
        (("--range", "T=1:2", "T=1:3"), "--range T=... is given more than once"),
        (("T=2", "--range", "T=1:4"), "T is searched by --range and set by T=2"),
        (("T=2", "alpha=0", "recipe.optimizer.lr=0.1"), "nothing is left to search"),
        (("data.val_fraction=0",), "nothing may be chosen by the test split"),
        (("data.val_fraction=0.001",), "data.val_fraction=0.001 holds out none of the"),
        (("method=feature", "alpha=0.9", "--range", "beta=0.2:0.5"), "alpha + beta must be in [0, 1]"),
        (("method=feature", "--range", "alpha=0.5:1", "beta=0.6:1"), "alpha + beta must be in [0, 1]"),
        (("method=teacher",), "no student to search"),
        (("method=typo",), "there is no method=typo"),
        (("experiment=sed_table",), "there is no experiment=sed_table; did you mean experiment=seed_table?"),
        (("--range", "temperature=1:8"), "with method=logits that could be searched; did you mean T?"),
        (("--range", "beta=0:1"), "that could be searched; its knobs are T, alpha"),
        (("--range", "lr=0.01:0.1"), "lr is the teacher's too; give --range recipe.optimizer.lr=0.01:0.1"),
        (("--range", "method.T=1:4"), "give --range T=1:4, whose value method.T takes"),
        (("--range", "teacher_seed=0:9"), "the best of several seeds is luck"),
        (("--range", "data.val_fraction=0.1:0.5"), "accuracies on other validation images are not comparable"),
        (("--range", "data.workers=1:2"), "data.workers does not change the result"),
        (("--range", "trainer.devices=1:2"), "training on several devices"),
        (
            ("--range", "T=1:2", "data=digits"),
            "log; settings are given before --range",
        ),
        (("T=1,2",), "T=1,2: give a single value, or search between two by --range NAME=LOW:HIGH"),
        (("T", "=", "4"), "'T' is not a setting; write T=4, without spaces"),
        (("resume=runs/1",), "a search is continued by its own command again"),
        (("hydra/launcher=joblib",), "a search runs one trial after the other in its folder; leave this out"),
        (("--trials", "x"), "argument --trials: must be a whole number, got x; see --help"),
        (("--tirals", "3"), "unrecognized arguments: --tirals"),
        (("student.scal=2",), "there is no setting 'student.scal'"),
        (("alpha=2",), "alpha must be in [0, 1], got 2"),
        (("experiment=seed_table",), "a grid of runs cannot be searched"),
        (("trainer=ddp",), "training on several devices starts this command again"),
        (("method.stages=[7]", "method=feature"), "stages must be in"),
        (("method=kdsvd", "k=2.5"), "k must be a whole number in [1, inf), got 2.5"),
        (("--seed", "x"), "argument --seed: must be a whole number, got x; see --help"),
        (("method=feature", "beta=x"), "beta must be a number in [0, 1], got x"),
        (("method=ab", "--range", "method.margin=0:inf"), "both ends must be finite"),
        (("+trainer.limit_val_batches=0",), "leaves nothing to judge a trial by"),
        (("--trials", "0"), "argument --trials: must be at least 1, got 0"),
    ],
)
def test_search_refuses_a_mistake_in_one_line_before_any_trial(run_search, tmp_path, arguments, printed):
    assert printed in error_line(run_search(*QUICK, "method=logits", *arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("--trials", "2", "data=digits"), "give the folder first: python scripts/search.py SEARCH_DIR data=digits"),
        (("--trials", "2"), "give a folder for the study and its runs: python scripts/search.py SEARCH_DIR"),
        (("what?", "data=digits"), "what?: the path of a study cannot have a '?'"),
    ],
)
def test_search_refuses_what_is_no_folder(tmp_path, monkeypatch, capsys, arguments, printed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    assert printed in error_line((search.main(), "".join(capsys.readouterr())))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("optuna")
def test_search_directory_refuses_another_search(run_search, tmp_path):
    found = tmp_path / "found"
    found.mkdir()
    with FileLock(found / ".lock"):
        assert "another search is at work in found" in error_line(run_search(*ALONE))
    assert run_search(*ALONE, "--trials", "1")[0] == 0
    for other in (("--seed", "1"), ("recipe.epochs=3",), ("--range", "recipe.optimizer.lr=0.01:0.1:log")):
        assert "found holds another search (recipe.optimizer.lr=0.01:1:log" in error_line(run_search(*ALONE, *other))
    assert states(load_study(found)) == ["COMPLETE"]
    (found / search.STUDY).write_text("no data base at all")
    assert f"found/{search.STUDY} cannot be used: file is not a database" in error_line(run_search(*ALONE))
    (found / search.STUDY).unlink()
    assert "found holds runs, but no search" in error_line(run_search(*ALONE))


def test_search_without_optuna_names_the_extra(run_search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install -e '.[search]'" in error_line(run_search(*ALONE))


def test_search_help_has_an_example(run_search, capsys):
    """Started as a shell does by `test_programs.py`."""
    with pytest.raises(SystemExit) as stop:
        run_search("--help")
    assert stop.value.code == 0
    assert "python scripts/search.py searches/first --trials 30 method=logits data=digits" in capsys.readouterr().out
