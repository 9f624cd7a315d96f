"""The form of the command line: what is refused before Hydra reads it, and what is written instead."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from kd.app.arguments import quoted, read_arguments, refuse_wrong_choices, sweeps
from kd.errors import UserError
from tests.common import CONF


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["T", "=", "4"], "'T' is not a setting; write T=4, without spaces"),
        (["T=", "4"], "'T=' is not a setting; write T=4, without spaces"),
        (["T", "=4"], "'T' is not a setting; write T=4, without spaces"),
        (["T=1,", "2,", "4"], "for several values write -m T=1,2,4, without spaces"),
        (["method", "logits"], "'method' is not a setting; write method=logits"),
        (
            ["data.root=my", "images"],
            'for a value with spaces write "data.root=my images"',
        ),
        (["--T", "4"], "there is no option --T; settings have no dashes: T=4"),
        (["--T=4"], "there is no option --T=4; settings have no dashes: T=4"),
        (["--batch-size", "64"], "settings have no dashes: batch_size=64"),
        (["--method", "logits", "T=4"], "there is no option --method; settings have no dashes: method=logits"),
        (["--mutlirun", "T=1,2"], "there is no option --mutlirun; did you mean --multirun?"),
        (["resume"], "resume is given as resume=RUN_DIR"),
        (["help"], "'help' is not a setting; did you mean --help?"),
        (["lr="], "lr= has no value; give lr=VALUE"),
        (["hydra.run.dir="], "hydra.run.dir= has no value"),
        (["T"], "settings are given as T=VALUE"),
        (["student.scale=???"], "student.scale=??? is no value; give student.scale=VALUE"),
        (["+resume=run"], "write resume=run, without +"),
        (["--config-dir="], "--config-dir=: no such folder"),
        (["="], "'=' is not a setting"),
        (["4"], "'4' is not a setting"),
        (["--cfg"], "--cfg/-c: expected one argument"),
        (["--cfg", "all", "-m"], "one of --run, --multirun, --cfg and --info at a time"),
        (["--resolve"], "--resolve goes with --cfg job"),
        (["--package", "x"], "--package goes with --cfg job"),
        (
            ["--config-path=/mine"],
            "--config-path: our own settings are needed; give a folder with yours as --config-dir",
        ),
        (["--config-dir=nowhere"], "--config-dir=nowhere: no such folder"),
        (["--config-name=mine"], "put yours into experiment/NAME.yaml of a folder, and give --config-dir=DIR"),
        (["--experimental-rerun", "config.pickle"], "would run what is in a pickle; use resume=RUN_DIR instead"),
    ],
)
def test_read_arguments_says_what_to_write(typed, answer):
    with pytest.raises(UserError) as error:
        read_arguments(typed)
    assert answer in str(error.value)
    assert "\n" not in str(error.value)


def test_read_arguments_puts_flags_first(tmp_path):
    typed = ["T=1,2", "-m", "~logger.name", "+x=a b", "--config-dir", str(tmp_path), "alpha=0.1"]
    arguments = read_arguments(typed)
    assert arguments.argv == ["--multirun", f"--config-dir={tmp_path}", "T=1,2", "~logger.name", "+x=a b", "alpha=0.1"]
    assert (arguments.runs, arguments.multirun, arguments.config_dir) == (True, True, tmp_path)
    printing = read_arguments(["method=standard", "--cfg", "job", "--resolve", "seed=1"])
    assert (printing.runs, printing.argv) == (False, ["--cfg=job", "--resolve", "method=standard", "seed=1"])


def test_read_arguments_gives_hydra_the_folder_in_full(tmp_path, monkeypatch):
    """Hydra expands no "~", and bash none within --config-dir=~/mine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for typed in ("~/mine", "../mine"):
        arguments = read_arguments([f"--config-dir={typed}"])
        assert (arguments.flags, arguments.config_dir) == ((f"--config-dir={tmp_path}/mine",), tmp_path / "mine")


@pytest.mark.parametrize(
    "text",
    ["a b", "it's", "back\\", "a\\'b", "x=y,z", "$5_$10", "[v2]", "\\\\'", "é {x}", "${T}", "'", '"q"', "a:b(c)", "~"],
)
def test_quoted_texts_come_back_from_hydras_grammar_and_from_interpolation(text):
    override = OverridesParser.create().parse_override(quoted("name", text))
    assert OmegaConf.create({"T": 4, "name": override.value()}).name == text


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "experiment=sed_table",
            "there is no experiment=sed_table; did you mean experiment=seed_table? There are",
        ),
        ("experiment=seeds,sed_table", "there is no experiment=sed_table"),
        ("experiment=cifar100/vgg13_vgg9", "did you mean experiment=cifar100/vgg13_vgg8? There are best_100k"),
        ("experiment=typo", "temperature_alpha, cifar100/fast/..., cifar100/..."),
        ("experiment=shared/cifar100", "there is no experiment=shared/cifar100"),
        ("debug=limt", "did you mean debug=limit?"),
        ("method=null", "there is no method=null. There are ab, abkd"),
        ("student=1", "there is no student=1. There are cnn16"),
        ("trainer=1e309", "there is no trainer=inf. There are auto"),
        ("method=[logits,feature]", "there is no method=['logits', 'feature']"),
        ("experiment=null", "experiment=null is what there is without it; leave it out"),
        ("logger=null", "logger=null: write logger=none"),
        ("~trainer", "~trainer: a run needs one of auto, cpu"),
        ("~experiment", "~experiment: leave it out"),
        ("recipe@teacher_recipe=adam", "there is no recipe=adam; did you mean recipe=adamw?"),
        ("recipe.optimizer=adamw", "recipe.optimizer is chosen by its file: write recipe/optimizer=NAME, NAME one of"),
        ("teacher_recipe.optimizer=sgd", "write recipe/optimizer@teacher_recipe.optimizer=NAME"),
        ("data.root=a=b", "data.root=a=b: Hydra cannot read this value; if it is a text, write \"data.root='a=b'\""),
        ("data.root=it's", "if it is a text, write 'data.root="),
        ("teacher_weights=[/a,~/b]", "if it is a text, write \"teacher_weights=['/a','~/b']\""),
        ("a b=4", "'a b' is no name of a setting"),
        (f"T={'9' * 5000}", "Hydra cannot read this value"),
        (f"T={'[' * 500}{']' * 500}", "Hydra cannot read this value"),
        ("T==4", "T==4: write T=4"),
        ("alpha=\N{MINUS SIGN}0.1", "write alpha=-0.1"),
        ("T=4;alpha=0.1", "settings are apart from each other: T=4 alpha=0.1"),
        ("T=4,alpha=0.1", "settings are apart from each other: T=4 alpha=0.1"),
        ("+student._partial_=true", "student._partial_ is not a setting, it is for Hydra"),
        ("~recipe.optimizer.lr", "~recipe.optimizer.lr: the library's default would take its place"),
        ("~trainer.devices", "give trainer.devices=VALUE, or leave this out"),
        ("~chain", "~chain: no setting can be left out; give chain=VALUE"),
        ("@x=4", "'@x' is no name of a setting"),
        ("+experiment=seeds", "+experiment: write experiment=seeds, without +"),
    ],
)
def test_choices_that_are_not_there_are_refused(override, answer):
    with pytest.raises(UserError) as error:
        refuse_wrong_choices([override])
    assert answer in str(error.value)


def test_choices_that_are_there_are_taken(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package _global_\n")
    refuse_wrong_choices(["method=mine", "student=cnn16", "experiment=seeds", "recipe.optimizer.lr=1"], tmp_path)
    refuse_wrong_choices(["method=logits,mine", f"hydra.searchpath=[file://{tmp_path}]", "student={scale:4}"])
    refuse_wrong_choices(["student._target_=my.Net", "~student.scale"])
    refuse_wrong_choices(["experiment=cifar100/vgg13_vgg8,cifar100/fast/vgg13_vgg8"])
    with pytest.raises(UserError, match="there is no method=mine"):
        refuse_wrong_choices(["method=mine"])


@pytest.mark.parametrize("typed", ["method=logits", "method=feature,logits", "method='logits'"])
def test_choice_of_a_file_that_has_the_name_of_ours_is_refused(tmp_path, typed):
    """Hydra would take ours without a word."""
    (tmp_path / "method").mkdir()
    refuse_wrong_choices([typed], CONF)  # our own folder is no other one
    (tmp_path / "method" / "logits.yaml").touch()
    with pytest.raises(UserError, match=r"method/logits.yaml has the name of one of ours, .* rename it"):
        refuse_wrong_choices([typed], tmp_path)


def test_sweeps_are_the_overrides_of_several_values():
    typed = ["T=1,2", "seed=range(3)", "chain=[{scale:24},{scale:20}]", "alpha=0.1", "data.root='a,b'", "lr=glob(*)"]
    assert sweeps(typed) == ["T=1,2", "seed=range(3)", "lr=glob(*)"]
