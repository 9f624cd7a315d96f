"""The notebook runs from its first cell to its last, on digits, and what is committed of it is what came of a run."""

import json
import re

import nbformat
import pytest

from notebooks.execute import NOTEBOOK, executed
from tests.common import ROOT

# As in the other tests, small networks: what they learn is not the question here.
SMALL = "data=digits epochs=3 teacher.scale=8 student.scale=4 trainer=cpu threads=1"
SILENT = ("settings", "place", "imports")
PICTURES = ("data", "augmented", "softened", "accuracy", "curves")
METHODS = ("teacher", "standard", "logits", "feature")


def ran(folder, scratch, cells=None):
    """The notebook, run on digits and started in a folder; it and Jupyter write into another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_NOTEBOOK_OVERRIDES", SMALL)
        patch.setenv("KD_NOTEBOOK_RUNS", str(scratch / "runs"))
        patch.setenv("IPYTHONDIR", str(scratch / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(scratch / "jupyter"))
        return executed(NOTEBOOK, folder, cells, timeout=900)


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    return ran(ROOT, tmp_path_factory.mktemp("notebook"))


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, *names):
    """Of the cells with these names, or of all."""
    return [output for cell in code(notebook) if cell.id in names or not names for output in cell.outputs]


def has_picture(notebook, name):
    return any("image/png" in output.get("data", {}) for output in outputs(notebook, name))


def said(notebook):
    """All that was printed."""
    return "".join(output.get("text", "") for output in outputs(notebook))


def printed(notebook, name):
    """The lines that a cell printed, or that its table has."""
    texts = [output.get("text") or output.data.get("text/markdown", "") for output in outputs(notebook, name)]
    return "".join(texts).splitlines()


def table(notebook):
    """The results by method, each by column."""
    lines = [line.strip("| ").split(" | ") for line in printed(notebook, "table") if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def shows_results_only(notebook):
    """Every cell that should, and no errors, warnings or escape codes."""
    assert [cell.id for cell in code(notebook) if not cell.outputs] == list(SILENT)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert not re.search(r"warn|\x1b|\r", said(notebook), re.IGNORECASE)


def test_shows_results_and_nothing_else(on_digits):
    shows_results_only(on_digits)


@pytest.mark.parametrize("cell", PICTURES)
def test_draws(on_digits, cell):
    assert has_picture(on_digits, cell)


def test_compares_all_four(on_digits):
    assert sorted(table(on_digits)) == sorted(METHODS)
    assert {row["data"] for row in table(on_digits).values()} == {"digits"}


def test_the_analysis_is_of_the_runs_in_the_table(on_digits):
    """Both tell accuracy and agreement: one from the records, the other from what was said to every image."""
    analysis = {line.split()[0]: line.split()[1:3] for line in printed(on_digits, "agreement")[1:]}
    for method in ("logits", "feature"):
        row = table(on_digits)[method]
        assert analysis[method] == [f"{row['test accuracy, %']}%", f"{row['agreement, %']}%"]


def test_starts_from_its_own_folder(tmp_path):
    cells = [cell.id for cell in nbformat.read(NOTEBOOK, as_version=4).cells]
    notebook = ran(NOTEBOOK.parent, tmp_path, cells.index("data") + 1)
    assert printed(notebook, "data")[0].startswith("digits")


class TestCommitted:
    def test_is_a_valid_notebook(self, committed):
        nbformat.validate(committed)
        assert (committed.nbformat, committed.nbformat_minor) == (4, 5)

    def test_was_run_from_top_to_bottom(self, committed):
        shows_results_only(committed)
        for cell in (*PICTURES, "examples"):
            assert has_picture(committed, cell), cell
        assert sorted(table(committed)) == sorted(METHODS)

    def test_is_of_cifar10_by_its_name(self, committed):
        name = printed(committed, "data")[0].split(":")[0]
        assert name in ("CIFAR-10", "CIFAR-10 (JPEG)")
        assert {row["data"] for row in table(committed).values()} == {name}

    def test_tells_no_place_and_time(self, committed):
        assert committed.metadata.language_info == {"name": "python"}
        assert not any(cell.metadata for cell in committed.cells)
        # Pictures apart, in whose letters anything may be read.
        data = [{**output.get("data", {}), "image/png": None} for output in outputs(committed)]
        text = json.dumps([data, said(committed), [cell.source for cell in committed.cells]])
        assert not re.search(r"/(home|root|work|tmp|mnt|Users)\b", text)

    def test_is_small(self):
        assert NOTEBOOK.stat().st_size < 1_000_000
