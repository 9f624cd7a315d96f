"""`scripts/compare.py` tells what differs between two runs."""

import shutil

import pytest

from tests import processes
from tests.common import ROOT, SMALL


def compare(*arguments, cwd):
    return processes.run(ROOT / "scripts" / "compare.py", *arguments, cwd=cwd)


def lines(printed, title):
    """Return the lines of a part, as lists of cells."""
    part = printed.split(f"{title}\n")[1].split("\n\n")[0]
    return {cells[0]: cells[1:] for line in part.splitlines()[1:] if (cells := line.split())}


def test_compare_names_settings_that_differ_and_figures(run, tmp_path, finished):
    shutil.copytree(finished / "run", tmp_path / "before")
    shutil.copytree(finished / "teachers", tmp_path / "teachers")
    assert run(*SMALL, "method=logits", "T=8", "recipe.epochs=1", "hydra.run.dir=after")[0] == 0
    done = compare("before", "after", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    differing = lines(done.stdout, "settings that differ")
    assert differing["T"] == ["2", "8"]
    assert differing["method.T"] == ["2", "8"]
    assert differing["recipe.epochs"] == ["2", "1"]  # of the shorthand epochs=2, and by itself
    assert "student.scale" not in differing
    assert "what else differs: none" in done.stdout
    assert "test accuracy, %" in done.stdout.split("figures\n")[1]


def test_compare_finds_no_setting_where_there_is_none(tmp_path, finished):
    for name in ("a", "b"):
        shutil.copytree(finished / "run", tmp_path / name)
    text = (tmp_path / "b" / "result.json").read_text().replace('"device": "', '"device": "another ')
    (tmp_path / "b" / "result.json").write_text(text)
    config = tmp_path / "b" / ".hydra" / "config.yaml"
    assert "    transform: null\n" in config.read_text()
    config.write_text(config.read_text().replace("    transform: null\n", ""))  # as of a version without it
    done = compare("a", "b", cwd=tmp_path)
    assert "settings that differ: none" in done.stdout
    assert [*lines(done.stdout, "what else differs")] == ["device"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "result.json").unlink(), "b: not the directory of a run, which holds a result.json"),
        (lambda run: (run / ".hydra" / "config.yaml").unlink(), "config.yaml cannot be read: "),
        (lambda run: (run / ".hydra" / "config.yaml").write_text("{"), "config.yaml cannot be read: "),
        (lambda run: (run / ".hydra" / "config.yaml").write_text("- 1"), "config.yaml cannot be read: not a mapping"),
    ],
)
def test_compare_answers_what_is_no_run_in_one_line(tmp_path, finished, one_line, break_it, message):
    for name in ("a", "b"):
        shutil.copytree(finished / "run", tmp_path / name)
    break_it(tmp_path / "b")
    assert message in one_line(compare("a", "b", cwd=tmp_path))
