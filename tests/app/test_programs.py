"""Command lines of programs: what is refused, and what is printed to go on with."""

import os
import random
import subprocess

import pytest

from kd.app.arguments import quoted
from kd.app.compose import compose
from kd.app.programs import command_line, refuse_setting
from kd.errors import UserError
from kd.terminal import Parser


@pytest.mark.parametrize("argument", ["data=digits", "+x=1", "recipe/optimizer=adamw", "T=4"])
def test_refuse_setting_in_the_place_of_a_folder(argument):
    with pytest.raises(UserError, match="give the folder first"):
        refuse_setting(argument, "scripts/search.py DIR")


@pytest.mark.parametrize("folder", ["searches/first", "./T=4", "/data/T=4", "2026=1", "a b"])
def test_refuse_setting_takes_folders(folder):
    refuse_setting(folder, "scripts/search.py DIR")


def test_parser_raises_a_line():
    parser = Parser()
    parser.add_argument("--trials", type=int)
    with pytest.raises(UserError, match=r"^argument --trials: invalid int value: 'x'; see --help$"):
        parser.parse_args(["--trials", "x"])


def test_quoted_values_pass_shell_and_hydra_unchanged():
    characters, generator = "a\\'\"${}[], =v2:é#()~*|\t@%;&!`\x1b\udcff", random.Random(0)
    texts = ["".join(generator.choices(characters, k=generator.randint(1, 9))) for _ in range(50)]
    texts += ["null", "True", "1e3", "007", "sweep", "runs/2026-01-02/[v2]", "$5_$10", "a\\", "${seed}", "\\${seed}"]
    settings = command_line([quoted(f"+spec.text{number}", text) for number, text in enumerate(texts)])
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {settings}"], capture_output=True, check=True)
    spec = compose(os.fsdecode(done.stdout).split("\0")[:-1]).cfg.spec
    assert [spec[f"text{number}"] for number in range(len(texts))] == texts


def test_command_line_has_no_control_characters():
    assert command_line(["T=4", "a b", "\x1b[31m"]) == "T=4 \"a b\" $'\\x1b[31m'"
