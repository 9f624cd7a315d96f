import shutil
from pathlib import Path

import hydra._internal.config_loader_impl as loading
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from kd.app.arguments import refuse_wrong_choices
from kd.app.check import check_command
from kd.app.compose import compose
from kd.app.explain import EXPECTED
from kd.errors import UserError
from tests.common import CONF, QUICK

BOMB = "b0: &b0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def own(tmp_path, text):
    file = tmp_path / "student" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def test_settings_with_aliases_of_aliases_are_refused(tmp_path):
    file = own(tmp_path, BOMB)
    with pytest.raises(UserError, match=r"aliases stand for 1,234,567,909 values") as error:
        refuse_wrong_choices(["student=own"], tmp_path)
    assert str(error.value).startswith(f"{file}: ")


def test_file_is_refused_that_is_too_large_for_settings(tmp_path):
    file = own(tmp_path, "a: " + "x" * 100_001)
    with pytest.raises(UserError, match="too large for a file of settings"):
        refuse_wrong_choices(["student=own"], tmp_path)
    file.write_text("a: " + "x" * 1000)
    refuse_wrong_choices(["student=own"], tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "--config-dir=mine", "student=own", "seed=0,1"],
        ["--config-dir=mine", "student=own", "--cfg", "job"],
        ["--config-dir=mine", "--help"],
        ["hydra.searchpath=[file://mine]", "student=own"],
    ],
)
def test_every_command_refuses_aliases_of_aliases(run, tmp_path, arguments):
    (tmp_path / "mine").mkdir()
    own(tmp_path / "mine", BOMB)
    code, printed = run(*arguments)
    assert (code, "aliases stand for 1,234,567,909 values" in printed) == (1, True), printed


def test_compose_takes_aliases_that_are_few(tmp_path):
    own(tmp_path, "_target_: kd.models.cnn.CNN\nscale: &s 3\nhead_dropout: *s\n")
    command = compose(["student=own"], config_dir=tmp_path)
    assert command.cfg.student.head_dropout == 3


def test_compose_finds_files_of_both_folders_that_a_command_adds(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    own(tmp_path / "first", "_target_: kd.models.cnn.CNN\nscale: 3\n")
    second = own(tmp_path / "second", "_target_: kd.models.cnn.CNN\nscale: 4\n")
    second.rename(second.with_name("further.yaml"))
    added = f"hydra.searchpath=[file://{tmp_path / 'second'}]"
    for choice, scale in {"own": 3, "further": 4}.items():
        command = compose([f"student={choice}", added], config_dir=tmp_path / "first")
        assert command.cfg.student.scale == scale
        assert command.config_dir == str(tmp_path / "first")


@pytest.mark.parametrize("group", ["method", "experiment"])
def test_file_of_ones_own_without_its_first_line_is_named(tmp_path, group):
    file = tmp_path / group / "mine.yaml"
    file.parent.mkdir()
    file.write_text("T: 4.0\n")
    with pytest.raises(UserError, match=f"{file} has to begin with the line '# @package _global_'"):
        refuse_wrong_choices([f"{group}=mine"], tmp_path)
    file.write_text("# what it is\n# @package _global_\nT: 4.0\n")
    refuse_wrong_choices([f"{group}=mine"], tmp_path)


def test_data_of_ones_own_that_lack_a_setting_are_told_what_to_inherit(tmp_path):
    (tmp_path / "data").mkdir()
    text = (CONF / "data" / "shared" / "default.yaml").read_text().replace("also_test:", "other:")
    source = "source:\n  _target_: kd.data.digits.digits\n  image_size: 16\n"
    (tmp_path / "data" / "mine.yaml").write_text(f"{text}\n{source}")
    with pytest.raises(UserError, match=r"data.also_test is missing; have the file of data= inherit from ours"):
        check_command(compose(["data=mine"], config_dir=tmp_path))


def test_single_run_composes_its_configuration_once(run, monkeypatch):
    composed, load = [], ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_configuration",
        lambda self, **arguments: composed.append(arguments["overrides"]) or load(self, **arguments),
    )
    code, printed = run(*QUICK, "method=standard", "epochs=1", "hydra.run.dir=run")
    assert (code, len(composed)) == (0, 1), printed


def test_single_run_calls_the_callbacks_that_hydra_calls(run, monkeypatch):
    calls = []

    class Recorder(Callback):
        def on_run_start(self, config, **_):
            calls.append(("start", config.seed, Path("run").exists()))

        def on_job_end(self, config, job_return, **_):
            calls.append(("job", job_return.status.name, Path("run").exists()))

        def on_run_end(self, config, job_return, **_):
            calls.append(("end", job_return.status.name, config.hydra.mode.name))

    monkeypatch.setattr("kd.Recorder", Recorder, raising=False)
    run(*QUICK, "method=standard", "epochs=1", "hydra.run.dir=run", "+hydra.callbacks.mine._target_=kd.Recorder")
    assert calls == [("start", 0, False), ("job", "COMPLETED", True), ("end", "COMPLETED", "RUN")]


def test_compose_sees_a_file_that_has_changed(tmp_path):
    """The tests keep what Hydra reads from a file (tests/settings.py), for as long as it is the same."""
    file = own(tmp_path, "_target_: kd.models.cnn.CNN\nscale: 3\n")
    for scale in (3, 14, 5):
        file.write_text(f"_target_: kd.models.cnn.CNN\nscale: {scale}\n")
        for _ in range(2):
            command = compose(["student=own"], config_dir=tmp_path)
            assert command.cfg.student.scale == scale
            command.cfg.student.scale = 0


def test_compose_sees_a_file_of_conf_that_has_changed(tmp_path, monkeypatch):
    """The tests keep what Hydra makes of these files, too."""
    conf = shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr("kd.app.compose.conf_dir", lambda: conf)
    file = conf / "student" / "cnn16.yaml"
    text = file.read_text()
    for scale in (16, 3, 14):
        file.write_text(text.replace("scale: 16", f"scale: {scale}"))
        assert compose(["data=digits"]).cfg.student.scale == scale
    (conf / "student" / "mine.yaml").write_text(text.replace("scale: 16", "scale: 5"))
    assert compose(["data=digits", "student=mine"]).cfg.student.scale == 5


def test_compose_finds_a_choice_only_where_its_folder_is_searched(tmp_path, monkeypatch):
    """What is found in a package is not kept for commands that do not search it."""
    own(tmp_path / "folder_of_ours", "_target_: kd.models.cnn.CNN\nscale: 7\n")
    (tmp_path / "folder_of_ours" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = compose(["student=own", "hydra.searchpath=[pkg://folder_of_ours]"])
    assert found.cfg.student.scale == 7
    with pytest.raises(EXPECTED, match="own"):
        compose(["student=own"])


@pytest.mark.parametrize(
    "overrides",
    [
        [*QUICK, "method=crd"],
        ["experiment=cifar100/vgg13_vgg8", "method=dkd", "beta=2"],
        [
            "recipe/optimizer@teacher_recipe.optimizer=adamw",
            "teacher_recipe.optimizer.lr=0.3",
            "+trainer.fast_dev_run=true",
        ],
        ["student=wrn16_2", "~teacher.conv_dropout", "hydra/launcher=auto"],
        ["method=standard", "T=4"],
        ["student=typo"],
        ["~logger", "seed=${nowhere}"],
    ],
)
def test_compositions_that_the_tests_keep_are_those_of_hydra(monkeypatch, overrides):
    def composed():
        try:
            command = compose(overrides)
        except EXPECTED as error:
            return str(error)
        everything = command.hydra._get_parent()
        found = OmegaConf.to_container(everything), command.choices
        everything.hydra.job.name = "changed"
        return found

    kept = [composed() for _ in range(2)]
    monkeypatch.setattr(loading, "create_defaults_list", loading.create_defaults_list.__wrapped__)
    merge = ConfigLoaderImpl._compose_config_from_defaults_list.__wrapped__
    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge)
    assert kept == [composed()] * 2


def test_single_run_tells_what_hydra_refuses_in_a_line(run):
    """Hydra asserts that this is a switch, a name or a list; a run's own unexpected error has its traceback."""
    code, printed = run(*QUICK, "method=standard", "hydra.verbose=3", "hydra.run.dir=run")
    assert (code, printed.count("\n")) == (1, 1)
    assert printed.startswith("error: ")
    assert printed.endswith(" (AssertionError; HYDRA_FULL_ERROR=1 shows where)\n")
