"""The notebook runs from its first cell to its last, on digits, and the committed outputs are those of a run."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import NOTEBOOK, execute
from tests.common import ROOT

# Small networks, as in the other tests: their accuracy does not matter here.
SMALL = (
    "data=digits data.source.image_size=16 batch_size=256 epochs=3 "
    "teacher.scale=4 student.scale=2 trainer=cpu threads=1"
)
SILENT = ("settings", "place", "imports")
PICTURES = ("data", "augmented", "softened", "accuracy", "curves")
METHODS = ("teacher", "standard", "logits", "feature")


def execute_on_digits(folder, scratch):
    """Run the notebook on digits, started in a folder; it and Jupyter write into another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_NOTEBOOK_OVERRIDES", SMALL)
        patch.setenv("KD_NOTEBOOK_RUNS", str(scratch / "runs"))
        patch.setenv("IPYTHONDIR", str(scratch / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(scratch / "jupyter"))
        return execute(NOTEBOOK, folder, timeout=900)


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory):
    return execute_on_digits(NOTEBOOK.parent, tmp_path_factory.mktemp("notebook"))  # where Jupyter starts it


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, *names):
    """Return the outputs of the cells with these names, or of all."""
    return [output for cell in code(notebook) if cell.id in names or not names for output in cell.outputs]


def has_picture(notebook, name):
    return any("image/png" in output.get("data", {}) for output in outputs(notebook, name))


def printed_text(notebook):
    """Return all that was printed."""
    return "".join(output.get("text", "") for output in outputs(notebook))


def lines_of(notebook, name):
    """Return the lines that a cell printed, or those of its table."""
    texts = [output.get("text") or output.data.get("text/markdown", "") for output in outputs(notebook, name)]
    return "".join(texts).splitlines()


def table(notebook):
    """Return the results by method, each by column."""
    lines = [line.strip("| ").split(" | ") for line in lines_of(notebook, "table") if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def assert_results_only(notebook):
    """Check that every cell but the silent ones has outputs, without errors, warnings or escape codes."""
    assert [cell.id for cell in code(notebook) if not cell.outputs] == list(SILENT)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert not re.search(r"warn|\x1b|\r", printed_text(notebook), re.IGNORECASE)


def test_notebook_has_results_and_no_warnings(on_digits):
    assert_results_only(on_digits)


@pytest.mark.parametrize("cell", PICTURES)
def test_notebook_draws_every_picture(on_digits, cell):
    assert has_picture(on_digits, cell)


def test_notebook_table_has_all_four_methods(on_digits):
    assert sorted(table(on_digits)) == sorted(METHODS)
    assert {row["data"] for row in table(on_digits).values()} == {"digits"}


def test_notebook_analysis_agrees_with_the_table(on_digits):
    """Both show accuracy and agreement: one from the records, the other from the predictions of every image."""
    analysis = {line.split()[0]: line.split()[1:3] for line in lines_of(on_digits, "agreement")[1:]}
    for method in ("logits", "feature"):
        row = table(on_digits)[method]
        assert analysis[method] == [f"{row['test accuracy, %']}%", f"{row['agreement, %']}%"]


@pytest.mark.parametrize("folder", [".", "notebooks", "docs/methods"])
def test_notebook_goes_to_the_repository_wherever_it_was_started(committed, monkeypatch, folder):
    """Run in this process what its cells do before the first import of ours; all of it was run from notebooks/."""
    monkeypatch.chdir(ROOT / folder)
    sources = {cell.id: cell.source for cell in code(committed)}
    assert list(sources)[:2] == ["settings", "place"]
    exec("\n".join(sources[name] for name in ("settings", "place")), {})
    assert Path.cwd() == ROOT


class TestCommitted:
    def test_committed_notebook_is_valid(self, committed):
        nbformat.validate(committed)
        assert (committed.nbformat, committed.nbformat_minor) == (4, 5)

    def test_committed_notebook_was_run_from_top_to_bottom(self, committed):
        assert_results_only(committed)
        for cell in (*PICTURES, "examples"):
            assert has_picture(committed, cell), cell
        assert sorted(table(committed)) == sorted(METHODS)

    def test_committed_notebook_shows_cifar10(self, committed):
        name = lines_of(committed, "data")[0].split(":")[0]
        assert name in ("CIFAR-10", "CIFAR-10 (JPEG)")
        assert {row["data"] for row in table(committed).values()} == {name}

    def test_committed_notebook_contains_no_paths_or_times(self, committed):
        assert committed.metadata.language_info == {"name": "python"}
        assert not any(cell.metadata for cell in committed.cells)
        # Without pictures, whose encoding may contain any text.
        data = [{**output.get("data", {}), "image/png": None} for output in outputs(committed)]
        text = json.dumps([data, printed_text(committed), [cell.source for cell in committed.cells]])
        assert not re.search(r"/(home|root|work|tmp|mnt|Users)\b", text)

    def test_committed_notebook_is_small(self):
        assert NOTEBOOK.stat().st_size < 1_000_000
